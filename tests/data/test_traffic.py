"""Traffic and contrasts: no theme in two splits, pairs that differ in their label, and nothing that a model of ours was taught."""

import polars as pl
import pytest

from data import UserError, load_all
from data.prompts.answers import load_training
from data.prompts.sample import read


def plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())


def test_it_is_large_mixed_and_split_by_theme():
    rows = read("embedded:traffic")
    assert rows.height >= 1600 and rows["prompt"].map_elements(plain, pl.String).is_unique().all()
    assert rows.group_by("theme").agg(pl.col("split").n_unique())["split"].max() == 1
    counts = rows.group_by("split").agg(harmful=(pl.col("label") == "harmful").sum(), all=pl.len())
    assert set(counts["split"]) == {"train", "validation", "test"}
    assert ((counts["harmful"] / counts["all"]).is_between(0.35, 0.45)).all()
    assert rows.filter(pl.col("label") == "harmful")["category"].null_count() == 0


def test_the_contrasts_are_pairs_of_every_category_to_fit_gates_on():
    rows = read("embedded:contrasts")
    assert rows.height >= 4900 and rows["prompt"].map_elements(plain, pl.String).is_unique().all()
    assert rows.group_by("theme").agg(pl.col("split").n_unique())["split"].max() == 1
    assert set(rows["split"]) == {"train", "validation"} and rows["pair"].null_count() == 0
    assert (rows.group_by("category", "label").len()["len"] >= 150).all() and rows["category"].n_unique() == 5


def test_the_kinds_are_of_every_category_plain_and_in_pairs():
    rows = read("embedded:kinds")
    assert rows.height >= 30000 and rows["prompt"].map_elements(plain, pl.String).is_unique().all()
    assert rows.group_by("theme").agg(pl.col("split").n_unique())["split"].max() == 1
    assert set(rows["split"]) == {"train", "validation"} and 0.3 < rows["pair"].null_count() / rows.height < 0.6
    assert (rows.drop_nulls("category").group_by("category", "label").len()["len"] >= 750).all()
    for name in ("embedded:traffic", "embedded:contrasts", "embedded:held-out", "embedded"):
        assert not set(rows["prompt"].map_elements(plain, pl.String)) & set(
            read(name)["prompt"].map_elements(plain, pl.String)
        )


@pytest.mark.parametrize("name", ["embedded:traffic", "embedded:contrasts", "embedded:kinds"])
def test_a_pair_is_a_harmful_and_a_benign_prompt_of_one_theme_and_category(name):
    pairs = read(name).filter(pl.col("pair").is_not_null()).group_by("pair")
    each = pairs.agg(pl.len(), pl.col("label").sort(), pl.col("theme").n_unique(), pl.col("category").n_unique())
    assert (
        each.height > 500 and (each["len"] == 2).all() and (each["theme"] == 1).all() and (each["category"] == 1).all()
    )
    assert each["label"].to_list() == [["benign", "harmful"]] * each.height


@pytest.mark.parametrize("name", ["embedded:traffic", "embedded:contrasts", "embedded:kinds"])
def test_lengths_do_not_give_the_label_away(name):
    rows = read(name).with_columns(words=pl.col("prompt").str.split(" ").list.len())
    medians = [rows.filter(label=label).select(pl.col("words").median()).item() for label in ("harmful", "benign")]
    assert abs(medians[0] - medians[1]) <= 2


@pytest.mark.parametrize("own", ["embedded:traffic", "embedded:contrasts", "embedded:kinds"])
def test_no_model_of_ours_is_taught_it(own):
    traffic = set(read(own)["prompt"].map_elements(plain, pl.String))
    for name in ("embedded", "embedded:lessons"):
        assert not traffic & set(read(name)["prompt"].map_elements(plain, pl.String))
    with pytest.raises(UserError, match="teaches nothing"):
        load_training([own])


def test_what_is_held_out_is_of_the_same_kind_in_other_themes_and_for_evaluation_alone():
    held, traffic = read("embedded:held-out"), read("embedded:traffic")
    assert held.height > 1000 and set(held["split"]) == {"test"} and held["theme"].n_unique() > 50
    assert not {theme.partition(": ")[2] for theme in held["theme"]} & {
        theme.partition(": ")[2] for theme in traffic["theme"]
    }
    texts = held["prompt"].map_elements(plain, pl.String)
    assert texts.is_unique().all() and not set(texts) & set(traffic["prompt"].map_elements(plain, pl.String))
    assert not set(texts) & set(read("embedded:contrasts")["prompt"].map_elements(plain, pl.String))
    pairs = held.drop_nulls("pair").group_by("pair").agg(pl.col("label").sort(), pl.col("theme").n_unique())
    assert pairs["label"].to_list() == [["benign", "harmful"]] * pairs.height and (pairs["theme"] == 1).all()
    with pytest.raises(UserError, match="teaches nothing"):
        load_training(["embedded:held-out"])


def test_it_loads_as_any_data_set():
    test = load_all(["embedded:traffic/test"])
    assert set(test["dataset"]) == {"embedded:traffic"} and set(test["split"]) == {"test"} and test.height > 400


def test_the_families_are_of_three_kinds_and_for_evaluation_alone():
    rows = read("embedded:families")
    assert set(rows["split"]) == {"test"} and rows.height > 700
    counts = rows.group_by(pl.col("theme").str.split(": ").list.get(1), "label").len()
    assert counts.height == 6 and (counts["len"] >= 100).all()
    with pytest.raises(UserError, match="teaches nothing"):
        load_training(["embedded:families"])
