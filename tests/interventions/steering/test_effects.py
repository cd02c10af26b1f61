"""Side effects: KL and perplexity as plain hooks and scipy give them, one row at a time, and their intervals."""

import json

import numpy as np
import polars as pl
import pytest
import torch

from data import UserError, load_all
from data.prompts.passages import passages
from data.store.measured import Measured
from data.store.tables import EFFECTS
from interventions.model.prompt_format import encode
from interventions.steering.arms import Arm
from interventions.steering.effects import CONTEXT, pieces_of, side_effects
from interventions.steering.plans import Tools
from interventions.steering.teacher_forcing import most_rows, teacher_forced
from reports.statistics.effects import figures, percentile, ratio, share
from tests.made.tools import EVERY_EDIT, arms_of, each, lowrank_of, probe_of, vectors_of
from tests.ndif.client import doors
from tests.oracles import cut, divergence, forced, forced_arm, plain, stop_ids

STEPS = 6


def measured_effects(model, prompts, *words, text_name="plain", **options) -> pl.DataFrame:
    """`side_effects` with the figures that the command hands in."""

    def counted(measured: Measured) -> pl.DataFrame:
        return figures(measured, prompts["dataset"].to_list(), [None] * prompts.height, text_name)

    return side_effects(model, prompts, *words, figures=counted, **options)


@pytest.fixture(scope="module")
def prompts(prompts_file):
    return load_all([str(prompts_file)]).filter(label="benign").head(7)


@pytest.fixture(scope="module")
def tools(tiny_tuned):
    return Tools(vectors_of(tiny_tuned), probe_of(tiny_tuned), lowrank_of(tiny_tuned))


@pytest.fixture(scope="module")
def arms():
    return arms_of(EVERY_EDIT)


def test_divergence_is_scipys_over_plain_hooks(tiny_tuned, prompts, tools, arms, tmp_path):
    """Every scope, operation and route: KL of the first token, and its mean over the unsteered model's own answer."""
    model = tiny_tuned
    table = measured_effects(model, prompts, passages()[:1], tools, tmp_path / "effects.parquet", arms=arms,
                         broken=each(lambda text: "poem" in text), max_new_tokens=STEPS, batch_tokens=60)  # fmt: skip
    assert table.schema == pl.Schema(EFFECTS) and not list(tmp_path.glob(".*"))
    encoded = encode(model.tokenizer, prompts["prompt"].to_list()).ids
    instructed = encode(model.tokenizer, [f"tell me\n\n{text}" for text in prompts["prompt"]]).ids
    stops, judged = stop_ids(model), set()
    for arm in [Arm("baseline", "baseline", 2), *arms]:
        first, means, verdicts = [], [], []
        for row, ids in enumerate(encoded):
            answer, _ = plain(model, ids, 0, "all", STEPS)
            end = next((at + 1 for at, token in enumerate(answer) if token in stops), len(answer))
            before = forced(model, ids, answer[:end], 0, "all")
            after = forced_arm(model, arm, tools, instructed[row] if arm.kind == "prompt-only" else ids, answer[:end])
            kl = divergence(before, after)
            first.append(kl[0])
            means.append(kl.mean())
            if arm.kind == "fixed" and arm.operation == "add":
                vector = tools.vectors.at(arm.layer, arm.category)
                own, _ = plain(model, ids, arm.layer, arm.scope, STEPS, delta=arm.strength * vector / vector.norm())
                verdicts.append("poem" in model.tokenizer.decode(cut(model, own), skip_special_tokens=True))
        got = dict(table.filter(arm=arm.name).select("measure", "value").iter_rows())
        wanted = {"kl_first_mean": np.mean(first), "kl_first_p95": np.quantile(first, 0.95),
                  f"kl_{STEPS}_mean": np.mean(means), f"kl_{STEPS}_p95": np.quantile(means, 0.95)}  # fmt: skip
        for measure, value in wanted.items():
            assert got[measure] == pytest.approx(value, rel=1e-3, abs=1e-6), (arm.name, measure)
        if verdicts:
            assert got["broken"] == np.mean(verdicts)
            judged |= set(verdicts)
        if arm.kind != "baseline":
            assert got["kl_first_mean"] > 1e-3
    assert judged == {True, False}
    assert table.filter(pl.col("measure") == "kl_first_mean")["n"].to_list() == [prompts.height] * (len(arms) + 1)


def test_perplexity_is_what_transformers_own_loss_gives(tiny_tuned, tools, arms, tmp_path, monkeypatch):
    """A passage's first tokens are its prompt, as for a row of a batch; long passages come in pieces."""
    monkeypatch.setattr("interventions.steering.effects.PIECE", 40)
    model, tokenizer = tiny_tuned, tiny_tuned.tokenizer
    texts = [" ".join(["how do i kill a python process please"] * n) for n in (3, 9, 1)]
    none = load_all(["embedded/test"]).head(0)
    table = measured_effects(
        model, none, texts, tools, tmp_path / "e.parquet", arms=arms, broken=each(bool), text_name="mine"
    )
    pieces, passage = pieces_of(tokenizer, texts)
    assert passage == [0, 1, 1] and all(len(piece) <= 40 for piece in pieces)
    assert table["n"].unique().to_list() == [2] and table["dataset"].unique().to_list() == ["mine"]
    baseline = None
    for arm in [Arm("baseline", "baseline", 2), *arms]:
        lead = tokenizer("tell me\n\n", add_special_tokens=False)["input_ids"] if arm.kind == "prompt-only" else []
        total = 0.0
        for ids in pieces:
            logs = forced_arm(model, arm, tools, [*lead, *ids[:CONTEXT]], ids[CONTEXT:])
            total -= logs[np.arange(len(ids) - CONTEXT), ids[CONTEXT:]].sum()
        if arm.kind == "baseline":  # and once with transformers' loss, which this tool has no part in
            with torch.no_grad():
                labels = [torch.tensor([[-100] * CONTEXT + ids[CONTEXT:]]) for ids in pieces]
                losses = [model.module(input_ids=torch.tensor([ids]), labels=label).loss * (len(ids) - CONTEXT)
                          for ids, label in zip(pieces, labels, strict=True)]  # fmt: skip
            assert float(sum(losses)) == pytest.approx(total, rel=1e-4)
        perplexity = np.exp(total / sum(len(ids) - CONTEXT for ids in pieces))
        baseline = perplexity if baseline is None else baseline
        got = dict(table.filter(arm=arm.name).select("measure", "value").iter_rows())
        assert got["perplexity"] == pytest.approx(perplexity, rel=1e-3)
        assert got["perplexity_ratio"] == pytest.approx(perplexity / baseline, rel=1e-3)


def test_a_forward_pass_stays_within_its_memory(tiny_tuned, tools, arms, prompts, tmp_path, monkeypatch):
    whole = measured_effects(
        tiny_tuned, prompts, passages()[:2], tools, tmp_path / "a.parquet", arms=arms, broken=each(bool)
    )
    monkeypatch.setattr("interventions.steering.teacher_forcing.LOGIT_BYTES", 1)
    assert most_rows(tiny_tuned, 32) == 1
    alone = measured_effects(
        tiny_tuned, prompts, passages()[:2], tools, tmp_path / "b.parquet", arms=arms, broken=each(bool)
    )
    keys, values = ["dataset", "arm", "measure", "n"], ["value", "low", "high"]
    assert whole.select(keys).equals(alone.select(keys))
    assert np.allclose(
        whole.select(values).to_numpy(), alone.select(values).to_numpy(), rtol=1e-3, atol=1e-6, equal_nan=True
    )


def test_a_killed_run_goes_on_where_it_was(tiny_tuned, tools, prompts, tmp_path):
    """What finished batches answered is not asked again: of the killed run's answers, those of one batch are repeated at most."""
    options = {"arms": arms_of(["fixed"]), "max_new_tokens": 4, "batch_tokens": 20}
    asked = {"killed": [], "again": [], "fresh": []}

    def judge(name, dies_at=None):
        def broken(text):
            asked[name].append(text)
            if len(asked[name]) == dies_at:
                raise KeyboardInterrupt
            return False

        return broken

    def measure(name, path, **fate):
        return measured_effects(
            tiny_tuned, prompts, passages()[:2], tools, tmp_path / path, broken=each(judge(name, **fate)), **options
        )

    with pytest.raises(KeyboardInterrupt):
        measure("killed", "e.parquet", dies_at=9)
    lines = (tmp_path / ".e-answers.journal").read_text().splitlines()
    finished = [number for line in lines[1:] for number in json.loads(line)["done"]]
    rows = sum(len(json.loads(lines[0])["plan"][int(number)]) for number in finished)
    assert rows and len(finished) == len(set(finished))
    again, fresh = measure("again", "e.parquet"), measure("fresh", "f.parquet")
    assert again.equals(fresh)
    assert len(asked["fresh"]) == 2 * prompts.height
    assert asked["again"] == asked["fresh"][2 * rows :] and len(asked["killed"]) == 9


def test_no_arm_but_oracle_reads_categories_or_labels(tiny_tuned, tools, prompts, tmp_path):
    arms = arms_of(["routed", "gated", "oracle"])
    swapped = prompts.with_columns(category=pl.lit("feelings"), label=pl.lit("harmful"))
    one, two = (measured_effects(tiny_tuned, rows, passages()[:2], tools, tmp_path / "e.parquet", arms=arms, broken=each(bool))
                for rows in (prompts, swapped))  # fmt: skip
    assert one.filter(pl.col("arm") != "oracle").equals(two.filter(pl.col("arm") != "oracle"))
    assert not one.equals(two)


def test_simulated_traces_measure_the_same(tiny_tuned, tools, arms, prompts, tmp_path):
    from dataclasses import replace

    from interventions.backends.backend import Backend

    far = replace(tiny_tuned, backend=Backend("simulate"))
    one, two = (measured_effects(model, prompts.head(3), passages()[:1], tools, tmp_path / "e.parquet", arms=arms, broken=each(bool),
                             max_new_tokens=3) for model in (tiny_tuned, far))  # fmt: skip
    assert one.equals(two)


@pytest.mark.ndif
def test_a_server_measures_the_same(ndif, tiny_tuned, tiny_tuned_folder, tools, arms, prompts, tmp_path):
    from interventions import open_model

    there = open_model(str(tiny_tuned_folder), remote=doors(ndif)["remote"])  # type: ignore[arg-type]  # an open backend
    one, two = (measured_effects(model, prompts, passages()[:4], tools, tmp_path / "e.parquet", arms=arms, broken=each(bool),
                             max_new_tokens=4, batch_tokens=60) for model in (tiny_tuned, there))  # fmt: skip
    assert one.equals(two)


def test_intervals_are_those_of_hand_written_numpy():
    random = np.random.default_rng(3)
    sums, sizes = random.exponential(2, 40), np.ones(40)
    clusters = [at // 2 for at in range(40)]
    value, low, high = ratio(sums, sizes, clusters, np.random.default_rng(1))
    drawn = np.random.default_rng(9).integers(0, 20, (20_000, 20))
    means = sums.reshape(20, 2).sum(1)[drawn].sum(1) / 40
    assert value == pytest.approx(sums.mean())
    assert low == pytest.approx(np.quantile(means, 0.025), rel=0.03)
    assert high == pytest.approx(np.quantile(means, 0.975), rel=0.03)
    assert ratio(sums[:1], sizes[:1], [0], random) == (sums[0], None, None)
    assert ratio(sums[:0], sizes[:0], [], random) == (None, None, None)
    value, low, high = percentile(np.sort(sums), 0.5)
    # Binomial(40, 1/2) between 14 and 26 covers 95 %: the 14th and 27th values (Hahn & Meeker 1991, section 5.2).
    assert (value, low, high) == (np.median(sums), np.sort(sums)[13], np.sort(sums)[26])
    value, low, high = percentile(sums, 0.95)  # 40 values bound it from below alone
    assert value is not None and low is not None and high is not None
    assert low < value == np.quantile(sums, 0.95) and np.isnan(high)
    value, low, high = share(np.array([True, False, False, False]))
    assert value == 0.25 and low == pytest.approx(0.0456, abs=1e-3) and high == pytest.approx(0.6994, abs=1e-3)


def test_rows_of_a_theme_are_drawn_together():
    kl = np.repeat([[0.1], [0.9], [0.3], [0.5]], 10, axis=0)
    nothing = {
        "broken": np.zeros((40, 1), bool),
        "nll": np.ones((3, 1)),
        "tokens": np.array([2, 2, 2]),
        "passage": np.arange(3),
    }
    measured = Measured(["baseline"], 32, first=kl, answer=kl, **nothing)
    themes = [str(at // 10) for at in range(40)]
    wide, narrow = (figures(measured, ["a"] * 40, names, "text").row(0, named=True) for names in (themes, [None] * 40))
    assert wide["value"] == narrow["value"] and wide["high"] - wide["low"] > 2 * (narrow["high"] - narrow["low"])


def test_texts_are_read_or_refused(tmp_path):
    assert len(passages()) == 36 and all(50 < len(text.split()) < 90 for text in passages())
    file = tmp_path / "mine.txt"
    file.write_bytes(b"one\r\ntwo\r\n \r\n\r\nthree")
    assert passages(file) == ["one two", "three"]
    file.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match="not UTF-8"):
        passages(file)
    file.write_bytes(b" \n \n")
    with pytest.raises(UserError, match="no text in it"):
        passages(file)
    with pytest.raises(UserError, match="can't be read"):
        passages(tmp_path / "none.txt")


def test_the_command(run, tiny_tuned_folder, prompts_file, tmp_path):
    """Fitted rows are left out and counted; a second call makes nothing; the table is the contract's."""
    rows = [json.loads(line) for line in prompts_file.read_text().splitlines()]
    for at, row in enumerate(rows):
        row |= {"split": ("train", "validation", "test")[at % 3], "prompt": f"{row['prompt']} {'a ' * at}"}
    rows.append(
        next(row for row in rows if row["label"] == "benign" and row["split"] == "train") | {"id": "x", "split": "test"}
    )
    data = tmp_path / "mine.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    words = ["--run", tmp_path / "run", "--model", tiny_tuned_folder, "--data", data, "--json"]
    code, out, err = run(*words, "extract", "vectors", "probe", "effects", "--max-new-tokens", 3)
    assert code == 0, err
    (line,) = [json.loads(text) for text in out.splitlines() if '"effects"' in text]
    benign = [row for row in rows if row["label"] == "benign" and row["split"] == "test"]
    assert line["prompts"] == len(benign) - 1 and "1 of" in err and "left out" in err
    table = pl.read_parquet(tmp_path / "run" / "effects.parquet")
    assert table.schema == pl.Schema(EFFECTS) and table["arm"].unique(maintain_order=True).to_list() == [
        "baseline", "fixed", "routed", "gated"
    ]  # fmt: skip
    assert table["measure"].unique(maintain_order=True).to_list() == [
        "kl_first_mean", "kl_first_p95", "kl_3_mean", "kl_3_p95", "broken", "perplexity", "perplexity_ratio",
    ]  # fmt: skip
    record = json.loads((tmp_path / "run" / "run.json").read_text())["artefacts"]["effects"]
    assert {"probe", "vectors"} <= set(record["key"])
    stamp = (tmp_path / "run" / "effects.parquet").stat().st_mtime_ns
    assert run(*words, "effects", "--max-new-tokens", 3)[0] == 0
    assert (tmp_path / "run" / "effects.parquet").stat().st_mtime_ns == stamp
    code, _, err = run(*words, "report")
    assert code == 0 and "Side effects" in (tmp_path / "run" / "report.html").read_text(), err


def test_the_embedded_models_figures(embedded):
    """KL of given tokens on the real model against a plain hook and scipy, to float32's precision."""
    from interventions.reading.batches import pad_batch, pad_id
    from interventions.steering.plans import plan_arm

    texts = load_all(["embedded/test"]).filter(label="benign")["prompt"].to_list()[:3]
    vectors = vectors_of(embedded)
    arm = Arm("fixed", "fixed", 17, "weapons", 40.0, unit="unit")
    ids = encode(embedded.tokenizer, texts).ids
    given = [embedded.tokenizer(text)["input_ids"][:8] for text in passages()[:3]]
    plan = plan_arm(embedded, arm, Tools(vectors), [{}] * 3)
    found = teacher_forced(embedded, pad_batch(ids, pad_id(embedded.tokenizer)), given, [plan.shipped])
    vector = vectors.at(17, "weapons")
    assert found.kl is not None
    for row in range(3):
        before = forced(embedded, ids[row], given[row], 17, "all")
        after = forced(embedded, ids[row], given[row], 17, "generated", delta=40 * vector / vector.norm())
        assert np.allclose(found.kl[row, 0], divergence(before, after), rtol=1e-4)
        assert np.allclose(found.nll[row, 0], -after[np.arange(8), given[row]], rtol=1e-4)


def test_the_page_names_measures_and_draws_no_open_interval():
    from reports.page.names import named
    from reports.page.sections.costs import drawn, measured

    assert measured("kl_32_p95") == "KL a token of the first 32, nats, 95th percentile" and measured("mine") == "mine"
    rows = pl.DataFrame({"arm": ["a", "b"], "value": [1.0, 2.0], "low": [0.5, 1.5], "high": [None, 3.0], "n": [9, 9]})
    assert drawn(rows, named(rows["arm"])).rows() == [("a", 1.0, 1.0, 1.0, 9), ("b", 2.0, 1.5, 3.0, 9)]
