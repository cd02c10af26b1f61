"""Names out of data: never shortened into one another, never read in another way, never a path."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data.errors import UserError
from data.store import tables
from interventions.methods.vectors import check_names
from reports.page import wording as say
from reports.page.assets import file_name, write_table
from reports.page.blocks import Table
from reports.page.names import named
from reports.page.run import Vectors
from reports.page.sections import vectors as section

LONG = "a category with a very long name that goes on and on and on until it differs in its last letter "


def test_names_that_are_alike_in_the_beginning_stay_apart() -> None:
    names = [LONG + "a", LONG + "b", "short", None, LONG + "a"]
    told = say.distinct(names, 40)
    assert list(told) == [LONG + "a", LONG + "b", "short", None]
    assert len(set(told.values())) == 4
    assert told["short"] == "short"
    assert [told[LONG + end].partition(": ")[0] for end in "ab"] == ["1", "2"]
    assert len(set(say.distinct([LONG + "a", LONG + "b", "1: " + say.name(LONG, 40)], 60).values())) == 3


def test_charts_of_vectors_keep_long_names_apart() -> None:
    tensors = {LONG + end: np.random.default_rng(ord(end)).normal(size=(2, 4)) for end in "abc"}
    found = Vectors(tensors, [3, 5], dict.fromkeys(tensors, 7), [1.0, 1.0], {})
    for chart, field in ((section.cosines(found, 3), "a"), (section.norms(found)[0], "series")):
        data = [row for rows in chart.chart.to_dict()["datasets"].values() for row in rows]
        assert len({row[field] for row in data if field in row}) == 3


def test_a_comma_in_a_category_is_part_of_it() -> None:
    told = named(["baseline", "fixed:category=Fraud, cards", "fixed:category=Fraud, insurance"])
    assert [arm.short for arm in told.values()] == [
        "baseline", "fixed category Fraud, cards", "fixed category Fraud, insurance",
    ]  # fmt: skip
    told = named(["fixed:category=x, text=y,strength=2", "fixed:category=x, text=y,strength=-2"])
    assert [arm.strength for arm in told.values()] == [2, -2]
    told = named(["fixed:category=a,b,layer=3", "fixed:category=a,c,layer=3"])
    assert [arm.short for arm in told.values()] == ["fixed category a,b", "fixed category a,c"]


def test_arms_that_are_alike_in_the_beginning_stay_apart() -> None:
    told = named([f"fixed:category={LONG}{end}" for end in "abcd"])
    assert len({arm.short for arm in told.values()}) == 4
    assert len({arm.group for arm in told.values()}) == 4


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/x", "a/b", "..", "", "x\x00y", "Fraud, cards", "CON", "é", "a" * 300, ".hidden", "\ud800"]
)
def test_a_name_out_of_data_is_a_plain_file_in_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "assets"
    folder.mkdir()
    written = write_table(Table(name, pl.DataFrame({"a": [1]})), folder)
    assert {path.parent for path in written} == {folder}
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(path.name for path in written)
    assert all(path.stem.isascii() and not path.name.startswith(".") and len(path.name) < 100 for path in written)


def test_names_of_files_stay_as_they_are_where_they_can_and_never_become_one() -> None:
    assert file_name("rates-harmful") == "rates-harmful"
    odd = ["rates-a b", "rates-a_b", "rates-a/b", "rates-A-B", "rates-a-b", "../rates-a-b", "a" * 80, "a" * 81]
    assert len({file_name(name) for name in odd}) == len(odd)


def test_assets_of_a_hostile_scorer_stay_inside(tmp_path: Path, run) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    row = {name: None for name in tables.SUMMARY}
    row |= {"dataset": "d", "label": "harmful", "arm": "baseline", "kind": "baseline", "n": 3, "refused": 1, "rate": 0.3,
            "low": 0.1, "high": 0.6, "partial": 0, "broken": 0, "answered": 2, "n_failed": 0, "n_overlap": 0}  # fmt: skip
    rows = [row | {"scorer": "../../../escaped"}]
    pl.DataFrame(rows, tables.SUMMARY).write_parquet(folder / "summary.parquet")
    (folder / "run.json").write_text(json.dumps({"format": 1, "artefacts": {}}))
    code, _out, told = run("--run", folder, "report", "--assets", tmp_path / "deep" / "er" / "assets")
    assert code == 0, told
    assert not [path for path in tmp_path.rglob("*escaped*") if path.parent.name != "assets"]
    assert [path for path in tmp_path.rglob("*escaped*") if path.parent.name == "assets"]


def test_a_category_can_not_be_called_as_the_format_calls_its_metadata() -> None:
    with pytest.raises(UserError, match="can't be called '__metadata__'"):
        check_names(["a", "__metadata__"])
    check_names(["a", "metadata"])
