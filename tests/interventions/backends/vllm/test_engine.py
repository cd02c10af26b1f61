"""vLLM's engine says what transformers' model says: every position, every kind of arm, every scope."""

import polars as pl
import pytest

from data import load_all
from interventions import generate
from interventions.reading.residual import Source
from interventions.steering.arms import Arm
from interventions.steering.generate import answered
from interventions.steering.plans import Tools
from interventions.steering.sweep import grid, sweep
from interventions.steering.trace import trace
from tests.made.tools import OWN_KINDS, arms_of, each, lowrank_of, methods_of, probe_of, vectors_of

pytestmark = pytest.mark.vllm
STEPS = 10
WORDS = [
    "baseline", "fixed:category=weapons", "fixed:scope=prompt", "fixed:scope=all,strength=3", "fixed:scope=prompt-last,layer=1", "routed",
    "gated:benign=-6,harmful=4", "gated:scope=all,benign=2,harmful=-2", "gated:slope=2,benign=-3", "gated:bias=8,benign=-3,harmful-bias=-2",
    "ablate:layers=all,scope=all", "ablate", "logit-bias:strength=-4", "logit-bias:route=gated,strength=-3", "random:seed=3,route=gated",
    "wrong-category", "prompt-only", "oracle", "fixed:operation=clamp,strength=2", "fixed:layers=1-3,strength=1", "lowrank", *OWN_KINDS,
]  # fmt: skip


@pytest.mark.parametrize("positions", [("last",), ("mean",), ("last", "mean", "instruction")])
def test_it_reads_what_plain_traces_read(in_vllm, tiny_tuned, prompts_file, positions):
    texts = load_all([str(prompts_file)])["prompt"].to_list()
    rows, layers = [list(range(len(texts)))], range(tiny_tuned.n_layers)
    own, theirs = (
        Source.of(model, texts, (), *positions).read(model, rows, layers, 512)[0] for model in (in_vllm, tiny_tuned)
    )
    assert own.shape == theirs.shape
    assert ((own - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max() <= 1e-5


def test_suffixes_stand_behind_their_prompts(in_vllm, tiny_tuned):
    texts, found = ["how do i kill a python process", "tell me"], []
    for model in (in_vllm, tiny_tuned):
        source = Source.of(model, texts, ["tell me", "a poem please"], "suffix")
        found.append(source.read(model, [list(range(len(source.encoded)))], range(model.n_layers), 512)[0])
    own, theirs = found
    assert own.shape == theirs.shape
    assert ((own - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max() <= 1e-5


def test_every_arm_answers_as_it_does_elsewhere(in_vllm, tiny_tuned, prompts_file, tmp_path):
    tools = Tools(vectors_of(tiny_tuned), probe_of(tiny_tuned), lowrank_of(tiny_tuned), {}, methods_of(tiny_tuned))
    prompts, arms = load_all([str(prompts_file)]).head(12), arms_of(WORDS)
    own, theirs = (generate(model, prompts, tools, tmp_path / f"{at}.parquet", arms=arms, max_new_tokens=STEPS)
                   for at, model in enumerate((in_vllm, tiny_tuned)))  # fmt: skip
    near = {"gate": 1e-5, "refusal_probability": 1e-4, "strength": 1e-5}
    for name in own.columns:
        if name in near:
            assert own[name].is_null().equals(theirs[name].is_null())
            assert own[name].drop_nulls().to_list() == pytest.approx(
                theirs[name].drop_nulls().to_list(), abs=near[name]
            ), name
        else:
            assert own[name].to_list() == theirs[name].to_list(), name


def test_first_distributions_are_those_of_plain_traces(in_vllm, tiny_tuned, prompts_file, tmp_path):
    tools, arms = (
        Tools(vectors_of(tiny_tuned), probe_of(tiny_tuned)),
        arms_of(["baseline", "routed", "gated:benign=-6,harmful=4"]),
    )
    prompts = load_all([str(prompts_file)]).head(6)
    own, theirs = (trace(model, prompts, tools, tmp_path / str(at), arms=arms, max_new_tokens=4).table
                   for at, model in enumerate((in_vllm, tiny_tuned)))  # fmt: skip
    assert own["kl"].to_list() == pytest.approx(theirs["kl"].to_list(), abs=1e-5)
    shadows = [table["projections"].explode().struct.field("value") for table in (own, theirs)]
    assert shadows[0].to_list() == pytest.approx(shadows[1].to_list(), abs=1e-4)


def test_what_is_steered_leaves_nothing_behind(in_vllm, tiny_tuned, tmp_path):
    """The same prompt unsteered, steered at all of its positions, and unsteered again; and one that goes on from it."""
    tools = Tools(vectors_of(tiny_tuned))
    text = "tell me a poem please " * 20
    prompts = pl.DataFrame({"dataset": ["x"] * 2, "id": ["a", "b"], "prompt": [text, text + "now"], "category": [None] * 2, "label": [None] * 2, "split": ["test"] * 2},
                           schema_overrides={"category": pl.String, "label": pl.String})  # fmt: skip
    once = [generate(in_vllm, prompts, tools, tmp_path / f"{at}.parquet", arms=arms_of([word]), max_new_tokens=STEPS)["response"].to_list()
            for at, word in enumerate(["baseline", "fixed:scope=all,strength=8", "baseline"])]  # fmt: skip
    assert once[0] == once[2] != once[1]


def test_blocks_are_cleared_and_requests_forgotten(in_vllm, tiny_tuned, prompts_file, tmp_path):
    generate(
        in_vllm,
        load_all([str(prompts_file)]).head(4),
        Tools(vectors_of(tiny_tuned)),
        tmp_path / "g.parquet",
        arms=arms_of(["fixed"]),
        max_new_tokens=3,
    )
    network = in_vllm.backend.engine.transport.network
    assert network._installed_edits == []
    assert network.vllm_entrypoint.llm_engine.collective_rpc("nnsight_request_count") == [0]


class Killed(BaseException):
    """As a signal would."""


def test_a_killed_run_goes_on(in_vllm, tiny_tuned, prompts_file, tmp_path, monkeypatch):
    tools, arms, prompts = (
        Tools(vectors_of(tiny_tuned)),
        arms_of(["baseline", "fixed"]),
        load_all([str(prompts_file)]).head(8),
    )
    transport, asked, most = in_vllm.backend.engine.transport, [], [99]
    plain = transport.ask

    def ask(requests, tokens, stops):
        if len(asked) == most[0]:
            raise Killed
        asked.append(len(requests))
        return plain(requests, tokens, stops)

    def run(name):
        del asked[:]
        return answered(
            in_vllm, prompts, tools, tmp_path / name, arms=arms, max_new_tokens=STEPS, batch_tokens=16
        ).table

    monkeypatch.setattr(transport, "ask", ask)
    whole = run("whole.parquet")
    every = len(asked)
    most[0] = every // 2
    with pytest.raises(Killed):
        run("cut.parquet")
    most[0] = 99
    assert run("cut.parquet").equals(whole)
    assert len(asked) == every - every // 2 > 0  # what was done before was not done again


def test_a_sweep_chooses_the_same(in_vllm, tiny_tuned, prompts_file, tmp_path):
    tools, prompts = Tools(vectors_of(tiny_tuned)), load_all([str(prompts_file)]).head(16)
    arms = grid(["fixed", "routed"], Arm("fixed", "fixed", 2, "weapons", -0.3), [1, 2], [-0.5, 0.4, 2.0], None)

    def verdict(text):
        return "broken" if not text else "refuse" if len(text) % 3 == 0 else "comply"

    own, theirs = (sweep(model, prompts, tools, tmp_path / f"{at}.parquet", arms=arms, verdicts=each(verdict), max_new_tokens=6)
                   for at, model in enumerate((in_vllm, tiny_tuned)))  # fmt: skip
    for name, kind in own.schema.items():
        if kind.is_float():
            assert own[name].to_list() == pytest.approx(theirs[name].to_list(), abs=1e-5, nan_ok=True), name
        else:
            assert own[name].to_list() == theirs[name].to_list(), name
