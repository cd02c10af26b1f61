"""What an ordinary key gets: the same results, and at once the same errors, as from NDIF's own sandbox."""

from dataclasses import replace
from typing import Any

import nnsight
import pytest
import torch
from transformers import DynamicCache

from data import load_all
from interventions import open_model
from interventions.backends.backend import open_backend
from interventions.methods.lens import logit_lens
from interventions.model.control_tokens import refusal_tokens
from interventions.reading.batches import pad_batch
from interventions.reading.extract import extract
from interventions.steering.answer import Gating
from interventions.steering.generate import generate
from interventions.steering.plans import Tools, plan_arm
from interventions.steering.teacher_forcing import teacher_forced
from interventions.steering.trace import trace
from tests.made.tools import EVERY_EDIT, EVERY_ROUTE, arms_of, lowrank_of, probe_of, vectors_of
from tests.oracles import same_activations, same_answers


@pytest.fixture(scope="module")
def apart(tiny_tuned):
    """The tiny model, its traces beside it."""
    return replace(tiny_tuned, backend=open_backend("simulate", sandbox=True))


@pytest.fixture(scope="module")
def prompts(prompts_file):
    return load_all([str(prompts_file)]).head(12)


@pytest.mark.parametrize(
    "how",
    [{"layers": [0, 2]}, {"position": "mean"}, {"position": "suffix", "suffixes": ["[weapons]", "[respond]", "tell me"]}],
    ids=["last", "mean", "suffix"],
)  # fmt: skip
def test_activations_are_the_same_to_the_bit(tiny_tuned, apart, prompts, tmp_path, how):
    for name, model in (("here", tiny_tuned), ("apart", apart)):
        extract(model, prompts, tmp_path / name, batch_tokens=60, **how)
    same_activations(tmp_path / "here", tmp_path / "apart", "pairs" if "suffixes" in how else "prompts")


@pytest.mark.parametrize("words", [EVERY_ROUTE, EVERY_EDIT], ids=["routes", "edits"])
def test_answers_are_the_same_in_every_arm(tiny_tuned, apart, prompts, tmp_path, words):
    tools = Tools(vectors_of(tiny_tuned), probe_of(tiny_tuned), lowrank_of(tiny_tuned))
    tables = [
        generate(model, prompts, tools, tmp_path / f"{name}.parquet", arms=arms_of(words), max_new_tokens=5)
        for name, model in (("here", tiny_tuned), ("apart", apart))
    ]
    close = ["refusal_probability", "gate"]
    same_answers(*(table.drop(close) for table in tables))
    for name in close:
        here, there = (torch.tensor(table[name].fill_null(-1).to_list()) for table in tables)
        assert torch.allclose(here, there, atol=1e-6)


def test_first_tokens_teacher_forcing_and_the_lens_are_the_same(tiny_tuned, apart, prompts, tmp_path):
    probe = probe_of(tiny_tuned)
    tools = Tools(vectors_of(tiny_tuned), probe)
    arms = arms_of(["fixed", "gated:benign=-6,harmful=4", "fixed:scope=all,strength=3"])
    own = prompts.head(4).select("category", "label").to_dicts()
    plans = [plan_arm(tiny_tuned, arm, tools, own) for arm in arms]
    batch = pad_batch([[1, 5, 6, 7], [1, 8], [1, 9, 4], [1, 6]], 0)
    given = [[4, 5], [6], [7, 8, 9], [5, 5]]
    found = {}
    for name, model in (("here", tiny_tuned), ("apart", apart)):
        forced = teacher_forced(model, batch, given, [plan.shipped for plan in plans], refusal_ids=refusal_tokens(model).ids,
                                gating=Gating([probe.gate]))  # fmt: skip
        traced = trace(model, prompts.head(4), tools, tmp_path / name, arms=[arms[0]]).table
        lens = logit_lens(model, vectors_of(tiny_tuned), 3)
        found[name] = [
            forced.nll,
            forced.kl,
            torch.tensor(traced["kl"].to_list()),
            torch.tensor(lens["logit"].to_list()),
        ]
    for here, there in zip(found["here"], found["apart"], strict=True):
        assert torch.allclose(here, there, atol=1e-6)


# ruff: noqa: RET504  # a trace gives its values once its block has ended
IDS = {"input_ids": torch.tensor([[1, 2, 3]])}


class Ours:
    """A class that only this program has."""


def stops_before_another(net, layers, backend):
    with net.session(backend=backend):
        with net.trace(IDS) as tracer:
            _ = layers[0].output
            tracer.stop()
        with net.trace(IDS):
            seen = nnsight.save(layers[0].output)
    return seen


def stops_twice_in_one_request(net, layers, backend):
    with net.session(backend=backend):
        for _ in range(2):
            with net.trace(IDS) as tracer:
                _ = layers[0].output
                tracer.stop()
        done = nnsight.save([1])
    return done


def fills_a_cache_of_its_own(net, layers, backend):
    with net.session(backend=backend):
        cache = DynamicCache()
        with net.trace(IDS, past_key_values=cache, use_cache=True):
            _ = layers[0].output
        first: Any = cache.layers[0]
        keys = nnsight.save(first.keys)
    return keys


def reads_a_weight(net, layers, backend):
    with net.session(backend=backend):
        scale = nnsight.save(next(net._module.parameters()).sum().item())
    return scale


def sends_a_class_of_ours(net, layers, backend):
    ours = Ours()
    with net.trace(IDS, odd=ours, backend=backend):
        seen = nnsight.save(layers[0].output)
    return seen


def puts_an_object_of_ours_into_a_block(net, layers, backend):
    ours = Ours()
    with net.trace(IDS, backend=backend):
        layers[0].output = ours
        seen = nnsight.save(layers[1].output)
    return seen


def asks_for_a_gradient(net, layers, backend):
    with net.trace(IDS, backend=backend):
        delta = torch.zeros(1, requires_grad=True)
        layers[0].output += delta
        net.output.logits.sum().backward()
        slope = nnsight.save(getattr(delta.grad, "item")())  # noqa: B009
    return slope


def reads_backwards(net, layers, backend):
    with net.trace(IDS, backend=backend):
        _ = layers[2].output
        seen = nnsight.save(layers[0].output)
    return seen


def reads_behind_what_it_skipped(net, layers, backend):
    with net.trace(IDS, backend=backend):
        layers[1].skip(layers[0].output)
        seen = nnsight.save(layers[1].mlp.output)
    return seen


def calls_a_module_outside_of_a_trace(net, layers, backend):
    with net.session(backend=backend):
        with net.trace(IDS):
            state = net.model.norm.output
        seen = nnsight.save(net.lm_head(state))
    return seen


BAD = [calls_a_module_outside_of_a_trace, stops_before_another, stops_twice_in_one_request, fills_a_cache_of_its_own, reads_a_weight,
       sends_a_class_of_ours, puts_an_object_of_ours_into_a_block, asks_for_a_gradient, reads_backwards,
       reads_behind_what_it_skipped]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.__name__)
def test_a_trace_that_fails_there_fails_here(apart, bad):
    with pytest.raises(Exception):  # noqa: B017  # of many kinds; that there is one is the point
        bad(apart.nnsight, apart.layers, apart.backend.nnsight(apart.nnsight))


@pytest.mark.ndif
@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.__name__)
def test_it_does_fail_there(ndif_sandbox, tiny_tuned_folder, bad):
    far = open_model(str(tiny_tuned_folder), remote=open_backend("remote", ndif_sandbox.url, timeout=300))
    with pytest.raises(Exception):  # noqa: B017
        bad(far.nnsight, far.layers, far.backend.nnsight(far.nnsight))
