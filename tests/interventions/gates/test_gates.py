"""Gates beside the probe: their reads against plain hooks, their scores against their definitions, their files and arms."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logit

from data import UserError, load_all
from data.contract import GATES, JOINS, gate_members
from data.store.tables import GATE_QUALITY
from interventions.gates import words
from interventions.gates.carry_over import fit_words
from interventions.gates.features import Features, fitted
from interventions.gates.gate import FittedGate
from interventions.methods.vectors import SteeringVectors
from interventions.model.control_tokens import control_tokens
from interventions.model.prompt_format import encode
from interventions.steering.arms import Arm, parse_arms
from interventions.steering.generate import generate
from interventions.steering.plans import Tools, plan_arm
from interventions.traced.gating import Network
from tests.made.tools import probe_of
from tests.oracles import hooked, last_logits


def vectors_of(model) -> SteeringVectors:
    draw = torch.Generator().manual_seed(3)
    tensors = {name: torch.randn(model.n_layers, model.d_model, generator=draw) for name in ("weapons", "feelings")}
    layers = list(range(model.n_layers))
    metadata = {"model": model.name, "revision": model.revision, "site": "resid_post", "layers": str(layers),
                "counts": '{"weapons": 3, "feelings": 3}', "residual_norms": str([1.0] * model.n_layers)}  # fmt: skip
    return SteeringVectors(tensors, metadata)


def gate_of(model, reads, seed=5) -> FittedGate:
    draw = torch.Generator().manual_seed(seed)
    width = len(reads) * model.d_model
    parts = torch.randn(width, generator=draw) / 30, torch.randn(width, generator=draw) / 5
    metadata = {"kind": "ridge", "model": model.name, "revision": model.revision, "site": "resid_post",
                "reads": str([list(read) for read in reads]).replace("'", '"')}  # fmt: skip
    return FittedGate(*parts, torch.zeros(1), torch.tensor([0.5]), metadata)


def by_hooks(model, text: str, reads) -> np.ndarray:
    """What a gate reads of one prompt, by plain hooks and offsets of the rendered text."""
    rendered = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    ids = model.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    own = slice(2, len(ids) - 1)  # <bos> <user> … <bot>
    take = {"last": lambda h: h[-1], "mean": lambda h: h[own].mean(0), "instruction": lambda h: h[len(ids) - 2]}
    return np.concatenate([take[position](hooked(model, ids, [layer])[0]).numpy() for layer, position in reads])


READS = [(1, "last"), (3, "last"), (0, "mean"), (2, "mean"), (3, "instruction")]


@pytest.mark.parametrize("reads", [READS, READS[:1], [(3, "mean")], [(0, "instruction"), (1, "last")]])
def test_a_gate_reads_what_plain_hooks_read_and_steers_by_it(tiny_tuned, prompts_file, tmp_path, reads):
    gate, prompts = gate_of(tiny_tuned, reads), load_all([str(prompts_file)])
    tools = Tools(vectors_of(tiny_tuned), gates={"ridge": gate})
    arms = parse_arms(["gated:gate=ridge,strength=-3,harmful=2", "baseline"], Arm("x", "fixed", 2, unit="unit"))
    table = generate(tiny_tuned, prompts, tools, tmp_path / "g.parquet", arms=arms, max_new_tokens=3).filter(
        kind="gated"
    )
    sides = set()
    for row in table.to_dicts():
        x = by_hooks(tiny_tuned, row["prompt"], reads)
        logit = (x - gate.mean.numpy()) @ gate.weight.numpy()
        assert row["gate"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-4)
        assert row["strength"] == (2 if row["gate"] >= 0.5 else -3)
        sides.add(row["strength"])
    assert sides == {2, -3}


def every_gate(model, prompts) -> dict[str, FittedGate]:
    """A gate of every kind and of every way to join them, thresholds in the middle of their scores."""
    draw, frame = np.random.default_rng(4), prompts.filter(pl.col("label").is_not_null())
    width = model.d_model
    origin = {"model": model.name, "revision": model.revision, "site": "resid_post"}
    some = np.arange(frame.height)
    features = Features(frame["prompt"].to_list())
    gates = {
        "ridge": gate_of(model, READS),
        "words": fit_words(features, some, (frame["label"] == "harmful").to_numpy(), []),
    }
    wide = gate_of(model, READS)
    sizes = {"weight": (7, len(wide.weight)), "inner": (7,), "outer": (3, 7), "classes": (3,)}
    parts = {name: torch.from_numpy(draw.normal(size=size)).float() / 5 for name, size in sizes.items()}
    weight = parts.pop("weight")
    gates["network"] = replace(
        wide, weight=weight, network=Network(**parts), metadata=wide.metadata | {"form": "network"}
    )
    names = list(control_tokens(model.tokenizer))
    gates["control"] = fitted(draw.normal(size=len(names)), np.full(len(names), -3.0), 0.1, tokens=json.dumps(names))
    reads = [[layer, "instruction"] for layer in range(model.n_layers)]
    gates["harmfulness"] = fitted(
        draw.normal(size=width * len(reads)), np.zeros(width * len(reads)), 0.2, form="cosine", reads=json.dumps(reads)
    )
    gates["cast"] = fitted(
        draw.normal(size=width), np.zeros(width), 0.1, form="cast", gain="-3.5", reads='[[2, "mean"]]'
    )
    for name, members in (("ridge+control", ("ridge", "control")), ("words-and-cast", ("words", "cast")), ("network+control", ("network", "control")),
                          ("harmfulness-or-cast", ("harmfulness", "cast"))):  # fmt: skip
        how = gate_members(name)[0]
        inner = {one: gates[one].calibrated(0.7, 0.1) for one in members}
        gates[name] = FittedGate(
            torch.zeros(0), torch.zeros(0), torch.zeros(1), torch.tensor([0.5]), {"joined": how}, inner
        )
    gates = {name: replace(gate, metadata=origin | {"kind": name} | gate.metadata,
                           members={key: replace(one, metadata=origin | one.metadata) for key, one in gate.members.items()})
             for name, gate in gates.items()}  # fmt: skip
    scores = {name: by_definition(model, gate, prompts["prompt"].to_list()) for name, gate in gates.items()}
    return {
        name: replace(gate, threshold=torch.tensor([np.median(scores[name])], dtype=torch.float32))
        for name, gate in gates.items()
    }


def by_definition(model, gate, texts) -> np.ndarray:
    """A gate's scores by plain hooks and numpy, one prompt at a time."""
    if gate.members:
        parts = np.array([by_definition(model, one, texts) for one in gate.members.values()])
        return {"mean": parts.mean, "and": parts.min, "or": parts.max}[gate.metadata["joined"]](0)
    weight, mean = gate.weight.double().numpy(), gate.mean.double().numpy()
    found = []
    for text in texts:
        if gate.vocabulary:
            x = words.counted([text], gate.vocabulary)[0].astype(float)
        elif gate.reads:
            x = by_hooks(model, text, gate.reads).astype(float)
        else:
            rendered = model.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
            ids = model.tokenizer(rendered, add_special_tokens=False)["input_ids"]
            x = log_softmax(last_logits(model, ids).numpy())[
                [control_tokens(model.tokenizer)[name] for name in json.loads(gate.metadata["tokens"])]
            ]
        if gate.form == "cosine":
            x = np.concatenate([piece / np.linalg.norm(piece) for piece in np.split(x, len(gate.reads))])
        value = weight @ (x - mean)
        if gate.network is not None:
            inner, outer, classes = (part.double().numpy() for part in gate.network)
            odds = np.exp(outer @ np.maximum(value + inner, 0) + classes)
            value = np.log(odds[1:].sum() / odds[0])
        if gate.form == "cast":
            projected = np.tanh(np.outer(weight, weight) @ x / (weight @ weight))
            value = x @ projected / np.linalg.norm(x) / np.linalg.norm(projected)
        found.append(1 / (1 + np.exp(-(float(gate.metadata.get("gain", 1)) * value + float(gate.bias)))))
    return np.array(found)


def arms_by(gates, more="") -> list[Arm]:
    return parse_arms(
        [f"gated:gate={name},strength=-3,harmful=2,bias=1{more}" for name in gates], Arm("x", "fixed", 2, unit="unit")
    )


@pytest.fixture(scope="module")
def made(tiny_tuned, prompts_file):
    prompts = load_all([str(prompts_file)])
    gates = every_gate(tiny_tuned, prompts)
    return prompts, gates, Tools(vectors_of(tiny_tuned), probe_of(tiny_tuned), gates=gates)


SAME = ["arm", "id", "response", "control_token", "vector", "strength"]


def test_every_gate_is_read_in_the_one_prefill_as_plain_hooks_read_it(tiny_tuned, made, tmp_path):
    prompts, gates, tools = made
    table = generate(tiny_tuned, prompts, tools, tmp_path / "g.parquet", arms=arms_by(gates), max_new_tokens=1)
    for name, gate in gates.items():
        mine = table.filter(pl.col("arm").str.contains(f"gate={name},", literal=True))
        wanted = by_definition(tiny_tuned, gate, prompts["prompt"].to_list())
        assert np.allclose(mine["gate"], wanted, atol=2e-4), name
        clear = np.abs(wanted - float(gate.threshold)) > 1e-3
        assert (mine["strength"].to_numpy()[clear] == np.where(wanted > float(gate.threshold), 2, -3)[clear]).all()
        assert mine["strength"].n_unique() == 2, name


def test_many_rows_at_once_are_gated_as_each_alone_and_a_shipped_trace_as_one_here(
    tiny_tuned, tiny_tuned_folder, made, tmp_path
):
    from interventions import open_model

    prompts, gates, tools = made
    arms = [*arms_by(gates), *arms_by(["probe"]), *arms_by(["ridge", "control"], ",slope=2")]
    together = generate(tiny_tuned, prompts, tools, tmp_path / "a.parquet", arms=arms, max_new_tokens=3)
    alone = generate(tiny_tuned, prompts, tools, tmp_path / "b.parquet", arms=arms, max_new_tokens=3, batch_tokens=1)
    simulated = open_model(str(tiny_tuned_folder), remote="local")
    shipped = generate(simulated, prompts, tools, tmp_path / "c.parquet", arms=arms, max_new_tokens=3)
    assert together.select(SAME).equals(shipped.select(SAME)) and together["gate"].equals(shipped["gate"])
    assert together.select(SAME[:-1]).equals(alone.select(SAME[:-1]))
    assert (
        (together["strength"] - alone["strength"]).abs() < 1e-2
    ).all()  # a slope passes on what the gate's score differs by
    hard = ~pl.col("arm").str.contains("slope")
    assert together.filter(hard)["strength"].equals(alone.filter(hard)["strength"])
    assert ((together["gate"] - alone["gate"]).abs() < 2e-4).all()


def test_no_gate_but_perfect_reads_a_label(tiny_tuned, made, tmp_path):
    prompts, gates, tools = made
    swapped = prompts.with_columns(label=prompts["label"].reverse(), category=prompts["category"].reverse())
    arms = [*arms_by([*gates, "perfect"]), *arms_by(["ridge"], ",slope=3")]
    one, two = (generate(tiny_tuned, rows, tools, tmp_path / f"{at}.parquet", arms=arms, max_new_tokens=2)
                for at, rows in enumerate((prompts, swapped)))  # fmt: skip
    blind = ~pl.col("arm").str.contains("perfect")
    assert one.filter(blind).drop("label", "category").equals(two.filter(blind).drop("label", "category"))
    assert not one.filter(~blind)["strength"].equals(two.filter(~blind)["strength"])
    assert [arm.gate for arm in arms if arm.reads_labels] == ["perfect"]


def test_a_slope_makes_the_strength_go_smoothly_with_the_log_odds(tiny_tuned, made, tmp_path):
    prompts, gates, tools = made
    arms = arms_by(["control"], ",slope=1.5")
    table = generate(tiny_tuned, prompts, tools, tmp_path / "g.parquet", arms=arms, max_new_tokens=1)
    beyond = logit(table["gate"].to_numpy()) - logit(float(gates["control"].threshold))
    assert np.allclose(table["strength"], -3 + 5 / (1 + np.exp(-1.5 * beyond)), atol=1e-3)
    assert table["strength"].n_unique() > 4
    for odd in ("slope=0", "slope=-1"):
        with pytest.raises(UserError, match="slope is above 0"):
            parse_arms([f"gated:{odd}"], Arm("x", "fixed", 2))


def test_between_two_thresholds_nothing_is_done(tiny_tuned, made, tmp_path):
    prompts, _, tools = made
    low, high = (float(np.quantile(gate_column(tiny_tuned, made, tmp_path), share)) for share in (0.3, 0.7))
    arms = [
        f"gated:gate=control,strength=-3,harmful=2,bias=4,harmful-bias=-1,threshold={low!r},harmful-threshold={high!r}"
    ]
    three = generate(tiny_tuned, prompts, tools, tmp_path / "g.parquet", arms=parse_arms(["baseline", *arms], Arm("x", "fixed", 2)),
                     max_new_tokens=2)  # fmt: skip
    gated, plain = three.filter(pl.col("kind") == "gated"), three.filter(pl.col("kind") == "baseline")
    score = gated["gate"].to_numpy()
    expected = np.where(score < np.float32(low), -3, np.where(score < np.float32(high), 0, 2))
    assert set(expected) == {-3, 0, 2} and (gated["strength"].to_numpy() == expected).all()
    idle = expected == 0
    assert (gated["response"].to_numpy() == plain["response"].to_numpy())[idle].all()
    assert gated["refusal_probability"].to_numpy()[idle] == pytest.approx(
        plain["refusal_probability"].to_numpy()[idle], rel=1e-5
    )
    swapped = parse_arms([f"gated:gate=control,threshold={high!r},harmful-threshold={low!r}"], Arm("x", "fixed", 2))
    with pytest.raises(UserError, match="no prompt can be both"):
        generate(tiny_tuned, prompts, tools, tmp_path / "g.parquet", arms=swapped, max_new_tokens=2)
    with pytest.raises(UserError, match="slope"):
        parse_arms(["gated:slope=2,harmful-threshold=0.9"], Arm("x", "fixed", 2))


def gate_column(model, made, folder):
    """What the gate control says of each prompt."""
    prompts, _, tools = made
    return generate(model, prompts, tools, folder / "c.parquet", arms=arms_by(["control"]), max_new_tokens=1)[
        "gate"
    ].to_numpy()


def test_every_gate_comes_back_from_its_file(made, tmp_path):
    for name, gate in made[1].items():
        gate.save(tmp_path / f"{name}.safetensors")
        again = FittedGate.load(tmp_path / f"{name}.safetensors")
        assert all(torch.equal(one, other) for one, other in zip(gate.parts, again.parts, strict=True)), name
        assert again.reads == gate.reads and again.form == gate.form and list(again.members) == list(gate.members)


@settings(max_examples=60, deadline=None)
@given(name=st.text(st.sampled_from("ridgecontl+-and"), max_size=16))
def test_names_of_gates_are_known_or_refused(name):
    try:
        how, members = gate_members(name)
    except ValueError:
        return
    assert set(members) <= set(GATES) and (how in JOINS.values() if len(members) > 1 else members == [name])


@pytest.mark.parametrize(("name", "how", "members"), [
    ("ridge+control", "mean", ["ridge", "control"]), ("ridge-and-words", "and", ["ridge", "words"]),
    ("cast-or-control-or-ridge", "or", ["cast", "control", "ridge"]), ("probe", "", ["probe"]),
])  # fmt: skip
def test_gates_are_joined_by_their_names(name, how, members):
    assert gate_members(name) == (how, members)


@pytest.mark.parametrize(
    "name", ["ridge+ridge", "ridge+perfect", "probe+words", "ridge+", "ridge+words-or-cast", "oracle", ""]
)
def test_what_is_no_gate_is_refused(name):
    with pytest.raises(ValueError, match="gate is one of"):
        gate_members(name)


@pytest.mark.ndif
def test_a_server_gates_as_this_machine_does(ndif, tiny_tuned, tiny_tuned_folder, prompts_file, tmp_path):
    from interventions import open_model
    from interventions.backends.backend import open_backend

    prompts = load_all([str(prompts_file)])
    arms = parse_arms(
        ["gated:gate=ridge,strength=-3,harmful=2,bias=4", "gated:gate=perfect,strength=-2"],
        Arm("x", "fixed", 2, unit="unit"),
    )
    there = open_model(str(tiny_tuned_folder), remote=open_backend("remote", ndif.url, timeout=300))
    tools = Tools(vectors_of(tiny_tuned), gates={"ridge": gate_of(tiny_tuned, READS)})
    one, two = (generate(model, prompts, tools, tmp_path / f"{at}.parquet", arms=arms, max_new_tokens=4)
                for at, model in enumerate((tiny_tuned, there)))  # fmt: skip
    assert (
        one.drop("backend").equals(two.drop("backend"))
        and one.group_by("arm").agg(pl.col("strength").n_unique())["strength"].min() == 2
    )


def test_labels_are_shipped_for_an_arm_that_reads_them_alone(tiny_tuned, prompts_file):
    prompts = load_all([str(prompts_file)])
    tools = Tools(vectors_of(tiny_tuned), gates={"ridge": gate_of(tiny_tuned, READS)})
    labels = [float(label == "harmful") for label in prompts["label"]]
    for word, leaves in (("gated:gate=ridge", False), ("gated:gate=perfect", True), ("fixed", False)):
        plans = [plan_arm(tiny_tuned, arm, tools, [{"category": None, "label": None}] * prompts.height)
                 for arm in parse_arms([word], Arm("x", "fixed", 2))]  # fmt: skip
        shipped = tools.shipped(tiny_tuned, plans, prompts.to_dicts())
        known = [gate.given.tolist() for gate in shipped if gate.given is not None]
        assert (labels in known) == leaves


def test_an_arm_whose_gate_is_missing_says_how_to_get_it(tiny_tuned, prompts_file, tmp_path):
    arms = parse_arms(["gated:gate=words"], Arm("x", "fixed", 2, unit="unit"))
    with pytest.raises(UserError, match="run `probe --gate words` first"):
        generate(
            tiny_tuned, load_all([str(prompts_file)]), Tools(vectors_of(tiny_tuned)), tmp_path / "g.parquet", arms=arms
        )
    with pytest.raises(UserError, match="gate is one of"):
        parse_arms(["gated:gate=oracle"], Arm("x", "fixed", 2))


def test_a_gate_comes_back_from_its_file_and_others_are_refused(tiny_tuned, tmp_path):
    gate = gate_of(tiny_tuned, READS)
    gate.save(tmp_path / "g.safetensors")
    again = FittedGate.load(tmp_path / "g.safetensors")
    assert again.reads == tuple(READS) and torch.equal(again.weight, gate.weight)
    for odd in ({"reads": "[[1"}, {"reads": "[]"}, {"reads": '[[1, "last"], [2, "last"], [3, "last"]]'}):
        replace(gate, metadata=gate.metadata | odd).save(tmp_path / "odd.safetensors")
        with pytest.raises(UserError, match="does not say what its weights are of"):
            FittedGate.load(tmp_path / "odd.safetensors")


def test_the_command_fits_a_gate_that_arms_go_by_and_leaves_its_prompts_out_of_the_rates(
    run, tiny_tuned_folder, prompts_file, tmp_path
):
    rows = pl.read_ndjson(prompts_file).with_columns(
        split=pl.Series([("train", "train", "validation", "test")[at // 4 % 4] for at in range(40)])
    )
    rows.write_ndjson(tmp_path / "mine.jsonl")
    group = ("--run", tmp_path / "r", "--model", tiny_tuned_folder, "--data", tmp_path / "mine.jsonl")
    names = ("network", "ridge", "words", "control", "harmfulness", "cast", "control+words")
    code, _, err = run(*group, *(word for name in names for word in ("probe", "--gate", name)))
    assert code == 0, err
    for name in names:
        quality = pl.read_parquet(tmp_path / "r" / "gates" / f"{name}_quality.parquet")
        assert quality.schema == pl.Schema(GATE_QUALITY) and quality["n_harmful"][0] + quality["n_benign"][0] == 32
    code, _, err = run(*group, "vectors", "generate", "--split", "validation", "--arm", "baseline", "--arm", "gated:gate=control+words",
                       "--layer", 2, "--max-new-tokens", 2, "evaluate", "--split", "validation")  # fmt: skip
    assert code == 0, err
    assert pl.read_parquet(tmp_path / "r" / "scores.parquet")["fitted"].all()  # validation rows chose the threshold
    code, _, err = run(*group, "probe", "--gate", "words", "--keep-refusal", 0.99)
    assert code == 1 and "299 of them, none lost, would be needed" in err
    code, _, err = run(*group, "probe", "--keep-refusal", 0.9)
    assert code == 1 and "--keep-refusal is for the other gates" in err
    code, _, err = run(*group, "probe", "--gate", "perfect")
    assert code == 2 and "there is nothing to fit" in err


def test_an_encoded_prompt_has_the_tokens_that_the_hooks_were_told(tiny_tuned):
    encoded = encode(tiny_tuned.tokenizer, ["how do i kill a process"])
    assert encoded.user == [(2, len(encoded.ids[0]) - 1)]
