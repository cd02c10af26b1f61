"""Steering: every row of a batch gets its own edit in every arm, as a plain hook on one row at a time would give it."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from scipy.special import rel_entr, softmax

from data import load_all
from data.contract import SCOPES
from interventions.backends.backend import Backend
from interventions.model.prompt_format import encode
from interventions.reading.batches import pad_batch, pad_id
from interventions.steering.answer import Asked, answer
from interventions.steering.arms import Arm, parse_arms
from interventions.steering.plans import Tools, plan_arm
from interventions.steering.texts import finished
from interventions.traced.gating import Gate
from tests.made.tools import NOTHING_KNOWN, vectors_of
from tests.oracles import are_best, close, cut, hooked, plain, stop_ids

STEPS = 8


def run(model, texts, arms, tools, **options):
    encoded = encode(model.tokenizer, texts)
    rows = [NOTHING_KNOWN] * len(texts)
    plans = [plan_arm(model, arm, tools, rows) for arm in arms]
    batch = pad_batch(encoded.ids, pad_id(model.tokenizer))
    wanted = {"max_new_tokens": STEPS, "stops": sorted(stop_ids(model))}
    asked = Asked(**wanted | {name: options.pop(name) for name in Asked._fields if name in options})
    return encoded, answer(model, batch, [plan.shipped for plan in plans], asked, **options)


@pytest.fixture(scope="module")
def texts(prompts_file):
    return load_all([str(prompts_file)])["prompt"].to_list()[:12]


@pytest.mark.parametrize("together", [1, 10_000])
def test_all_arms_of_a_batch_are_a_plain_hooks(tiny, texts, together):
    """Every scope, two layers, additions, ablation and clamping, in one call."""
    vectors = vectors_of(tiny)
    base = Arm("x", "fixed", 2, "weapons", 3.0, unit="unit")
    words = [f"fixed:scope={scope}" for scope in SCOPES] + [
        "baseline", "fixed:layer=1,strength=-4", "ablate", "ablate:category=mean,scope=all",
        "fixed:operation=clamp,strength=2,category=feelings",
    ]  # fmt: skip
    arms = parse_arms(words, base)
    encoded, found = run(tiny, texts, arms, Tools(vectors), together=together)
    for at, arm in enumerate(arms):
        vector = vectors.at(arm.layer, arm.category)
        unit = vector / vector.norm()
        edit = {
            "add": {"delta": arm.strength * unit},
            "ablate": {"unit": unit},
            "clamp": {"unit": unit, "delta": arm.strength * unit},
        }[arm.operation]
        edit = {} if arm.kind == "baseline" else edit
        for row, ids in enumerate(encoded.ids):
            wanted, _ = plain(tiny, ids, arm.layer, arm.scope, STEPS, **edit)
            assert cut(tiny, found.tokens[row, at].tolist()) == cut(tiny, wanted), (arm, row)


def test_what_arms_do_alike_to_a_row_is_computed_once(tiny, texts):
    """Three arms that change nothing, one that is written twice, and one of its own."""
    words = [
        "baseline", "fixed:strength=0", "fixed:scope=prompt-last,strength=0", "fixed:strength=3", "fixed:strength=3.0",
        "fixed:layer=1,strength=3",
    ]  # fmt: skip
    arms = parse_arms(words, Arm("x", "fixed", 2, "weapons", 3.0, unit="unit"))
    sizes = []
    block = tiny.module.get_submodule("model.layers")[3]
    handle = block.register_forward_hook(lambda _module, inputs, _output: sizes.append(inputs[0][..., 0].numel()))
    _, found = run(tiny, texts, arms, Tools(vectors_of(tiny)), max_new_tokens=3, stops=[])
    handle.remove()
    assert sizes[-3:] == [3 * len(texts)] * 3
    for first, others in ((0, (1, 2)), (3, (4,))):
        for other in others:
            assert torch.equal(found.tokens[:, first], found.tokens[:, other])
    assert not torch.equal(found.tokens[:, 3], found.tokens[:, 5])


@pytest.mark.parametrize("where", ["local", "simulate"])
def test_an_arm_that_overflows_leaves_the_others_as_they_are(tiny, texts, where):
    tiny = replace(tiny, backend=Backend(where))
    arms = parse_arms(["baseline", "fixed:strength=1e39", "fixed:layer=1"], Arm("x", "fixed", 2, "weapons", 3.0))
    others = [arms[0], arms[2]]
    figures = {"refusal_ids": [7, 9], "top_k": 3}
    _, alone = run(tiny, texts, others, Tools(vectors_of(tiny)), **figures)
    _, beside = run(tiny, texts, arms, Tools(vectors_of(tiny)), **figures)
    assert alone.refusal is not None and beside.refusal is not None
    assert beside.refusal[:, 1].isnan().all() and torch.allclose(beside.refusal[:, [0, 2]], alone.refusal, rtol=1e-4)
    for row in range(len(texts)):
        for at, place in enumerate((0, 2)):
            assert cut(tiny, beside.tokens[row, place].tolist()) == cut(tiny, alone.tokens[row, at].tolist())


def test_low_rank_maps_add_what_their_formula_says(tiny, texts):
    from interventions.methods.lowrank import LowRank

    torch.manual_seed(5)
    parts = {
        "U": torch.randn(tiny.d_model, 2),
        "V": torch.randn(tiny.d_model, 2) / 8,
        "mean": torch.randn(tiny.d_model),
    }
    for mode in ("fixed", "input"):
        metadata = {"layer": "2", "mode": mode, "model": tiny.name, "site": "resid_post"}
        low = LowRank(**parts, z=torch.tensor([1.5, -2.0]), metadata=metadata)
        arms = parse_arms(["baseline", "lowrank"], Arm("x", "fixed", 2))
        encoded, found = run(tiny, texts, arms, Tools(vectors_of(tiny), None, low))
        edit = {"delta": parts["U"] @ low.z} if mode == "fixed" else {"low": parts}
        for row, ids in enumerate(encoded.ids):
            wanted, _ = plain(tiny, ids, 2, "generated", STEPS, **edit)
            assert cut(tiny, found.tokens[row, 1].tolist()) == cut(tiny, wanted)


def test_first_position_figures(tiny, texts):
    """KL against scipy, best tokens and refusal probability against a plain forward pass."""
    vectors = vectors_of(tiny)
    arms = parse_arms(["baseline", "fixed"], Arm("x", "fixed", 1, "weapons", 4.0, unit="unit"))
    refusing = [7, 9]
    encoded, found = run(tiny, texts, arms, Tools(vectors), refusal_ids=refusing, top_k=3, max_new_tokens=0)
    vector = vectors.at(1, "weapons")
    assert found.kl is not None and found.top is not None and found.refusal is not None
    best = []
    for row, ids in enumerate(encoded.ids):
        _, before = plain(tiny, ids, 1, "generated", 1)
        _, after = plain(tiny, ids, 1, "generated", 1, delta=4 * vector / vector.norm())
        p, q = softmax(before.numpy()), softmax(after.numpy())
        assert np.isclose(found.kl[row, 1], rel_entr(p, q).sum(), rtol=1e-3, atol=1e-6)
        assert abs(float(found.kl[row, 0])) < 1e-6
        assert np.isclose(found.refusal[row, 1], q[refusing].sum(), rtol=1e-3)
        best.append((found.top[0][row, 2].tolist(), after))
        assert np.allclose(found.top[1][row, 0], np.sort(p)[::-1][:3], rtol=1e-3)
    are_best(best)


def test_the_unsteered_last_position_is_read_by_a_plain_hook(tiny, texts):
    encoded, found = run(
        tiny, texts, parse_arms(["baseline"], Arm("x", "fixed", 1)), Tools(vectors_of(tiny)), read_layers=[0, 3]
    )
    assert found.residual is not None
    for row, ids in enumerate(encoded.ids):
        assert close(found.residual[row], hooked(tiny, ids, (0, 3))[:, -1])


def test_text_ends_at_the_stop_token(tiny):
    stop, word = tiny.tokenizer.eos_token_id, tiny.tokenizer.convert_tokens_to_ids("poem")
    answer = finished(tiny, [word, word, stop, word], 4)
    assert answer["response"] == "poem poem" and answer["finish"] == "stop" and answer["new_tokens"] == 2
    assert finished(tiny, [word] * 4, 4)["finish"] == "length"


def test_embedded_model_steered_as_by_a_plain_hook(embedded):
    texts = load_all(["embedded/test"])["prompt"].to_list()[:8]
    vectors = vectors_of(embedded)
    arms = parse_arms(
        ["baseline", "fixed", "fixed:scope=all,strength=2"], Arm("x", "fixed", 17, "weapons", 40.0, unit="unit")
    )
    encoded, found = run(embedded, texts, arms, Tools(vectors))
    vector = vectors.at(17, "weapons")
    for at, arm in enumerate(arms):
        for row, ids in enumerate(encoded.ids):
            delta = None if arm.kind == "baseline" else arm.strength * vector / vector.norm()
            wanted, _ = plain(embedded, ids, 17, arm.scope, STEPS, delta=delta)
            assert cut(embedded, found.tokens[row, at].tolist()) == cut(embedded, wanted)


def test_a_gates_score_is_the_probes(tiny, texts):
    torch.manual_seed(9)
    gate = Gate(
        ((2, "last"),),
        torch.randn(tiny.d_model) / 50,
        torch.randn(tiny.d_model),
        torch.tensor([0.1]),
        torch.tensor([0.5]),
    )
    encoded, found = run(
        tiny,
        texts,
        parse_arms(["baseline"], Arm("x", "fixed", 1)),
        Tools(vectors_of(tiny)),
        gates=[gate],
        read_layers=[2],
    )
    assert found.gates is not None and found.residual is not None
    h = found.residual[:, 0].double().numpy()
    wanted = 1 / (1 + np.exp(-((h - gate.mean.numpy()) @ gate.weight.numpy() + 0.1)))
    assert np.allclose(found.gates[:, 0].numpy(), wanted, rtol=1e-4)
    assert pl.Series(wanted).n_unique() > 1 and len(encoded) == len(wanted)
