"""What the documents say is what there is: file formats, commands, links."""

import re

import polars as pl
import pytest

from data.store.tables import DIFF, GENERATIONS, SCORES, SUMMARY, SWEEP, TABLES, TRACES
from tests import ROOT

FILES = (ROOT / "docs" / "files.md").read_text()


def documented(name):
    """Column -> type, of the table under the heading that names a file."""
    section = re.search(rf"^### [^\n]*`{name}\.parquet`.*?(?=^##)", FILES, re.MULTILINE | re.DOTALL)
    assert section is not None, name
    rows = re.findall(r"^\| (`[^|]*`) \| (\w+) \|", section[0], re.MULTILINE)
    return {column: kind for names, kind in rows for column in re.findall(r"`([^`]+)`", names)}


@pytest.mark.parametrize(
    ("name", "schema"),
    [("generations", GENERATIONS), ("scores", SCORES), ("summary", SUMMARY), ("sweep", SWEEP), ("diff", DIFF), ("traces", TRACES)],
)  # fmt: skip
def test_every_column_of_a_table_is_documented_with_its_type(name, schema):
    names = {pl.String: "String", pl.Int64: "Int64", pl.Float64: "Float64", pl.Boolean: "Boolean"}
    wanted = {column: names.get(kind, "List") for column, kind in schema.items()}
    assert documented(name) == wanted


@pytest.mark.parametrize(
    "name",
    [
        "effects",
        "capability",
        "logit_lens",
        "probe_quality",
        "probe_layers",
        "probe_roc",
        "rubric",
        "judges",
        "judges_classes",
        "judges_rates",
        "judges_disagreements",
    ],
)
def test_columns_that_a_report_reads_are_documented(name):
    names = {pl.String: "String", pl.Int64: "Int64", pl.Float64: "Float64", pl.Boolean: "Boolean"}
    told = documented(name)
    assert {column: told.get(column) for column in TABLES[name]} == {
        column: names[kind] for column, kind in TABLES[name].items()
    }
