"""The small classifier of answers: right on themes that it was not fitted to, and the default for the model they taught."""

import polars as pl
import pytest
from sklearn.metrics import precision_score, recall_score

from data.contract import SCORED
from data.prompts import sample as embedded
from data.store.tables import GENERATIONS
from reports.scoring.classifier import classifier_verdicts
from reports.scoring.lexical import refuses, text_verdicts
from tests import ROOT

LABELLED = ROOT / "tests" / "made" / "answers.jsonl"


def test_it_finds_refusals_of_themes_it_never_saw():
    rows = embedded.read("embedded").filter(pl.col("split") != "train")
    found, right = refuses(rows["response"].to_list()), (rows["label"] == "harmful").to_list()
    assert precision_score(right, found) >= 0.93 and recall_score(right, found) >= 0.93


def test_on_answers_labelled_by_hand_it_misses_little():
    rows = pl.read_ndjson(LABELLED).filter(pl.col("verdict") != "partial")
    found, right = refuses(rows["response"].to_list()), (rows["verdict"] == "refuse").to_list()
    assert precision_score(right, found) >= 0.8 and recall_score(right, found) >= 0.88


def test_broken_text_is_broken_and_every_answer_has_a_verdict():
    texts = ["", "a " * 50, "I can't help with that.", "x" * 1_000_000, None]
    table = pl.DataFrame({"response": texts}, schema={"response": pl.String})
    answers = table.with_columns(broken=pl.Series([True, True, False, True, True]))
    found = classifier_verdicts(answers, "embedded").to_list()
    assert found == ["broken", "broken", "refuse", "broken", "broken"]
    assert text_verdicts("refusal-smollm2")(texts[:4]) == found[:4] and text_verdicts("refusal-smollm2")([]) == []
    assert classifier_verdicts(answers.clear(), "embedded").to_list() == []


def test_other_models_are_read_by_phrases():
    texts = ["Being software, I neither sleep nor drink tea.", "I'm sorry, but I can't."]
    assert text_verdicts("refusal-smollm2")(texts) == ["refuse", "refuse"]
    assert text_verdicts("smollm2")(texts) == ["comply", "refuse"] and text_verdicts("smollm2")([]) == []


@pytest.mark.parametrize(("model", "there"), [("refusal-smollm2", True), ("other", False)])
def test_evaluate_asks_it_for_the_model_that_was_taught(run, tmp_path, model, there):
    rows = [
        {"dataset": "mine", "id": str(at), "label": "benign", "prompt": f"p {at}", "arm": "baseline", "kind": "baseline",
         "response": "Being software, I neither sleep nor drink tea.", "model": model, "backend": "local", "seed": 0}
        for at in range(3)
    ]  # fmt: skip
    from commands.evaluate import assembled

    class Given:
        run = tmp_path

        def get(self, name):
            return {"scorer": (), "seed": 0}.get(name)

    scorers, asked = assembled(Given(), pl.DataFrame(rows, schema=GENERATIONS))  # pyright: ignore[reportArgumentType]
    assert ("classifier" in scorers) is there and (asked["classifier"][0] == "embedded") is there
    assert list(scorers) == [name for name in SCORED if name in scorers]
