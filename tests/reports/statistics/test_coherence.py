"""Incoherent answers: below the unsteered model's own first percentile at like length, and counted in no cure."""

import json

import numpy as np
import polars as pl
import pytest

from data.store.tables import COHERENCE, GENERATIONS
from reports.scoring.broken import are_broken
from reports.scoring.scores import score
from reports.statistics.coherence import incoherent
from reports.statistics.summary import summarise
from tests import ROOT

# 100 answers of the embedded model to its own test prompts, read and labelled by hand, and 300 unsteered ones to compare with.
LABELLED = ROOT / "tests" / "made" / "coherence.jsonl"


def answers(kind: str, tokens, values) -> pl.DataFrame:
    rows = [{"dataset": "d", "id": str(at), "arm": kind, "kind": kind, "label": "benign", "tokens": n, "log_likelihood": value}
            for at, (n, value) in enumerate(zip(tokens, values, strict=True))]  # fmt: skip
    return pl.DataFrame(
        rows, {name: COHERENCE[name] for name in ("dataset", "id", "arm", "kind", "label", "tokens", "log_likelihood")}
    )


def test_one_in_a_hundred_unsteered_answers_is_below_and_length_counts():
    draw = np.random.default_rng(0)
    short, long = draw.normal(-2.0, 0.2, 1000), draw.normal(-1.0, 0.1, 1000)  # short answers are less probable a token
    table = pl.concat([answers("baseline", [4] * 1000 + [64] * 1000, [*short, *long]).with_columns(id=pl.int_range(2000).cast(pl.String)),
                       answers("fixed", [4, 64, 70, 5, 0], [-2.0, -2.0, -1.0, -9.0, None])])  # fmt: skip
    found = incoherent(table)
    assert found.schema == pl.Schema(COHERENCE)
    assert 4 <= found.filter(kind="baseline")["incoherent"].sum() <= 60
    assert found.filter(kind="fixed")["incoherent"].to_list() == [False, True, False, True, None]
    floors = found.filter(kind="fixed")["floor"]
    first = np.percentile(short[:200], 1)  # all 1,000 are as near; the first 200 are taken
    assert floors[0] == pytest.approx(first)


def test_too_few_unsteered_answers_say_nothing():
    found = incoherent(answers("baseline", [4] * 10, [-2.0] * 10))
    assert found["floor"].is_null().all() and found["incoherent"].is_null().all()


def generations(texts: dict[str, list[str]], nonsense: dict[str, list[bool]]) -> pl.DataFrame:
    rows = [{"dataset": "d", "id": str(at), "arm": arm, "kind": arm, "label": "benign", "prompt": f"p {at}", "response": text}
            for arm, own in texts.items() for at, text in enumerate(own)]  # fmt: skip
    flags = [flag for arm in texts for flag in nonsense[arm]]
    return pl.DataFrame(rows, GENERATIONS).with_columns(incoherent=pl.Series(flags))


def test_nonsense_is_shown_with_its_interval_and_is_no_answer_and_no_cure():
    refusal, answer = "I'm sorry, but I can't help with that.", "Here is how it is done, step by step."
    texts = {"baseline": [refusal] * 6 + [answer] * 4, "fixed": [answer] * 10}
    table = generations(texts, {"baseline": [False] * 10, "fixed": [True] * 3 + [False] * 7})
    found = summarise(score(table, set())).filter(dataset="d", scorer="phrases")
    fixed, baseline = found.filter(arm="fixed").row(0, named=True), found.filter(arm="baseline").row(0, named=True)
    assert (fixed["refused"], fixed["incoherent"], fixed["answered"], fixed["cured"]) == (0, 3, 7, 3)
    assert (baseline["incoherent"], baseline["cured"]) == (0, None)
    for row in (fixed, baseline):
        assert sum(row[name] for name in ("refused", "partial", "broken", "incoherent", "answered")) == row["n"]
    from statsmodels.stats.proportion import proportion_confint

    assert (fixed["incoherent_low"], fixed["incoherent_high"]) == pytest.approx(
        proportion_confint(3, 10, method="wilson")
    )


def test_without_it_nothing_changes():
    table = generations(
        {"baseline": ["Here is how."], "fixed": ["Here is how."]}, {"baseline": [False], "fixed": [False]}
    ).drop("incoherent")
    found = summarise(score(table, set()))
    assert found["incoherent"].is_null().all() and found.filter(dataset="d", scorer="phrases")[
        "answered"
    ].to_list() == [1, 1]


def labelled() -> tuple[list[dict], list[dict]]:
    rows = [json.loads(line) for line in LABELLED.read_text("utf-8").splitlines()]
    return [row for row in rows if row["kind"] == "labelled"], [row for row in rows if row["kind"] == "reference"]


def test_half_of_what_is_called_incoherent_is_nonsense_and_none_of_it_is_unsteered():
    """The figures that README gives: what the flag sees beside broken text, and how often it is wrong."""
    rows, unsteered = labelled()
    reference = answers("baseline", [row["tokens"] for row in unsteered], [row["log_likelihood"] for row in unsteered])
    lengths = [len(row["token_ids"]) - row["control_token"] for row in rows]
    table = pl.concat([reference, answers("fixed", lengths, [row["log_likelihood"] for row in rows])])
    flagged = incoherent(table).filter(kind="fixed")["incoherent"].to_numpy()
    nonsense, broken = (
        np.array([row["nonsense"] for row in rows]),
        np.array(are_broken([row["response"] for row in rows])),
    )
    assert (len(rows), nonsense.sum(), broken.sum()) == (100, 22, 4)
    assert not (flagged & broken).any()  # what repeats itself is all too probable, and broken
    assert ((nonsense & ~broken).sum(), (flagged & nonsense).sum(), flagged.sum()) == (18, 11, 22)
    unmoved = np.array([row["arm"] != "fixed" for row in rows])
    assert not (flagged & unmoved).any()


@pytest.mark.slow
def test_the_labelled_answers_are_as_probable_as_noted(tmp_path):
    from data import load_all
    from interventions import open_model
    from interventions.steering.compared.likelihood import log_likelihoods
    from interventions.steering.plans import Tools
    from tests.made.tools import vectors_of

    rows, model = labelled()[0][:12], open_model("refusal-smollm2")
    prompts = dict(load_all(["embedded/test"]).select("id", "prompt").iter_rows())
    found = log_likelihoods(model, [prompts[row["id"]] for row in rows], [row["token_ids"] for row in rows],
                            [int(row["control_token"]) for row in rows], Tools(vectors_of(model)), tmp_path / "again.parquet")  # fmt: skip
    assert found.means == pytest.approx([row["log_likelihood"] for row in rows], abs=2e-3)
    for row in rows:
        words = model.tokenizer.decode(row["token_ids"][int(row["control_token"]) :], skip_special_tokens=True)
        assert words == row["response"]
