"""What steering cost: side effects on ordinary text, and capability."""

import re
from collections.abc import Mapping

import polars as pl

from reports.page import charts
from reports.page import wording as say
from reports.page.blocks import Block, Chart, Prose, Row, Section, Table
from reports.page.names import Arm
from reports.page.run import Run

Z = 1.959963984540054
MOST_PANELS = 12
EFFECTS = (
    "What steering does to text that it should leave alone, with 95 % intervals. No bar: the rows are too few to bound "
    "the number on both sides."
)
CAPTION = (
    "Capability by task, ± 1.96 standard errors. The items are the same in every arm, so these unpaired bars do "
    "not settle whether two arms differ."
)
MEASURES = {
    r"kl_first_mean": "KL of the first token, nats, mean",
    r"kl_first_p95": "KL of the first token, nats, 95th percentile",
    r"kl_(\d+)_mean": r"KL a token of the first \1, nats, mean",
    r"kl_(\d+)_p95": r"KL a token of the first \1, nats, 95th percentile",
    r"broken": "broken answers, share",
    r"perplexity_ratio": "perplexity, over the baseline's",
}


def effects(run: Run) -> Section | None:
    """A panel a measure."""
    table = run.table("effects")
    if table is None:
        return None
    panels, arms = [], run.named()
    for (dataset, measure), rows in table.group_by("dataset", "measure", maintain_order=True):
        data = drawn(rows.drop_nulls(["arm", "value"]), arms)
        if data.height:
            title = measured(measure)
            chart = charts.intervals(data, data["row"].unique(maintain_order=True).to_list(), x=title)
            counted = f"{say.name(dataset)}, n = {data['n'].max()}"
            panels.append(Chart(f"effects-{len(panels)}", chart, counted, title))
    shown = say.table_of(
        table,
        ("data set", say.name, "dataset"),
        ("arm", lambda arm: say.name(arm if arm is None else arms[arm].short), "arm"),
        ("measure", measured, "measure"),
        ("value", say.number, "value"),
        ("95 % interval", say.number_span, "low", "high"),
        ("n", say.number, "n"),
    )
    blocks: list[Block] = [Row(panels[:MOST_PANELS], EFFECTS)] if panels else []
    blocks.append(Table("effects", table, shown, "The numbers", folded=bool(panels)))
    return Section("effects", "Side effects", blocks)


def measured(name: str | None) -> str:
    """A measure's name in words."""
    for pattern, words in MEASURES.items():
        if found := re.fullmatch(pattern, name or ""):
            return found.expand(words)
    return say.name(name, 40)


def drawn(rows: pl.DataFrame, arms: Mapping[str, Arm]) -> pl.DataFrame:
    """What a panel shows; an interval that is open at one end can't be drawn."""
    is_open = pl.col("low").is_null() | pl.col("high").is_null()
    ends = [pl.when(is_open).then(pl.col("value")).otherwise(pl.col(name)).alias(name) for name in ("low", "high")]
    return rows.select(say.column(rows, lambda arm: arms[arm].short, "arm").alias("row"), "value", *ends, "n")


def capability(run: Run) -> Section | None:
    """A panel a task, and a warning where the steering never reached what was scored."""
    table = run.table("capability")
    if table is None:
        return None
    unsteered = table.filter((pl.col("arm") != "baseline") & ~pl.col("scored_logits_changed").fill_null(False))
    measured = table.join(unsteered, on=["task", "arm", "metric"], how="anti", nulls_equal=True)
    measured = measured.drop_nulls(["arm", "value"])
    panels, arms = [], run.named()
    for (task, metric), rows in measured.group_by("task", "metric", maintain_order=True):
        spread = Z * pl.col("stderr").fill_null(0.0)
        data = rows.select(
            say.column(rows, lambda arm: arms[arm].short, "arm").alias("row"), "value", "n",
            (pl.col("value") - spread).alias("low"), (pl.col("value") + spread).alias("high"),
        )  # fmt: skip
        chart = charts.intervals(data, data["row"].unique(maintain_order=True).to_list(), x=say.name(metric, 40))
        panels.append(Chart(f"capability-{len(panels)}", chart, f"n = {data['n'].max()}", say.name(task, 40)))
    blocks: list[Block] = [
        Prose(
            f"{say.name(arm if arm is None else arms[arm].short)} on {say.name(task)}: no scored logit changed, so this is the unsteered model and no "
            "measure of the arm.",
            "warning",
        )
        for task, arm in unsteered.select("task", "arm").unique(maintain_order=True).iter_rows()
    ]
    if panels:
        blocks.append(Row(panels[:MOST_PANELS], CAPTION))
    shown = say.table_of(
        table,
        ("task", say.name, "task"),
        ("arm", lambda arm: say.name(arm if arm is None else arms[arm].short), "arm"),
        ("metric", say.name, "metric"),
        ("value", say.number, "value"),
        ("standard error", say.number, "stderr"),
        ("n", say.number, "n"),
        ("scored logits changed", say.number, "scored_logits_changed"),
    )
    blocks.append(Table("capability", table, shown, "The numbers", folded=bool(panels)))
    return Section("capability", "Capability", blocks)
