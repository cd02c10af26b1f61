"""Gates beside the probe: their fits against scikit-learn, their thresholds against counting, their reads against plain hooks."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import Ridge

from data import UserError, load_all
from data.store.tables import GATE_QUALITY
from interventions.gates import ridge, words
from interventions.gates.fit_gate import GateRows, fit_words, out_of_fold
from interventions.gates.gate import LinearGate
from interventions.gates.threshold import keep_refusal
from interventions.methods.vectors import SteeringVectors
from interventions.model.prompt_format import encode
from interventions.steering.arms import Arm, parse_arms
from interventions.steering.generate import generate
from interventions.steering.plans import Tools, plan_arm
from tests.oracles import hooked


def vectors_of(model) -> SteeringVectors:
    draw = torch.Generator().manual_seed(3)
    tensors = {name: torch.randn(model.n_layers, model.d_model, generator=draw) for name in ("weapons", "feelings")}
    layers = list(range(model.n_layers))
    metadata = {"model": model.name, "revision": model.revision, "site": "resid_post", "layers": str(layers),
                "counts": '{"weapons": 3, "feelings": 3}', "residual_norms": str([1.0] * model.n_layers)}  # fmt: skip
    return SteeringVectors(tensors, metadata)


def gate_of(model, reads, seed=5) -> LinearGate:
    draw = torch.Generator().manual_seed(seed)
    width = len(reads) * model.d_model
    parts = torch.randn(width, generator=draw) / 30, torch.randn(width, generator=draw) / 5
    metadata = {"kind": "ridge", "model": model.name, "revision": model.revision, "site": "resid_post",
                "reads": str([list(read) for read in reads]).replace("'", '"')}  # fmt: skip
    return LinearGate(*parts, torch.zeros(1), torch.tensor([0.5]), metadata)


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


def test_many_rows_at_once_are_gated_as_each_alone_and_a_shipped_trace_as_one_here(
    tiny_tuned, tiny_tuned_folder, prompts_file, tmp_path
):
    from interventions import open_model

    prompts = load_all([str(prompts_file)])
    arms = parse_arms(["gated:gate=ridge,strength=-3,harmful=2,bias=4", "gated:gate=words", "gated:strength=-2"],
                      Arm("x", "fixed", 2, unit="unit"))  # fmt: skip
    frame = prompts.filter(pl.col("label").is_not_null())
    rows = GateRows(frame, [str(at % 7) for at in range(frame.height)], None, np.zeros(frame.height, bool))
    from interventions.gates.probe import Probe

    probe = Probe(torch.randn(32, generator=torch.Generator().manual_seed(1)) / 9, torch.zeros(32), torch.zeros(1), torch.tensor([0.5]),
                  {"model": tiny_tuned.name, "layer": "2", "site": "resid_post", "position": "last"})  # fmt: skip
    tools = Tools(
        vectors_of(tiny_tuned),
        probe,
        gates={"ridge": gate_of(tiny_tuned, READS), "words": fit_words(tiny_tuned, rows).gate},
    )
    together = generate(tiny_tuned, prompts, tools, tmp_path / "a.parquet", arms=arms, max_new_tokens=4)
    alone = generate(tiny_tuned, prompts, tools, tmp_path / "b.parquet", arms=arms, max_new_tokens=4, batch_tokens=1)
    simulated = open_model(str(tiny_tuned_folder), remote="local")
    shipped = generate(simulated, prompts, tools, tmp_path / "c.parquet", arms=arms, max_new_tokens=4)
    same = ["arm", "id", "response", "control_token", "vector", "strength"]
    assert together.select(same).equals(alone.select(same)) and together.select(same).equals(shipped.select(same))
    assert ((together["gate"] - alone["gate"]).abs() < 1e-4).all() and together["gate"].equals(shipped["gate"])
    assert together.group_by("arm").agg(pl.col("strength").n_unique())["strength"].min() == 2


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


def test_only_perfect_reads_labels(tiny_tuned, prompts_file, tmp_path):
    prompts = load_all([str(prompts_file)])
    swapped = prompts.with_columns(label=prompts["label"].reverse(), category=prompts["category"].reverse())
    tools = Tools(vectors_of(tiny_tuned), gates={"ridge": gate_of(tiny_tuned, READS)})
    arms = parse_arms(
        ["gated:gate=ridge,strength=-3,harmful=2", "gated:gate=perfect,strength=-3,harmful=2"],
        Arm("x", "fixed", 2, unit="unit"),
    )
    one, two = (generate(tiny_tuned, rows, tools, tmp_path / f"{at}.parquet", arms=arms, max_new_tokens=3)
                for at, rows in enumerate((prompts, swapped)))  # fmt: skip
    blind, perfect = pl.col("arm").str.contains("ridge"), pl.col("arm").str.contains("perfect")
    assert one.filter(blind).drop("label", "category").equals(two.filter(blind).drop("label", "category"))
    for table in (one, two):
        rows = table.filter(perfect)
        assert (
            rows["strength"] == pl.select(pl.when(rows["label"] == "harmful").then(2.0).otherwise(-3.0)).to_series()
        ).all()
    assert all(arm.reads_labels == (arm.gate == "perfect") for arm in arms)


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


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), penalty=st.sampled_from([0.03, 0.3, 3.0]))
def test_ridge_is_scikit_learns_with_balanced_weights(seed, penalty):
    draw = np.random.default_rng(seed)
    x, harmful = draw.normal(size=(30, 50)) * draw.uniform(0.1, 9, 50), np.arange(30) < draw.integers(5, 25)
    weight, mean, bias = ridge.fit(x, harmful, penalty)
    share = np.where(harmful, 0.5 / harmful.sum(), 0.5 / (~harmful).sum())
    centre = (share[:, None] * x).sum(0)
    scale = np.sqrt((share[:, None] * (x - centre) ** 2).sum(0)) * np.sqrt(50)
    known = Ridge(alpha=penalty, fit_intercept=False, solver="cholesky").fit(
        (x - centre) / scale, np.where(harmful, 1, -1), share * 30
    )
    fresh = draw.normal(size=(8, 50))
    assert np.allclose(
        (fresh - mean) @ weight + bias, ridge.SHARPNESS * known.predict((fresh - centre) / scale), rtol=1e-6, atol=1e-8
    )


def test_words_are_those_that_scikit_learn_counts():
    texts = ["Kill the process!", "how do I KILL a process", "the end", "über das Ende, the END"]
    counts = CountVectorizer(binary=True, token_pattern=r"(?u)\w+", min_df=2).fit(texts)
    known = words.vocabulary(texts)
    assert known == sorted(counts.get_feature_names_out())
    assert np.array_equal(
        words.counted(texts, known), counts.transform(texts).toarray()[:, np.argsort(counts.get_feature_names_out())]
    )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(5, 400), share=st.sampled_from([0.8, 0.9, 0.95]))
def test_refusal_is_kept_as_promised_and_no_higher_threshold_would_keep_it(seed, n, share):
    draw = np.random.default_rng(seed)
    harmful, declined = draw.random(n) < 0.5, draw.random(n) < 0.8
    score = np.round(draw.beta(2 + 3 * harmful, 5 - 3 * harmful), draw.integers(1, 6)).astype(np.float32)
    found = keep_refusal(score, harmful, declined, share)
    stake = score[harmful & declined]

    def bound(threshold: float) -> float:
        kept = int((stake >= threshold).sum())
        return 0.0 if kept == 0 else float(beta.ppf(0.05, kept, len(stake) - kept + 1))  # Clopper and Pearson

    if found.threshold is None:
        assert not len(stake) or bound(float(stake.min())) < share
        assert found.needed == int(np.ceil(np.log(0.05) / np.log(share)))
        return
    assert bound(found.threshold) >= share and found.low == pytest.approx(bound(found.threshold), abs=1e-6)
    assert found.released == pytest.approx(
        float((score[~harmful] < found.threshold).mean()) if (~harmful).any() else float("nan"), nan_ok=True
    )
    higher = stake[stake >= found.threshold]
    assert bound(float(higher.min()) + 1e-6) < share  # one refusal more would be lost


def test_scores_out_of_fold_come_from_other_themes_alone():
    draw = np.random.default_rng(2)
    x, harmful, themes = draw.normal(size=(60, 4)), np.tile([True, False], 30), [f"t{at // 6}" for at in range(60)]
    seen = []

    def fit(some, flags):
        seen.append({tuple(row) for row in some})
        return ridge.fit(some, flags)

    score = out_of_fold(x, harmful, themes, fit)
    assert len(seen) == 5 and np.isfinite(score).all()
    for rows in seen:
        inside = {themes[at] for at in range(60) if tuple(x[at]) in rows}
        outside = {themes[at] for at in range(60) if tuple(x[at]) not in rows}
        assert not inside & outside


def test_a_gate_comes_back_from_its_file_and_others_are_refused(tiny_tuned, tmp_path):
    gate = gate_of(tiny_tuned, READS)
    gate.save(tmp_path / "g.safetensors")
    again = LinearGate.load(tmp_path / "g.safetensors")
    assert again.reads == tuple(READS) and torch.equal(again.weight, gate.weight)
    for odd in ({"reads": "[[1"}, {"reads": "[]"}, {"reads": '[[1, "last"], [2, "last"], [3, "last"]]'}):
        replace(gate, metadata=gate.metadata | odd).save(tmp_path / "odd.safetensors")
        with pytest.raises(UserError, match="does not say what its weights are of"):
            LinearGate.load(tmp_path / "odd.safetensors")


def test_the_command_fits_a_gate_that_arms_go_by_and_leaves_its_prompts_out_of_the_rates(
    run, tiny_tuned_folder, prompts_file, tmp_path
):
    rows = pl.read_ndjson(prompts_file).with_columns(
        split=pl.Series([("train", "train", "validation", "test")[at // 4 % 4] for at in range(40)])
    )
    rows.write_ndjson(tmp_path / "mine.jsonl")
    group = ("--run", tmp_path / "r", "--model", tiny_tuned_folder, "--data", tmp_path / "mine.jsonl")
    code, _, err = run(*group, "probe", "--gate", "ridge", "probe", "--gate", "words")
    assert code == 0, err
    for name in ("ridge", "words"):
        quality = pl.read_parquet(tmp_path / "r" / "gates" / f"{name}_quality.parquet")
        assert quality.schema == pl.Schema(GATE_QUALITY) and quality["n_harmful"][0] + quality["n_benign"][0] == 32
    code, _, err = run(*group, "vectors", "generate", "--split", "validation", "--arm", "baseline", "--arm", "gated:gate=ridge",
                       "--layer", 2, "--max-new-tokens", 2, "evaluate", "--split", "validation")  # fmt: skip
    assert code == 0, err
    assert pl.read_parquet(tmp_path / "r" / "scores.parquet")["fitted"].all()  # validation rows chose the threshold
    code, _, err = run(*group, "probe", "--gate", "words", "--keep-refusal", 0.99)
    assert code == 1 and "299 of them, none lost, would be needed" in err
    code, _, err = run(*group, "probe", "--keep-refusal", 0.9)
    assert code == 1 and "--keep-refusal is for --gate ridge and words" in err


def test_an_encoded_prompt_has_the_tokens_that_the_hooks_were_told(tiny_tuned):
    encoded = encode(tiny_tuned.tokenizer, ["how do i kill a process"])
    assert encoded.user == [(2, len(encoded.ids[0]) - 1)]
