"""Methods compared: what answered some prompts alone is said to have, and is drawn beside no other."""

import polars as pl

from commands.sweep import left_behind, none_chosen, shown_comparison
from data.store.tables import answered_most
from reports.page.blocks import Chart, Prose, Table
from reports.page.run import open_run
from reports.page.sections.selective import compared
from tests.made.runs import synthetic_run


def test_what_was_left_after_a_first_round_is_counted_and_stands_beside_no_other(tmp_path):
    run = open_run(synthetic_run(tmp_path / "run", 120))
    whole = run.table("compared")
    assert whole is not None and not compared.left_behind(whole) and not left_behind(whole)
    few = whole.filter(method="contrastive").with_columns(
        method=pl.lit("pca"),
        n_benign=pl.lit(48, pl.Int64),
        n_harmful=pl.lit(48, pl.Int64),
        promised=False,
        chosen=False,
        benign=0.0,
    )
    table = pl.concat([few, whole])
    assert answered_most(table).equals(whole)
    told = left_behind(table)
    assert (
        "1 of 4 methods and controls answered 96 of 150 rows, and were left there" in told
        and "only random went on" in told
    )
    assert shown_comparison(table).equals(shown_comparison(whole))
    assert none_chosen(table, 0.95) == none_chosen(whole, 0.95)
    section = compared.section(type(run)(run.folder, run.records, run.tables | {"compared": table}, run.vectors))
    assert section is not None
    said, lines, kept, reached = section.blocks
    assert (
        isinstance(said, Prose) and isinstance(lines, Chart) and isinstance(kept, Table) and isinstance(reached, Table)
    )
    assert (
        "1 of 4 methods and controls, each at a budget, answered 48 of the benign and 48 of the harmful prompts alone"
        in said.text
    )
    assert "The best control that answered every prompt" in said.text
    assert "benign n = 90, harmful n = 60" in lines.caption and "pca" not in str(lines.chart.to_dict())
    assert (
        "pca" not in str(kept.frame["method"].to_list())
        and kept.shown is not None
        and set(kept.shown["benign n"]) == {"90"}
    )
    assert set(reached.frame.filter(method="pca")["n_benign"]) == {48}
