"""Passes waste as little as can be, and what does not fit into memory is done in halves, to the same result."""

from itertools import combinations
from types import SimpleNamespace

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from data import load_all
from data.errors import TooBigError, UserError
from interventions import extract
from interventions.backends.backend import LOCAL, Backend
from interventions.reading.budget import Budget, default_batch_tokens, fitting_tokens, plan_passes
from interventions.steering.arms import Arm
from interventions.steering.generate import generate
from interventions.steering.plans import Tools
from tests.made.tools import vectors_of

MODULE = "interventions.reading.budget"
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12"),
    MemoryError(),
]  # fmt: skip


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 90), st.integers(0, 40))
def test_passes_cost_the_least_of_all_splits(lengths, most, pass_tokens):
    plan = plan_passes(lengths, most, pass_tokens)
    assert sorted(row for part in plan for row in part) == list(range(len(lengths)))

    def cost(parts):
        return sum(len(part) * max(part) + pass_tokens for part in parts)

    ordered = sorted(lengths, reverse=True)
    fitting = []
    for many in range(len(ordered)):
        for cuts in combinations(range(1, len(ordered)), many):
            parts = [ordered[a:b] for a, b in zip((0, *cuts), (*cuts, len(ordered)), strict=True)]
            if all(len(part) == 1 or len(part) * max(part) <= most for part in parts):
                fitting.append(cost(parts))
    mine = [[lengths[row] for row in part] for part in plan]
    assert all(len(part) == 1 or len(part) * max(part) <= most for part in mine)
    assert cost(mine) == min(fitting)


class Small:
    """A model whose first block holds so many tokens, and then says that memory ran out."""

    def __init__(self, model, tokens, error):
        self.seen, self._tokens, self._error = [], tokens, error
        self._handle = model.module.get_submodule("model.layers")[0].register_forward_pre_hook(self._hook)

    def _hook(self, _module, inputs):
        self.seen.append(inputs[0][..., 0].numel())
        if self.seen[-1] > self._tokens:
            raise self._error

    def remove(self):
        self._handle.remove()


@pytest.fixture
def small(tiny):
    made = []

    def make(tokens, error=ERRORS[0]):
        made.append(Small(tiny, tokens, error))
        return made[-1]

    yield make
    for one in made:
        one.remove()


@pytest.fixture
def prompts(prompts_file):
    return load_all([str(prompts_file)])


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error)[:12])
def test_extraction_goes_on_with_half_as_much_and_keeps_its_plan(tiny, prompts, tmp_path, small, error):
    whole = load_file(extract(tiny, prompts, tmp_path / "whole"))["activations"]
    room = small(60, error)
    got = load_file(extract(tiny, prompts, tmp_path / "halves", batch_tokens=400))["activations"]
    assert ((got - whole).norm(dim=-1) <= 1e-5 * whole.norm(dim=-1)).all()
    failures = [at for at, tokens in enumerate(room.seen) if tokens > 60]
    assert 1 <= len(failures) <= 3  # halved a few times, and then never again
    assert not list(tmp_path.glob("*/.*.journal"))


def test_generation_goes_on_with_half_as_much(tiny, prompts, tmp_path, small):
    arms = [Arm("baseline", "baseline", 1), Arm("fixed", "fixed", 1, "weapons", 3.0, unit="unit")]
    tools = Tools(vectors_of(tiny))
    whole = generate(tiny, prompts, tools, tmp_path / "a.parquet", arms=arms, max_new_tokens=5)
    room = small(70)
    got = generate(tiny, prompts, tools, tmp_path / "b.parquet", arms=arms, max_new_tokens=5)
    assert sum(tokens > 70 for tokens in room.seen) >= 1
    assert got.drop("refusal_probability").equals(whole.drop("refusal_probability"))


def test_too_little_memory_for_one_prompt_is_said(tiny, prompts, tmp_path, small):
    small(2)
    with pytest.raises(UserError, match="not enough memory for a single prompt"):
        extract(tiny, prompts, tmp_path, batch_tokens=100)


def test_other_errors_are_not_tried_again():
    calls = []

    def work(tokens):
        calls.append(tokens)
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        Budget(64).spend(work, 1)
    assert calls == [64]


@pytest.mark.parametrize("far", [False, True])
def test_what_a_server_could_not_do_is_not_remembered(far):
    """So that a restart, which knows a batch's jobs by their number, finds the same ones."""

    def work(tokens):
        if tokens > 20:
            raise TooBigError("too much")
        return tokens

    budget = Budget(64)
    assert budget.spend(work, 1, far) == 16
    assert budget.tokens == (64 if far else 16)


@given(st.integers(1 << 20, 1 << 40), st.sampled_from([2, 4]))
def test_a_gpus_batches_grow_with_its_memory(free, size):
    config = SimpleNamespace(
        num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, hidden_size=4096, intermediate_size=14336
    )
    tokens = fitting_tokens(config, free, size)
    assert tokens & (tokens - 1) == 0 and 2048 <= tokens <= 65536
    cached = 2 * 32 * 8 * 128 * size  # keys and values of one token in Llama-3 8B
    assert tokens == 2048 or tokens * cached * 8 < free / 2
    assert fitting_tokens(config, 2 * free, size) >= tokens


def test_free_memory_is_asked_for_on_a_gpu_alone(tiny, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: asked.append(device) or (60 << 30, 80 << 30))
    assert default_batch_tokens(tiny) == 2048 and not asked
    gpu = SimpleNamespace(device=torch.device("cuda"), backend=LOCAL, module=tiny.module)
    assert default_batch_tokens(gpu) == 65536 and asked  # type: ignore[arg-type]
    far = SimpleNamespace(device=torch.device("cuda"), backend=Backend("remote", client=object()))  # type: ignore[arg-type]
    assert default_batch_tokens(far) == 2048  # type: ignore[arg-type]


def test_a_plan_is_stored_before_the_first_pass_and_stays(tiny, prompts, tmp_path, small):
    """Killed after memory ran out, and started again with more of it: finished batches stand."""
    import json

    path = tmp_path / ".prompts.journal"
    room = small(60)
    stop = iter(range(9))

    def dying(module, inputs):
        if next(stop, None) is None:
            raise KeyboardInterrupt

    handle = tiny.module.get_submodule("model.layers")[1].register_forward_pre_hook(dying)
    with pytest.raises(KeyboardInterrupt):
        extract(tiny, prompts, tmp_path, batch_tokens=100)
    handle.remove()
    room.remove()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    done = [number for line in lines[1:] for number in line["done"]]
    assert done and len(done) < len(lines[0]["plan"])
    got = load_file(extract(tiny, prompts, tmp_path, batch_tokens=100))["activations"]
    whole = load_file(extract(tiny, prompts, tmp_path / "whole"))["activations"]
    assert ((got - whole).norm(dim=-1) <= 1e-5 * whole.norm(dim=-1)).all()
    assert pl.read_parquet(tmp_path / "prompts.parquet").height == prompts.height
