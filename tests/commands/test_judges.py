"""`judges`: scorers beside labels by hand, those that ship and a run's own."""

import csv
import json

import polars as pl
import pytest

from reports.scoring.bench import HELD, TUNE, shipped
from tests.check_contract import fits_contract
from tests.made.mirror import put


def test_the_answers_that_ship_are_whole_and_halves_share_no_prompt():
    table = shipped()
    assert table.height == 300 and table["half"].value_counts().sort("half").rows() == [(HELD, 150), (TUNE, 150)]
    assert set(table["hand"]) == {"comply", "partial", "refuse", "broken"}
    assert (table["case"] != "").sum() >= 150
    halves = table.group_by("prompt").agg(pl.col("half").n_unique())
    assert halves["half"].max() == 1 and table.select("prompt", "response").is_unique().all()
    from data.prompts import sample

    taught = set(pl.concat(sample.read(name) for name in sample.TAUGHT).filter(split="train")["prompt"])
    assert not taught & set(table["prompt"])


def test_every_scorer_that_needs_nothing_is_held_against_them(run, tmp_path):
    code, out, err = run("--run", tmp_path, "--json", "judges")
    assert code == 0, err
    said = json.loads(out)
    assert {row["scorer"] for row in said["table"]} == {"token", "phrases", "classifier"}
    found = pl.read_parquet(tmp_path / "judges.parquet")
    table = shipped()
    for scorer in ("phrases",):
        mine = found.filter(scorer=scorer, half="all").to_dicts()[0]
        odd = pl.read_parquet(tmp_path / "judges_disagreements.parquet").filter(scorer=scorer)
        assert mine["wrong"] == odd.height and mine["n"] == table.height
    code, _, err = run("--run", tmp_path, "report")
    page = (tmp_path / "report.html").read_text()
    assert code == 0 and "Scorers beside labels by hand" in page, err


@pytest.fixture
def answered(run, tiny_tuned_folder, prompts_file, tmp_path):
    """A run whose answers are evaluated, and a file of labels for them that is filled in."""
    words = ["--run", tmp_path / "run", "--model", tiny_tuned_folder, "--data", prompts_file]
    code, _, err = run(
        *words, "generate", "--max-new-tokens", 4, "--arm", "baseline", "evaluate", "--hand", tmp_path / "hand.csv"
    )
    assert code == 0, err
    rows = list(csv.DictReader((tmp_path / "hand.csv").open(encoding="utf-8-sig")))
    for at, row in enumerate(rows):
        row["verdict"] = ("comply", "refuse", "c")[at % 3] if at < 9 else ""
    with (tmp_path / "hand.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path


def test_a_runs_own_labels_correct_its_rates(run, answered):
    code, out, err = run(
        "--run", answered / "run", "--json", "judges", "--hand", answered / "hand.csv", "--scorer", "phrases"
    )
    assert code == 0, err
    said = json.loads(out)
    assert said["answers"] == 9 and [row["scorer"] for row in said["table"]] == ["phrases"]
    scores = pl.read_parquet(answered / "run" / "scores.parquet").filter(~pl.col("fitted"), scorer="phrases")
    rates, counted = pl.read_parquet(answered / "run" / "judges_rates.parquet"), scores["verdict"].count()
    assert counted > 9
    assert set(rates["scorer"]) == {"phrases"} and rates["hand"].is_null().all() and rates["n"].sum() == counted
    fits_contract(answered / "run")
    code, _, err = run("--run", answered / "run", "judges", "--hand", answered / "none.csv")
    assert code == 1 and "no such file" in err and err.count("\n") == 1


def test_labels_that_are_not_there_are_said_before_anything_is_made(run, tiny_tuned_folder, prompts_file, tmp_path):
    words = ["--run", tmp_path / "run", "--model", tiny_tuned_folder, "--data", prompts_file]
    code, _, err = run(*words, "judges", "--hand", tmp_path / "none.csv")
    assert code == 1 and "no such file" in err and err.count("\n") == 1
    assert not (tmp_path / "run" / "activations").exists()


ANNOTATED = {  # response -> label of refusal
    "I cannot help with that.": "refusal",
    "Sorry, but I can't do that.": "refusal",
    "Let us talk of something else.": "refusal",
    "First you take a pan.": "compliance",
    "Then you wait for an hour.": "compliance",
    "": "compliance",  # broken, which is no class of theirs
    "Nobody agreed on this one.": None,
}


@pytest.fixture
def annotated(tmp_path):
    """A mirror of WildGuardTest with a row of each kind."""
    columns = {
        "prompt": [f"question {at}" for at in range(len(ANNOTATED) + 1)],
        "response": [*ANNOTATED, None],
        "prompt_harm_label": ["harmful", "unharmful", None, "unharmful", "harmful", "unharmful", "harmful", "harmful"],
        "response_refusal_label": [*ANNOTATED.values(), "refusal"],
    }
    return put(tmp_path / "hub", "allenai/wildguardmix", "wildguardtest", {"test": pl.DataFrame(columns)})


def test_labels_of_wildguardtest(run, annotated, tmp_path):
    own = ("--run", tmp_path / "run", "--data-mirror", annotated, "--json", "judges", "--hand", "wildguard:test")
    code, out, err = run(*own)
    assert code == 0, err
    said = json.loads(out)
    assert said["answers"] == 6
    (row,) = said["table"]  # no control tokens, and no classifier that knows these answers
    assert row["scorer"] == "phrases"
    found = pl.read_parquet(tmp_path / "run" / "judges.parquet").to_dicts()[0]
    assert (found["n_refused"], found["n_other"], found["half"]) == (3, 3, "all")
    assert (found["sensitivity"], found["specificity"]) == (pytest.approx(2 / 3), 1)
    odd = pl.read_parquet(tmp_path / "run" / "judges_disagreements.parquet")
    assert odd.select("id", "hand", "verdict").rows() == [("2", "refuse", "comply")]
    assert pl.read_parquet(tmp_path / "run" / "judges_rates.parquet").is_empty()
    code, _, err = run("--run", tmp_path / "run", "report")
    assert code == 0 and "Scorers beside labels by hand" in (tmp_path / "run" / "report.html").read_text(), err


def test_labels_of_wildguardtest_that_are_not_there_or_others(run, annotated, tmp_path):
    words = ("--run", tmp_path / "run", "--data-mirror", annotated, "judges", "--hand", "wildguard:test")
    file = next(annotated.rglob("test.parquet"))
    table = pl.read_parquet(file)
    for other, told in ((table.drop("response_refusal_label"), "no column 'response_refusal_label'"),
                        (table.with_columns(response_refusal_label=pl.lit("maybe")), "'maybe' is unknown"),
                        (table.with_columns(response_refusal_label=pl.lit(None, pl.String)), "no answer with a label")):  # fmt: skip
        other.write_parquet(file)
        code, _, err = run(*words)
        assert code == 1 and told in err and err.count("\n") == 1
    assert not (tmp_path / "run" / "judges.parquet").exists()
