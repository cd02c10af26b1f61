"""What steering cost: side effects on ordinary text, and capability."""

import polars as pl

from reports import charts
from reports import wording as say
from reports.artefacts import Run
from reports.blocks import Block, Chart, Prose, Row, Section, Table

Z = 1.959963984540054
MOST_PANELS = 12
CAPTION = (
    "Capability by task, ± 1.96 standard errors. The items are the same in every arm, so these unpaired bars do "
    "not settle whether two arms differ."
)


def effects(run: Run) -> Section | None:
    """A panel a measure."""
    table = run.table("effects")
    if table is None:
        return None
    panels = []
    for (dataset, measure), rows in table.group_by("dataset", "measure", maintain_order=True):
        data = rows.drop_nulls("value").select(
            say.column(rows.drop_nulls("value"), say.arm, "arm").alias("row"), "value", "low", "high", "n"
        )
        if data.height:
            chart = charts.intervals(data, data["row"].unique(maintain_order=True).to_list(), x=say.name(measure, 40))
            panels.append(
                Chart(
                    f"effects-{len(panels)}",
                    chart,
                    f"{say.name(dataset)}, n = {data['n'].max()}",
                    say.name(measure, 40),
                )
            )
    shown = say.table_of(
        table,
        ("data set", say.name, "dataset"),
        ("arm", say.name, "arm"),
        ("measure", say.name, "measure"),
        ("value", say.number, "value"),
        ("95 % interval", say.number_span, "low", "high"),
        ("n", say.number, "n"),
    )
    caption = "What steering does to text that has nothing to do with refusal, with 95 % intervals."
    blocks: list[Block] = [Row(panels[:MOST_PANELS], caption)] if panels else []
    return Section(
        "effects", "Side effects", [*blocks, Table("effects", table, shown, "The numbers", folded=bool(panels))]
    )


def capability(run: Run) -> Section | None:
    """A panel a task, and a warning where the steering never reached what was scored."""
    table = run.table("capability")
    if table is None:
        return None
    unsteered = table.filter((pl.col("arm") != "baseline") & ~pl.col("scored_logits_changed").fill_null(False))
    measured = table.join(unsteered, on=["task", "arm", "metric"], how="anti", nulls_equal=True).drop_nulls("value")
    panels = []
    for (task, metric), rows in measured.group_by("task", "metric", maintain_order=True):
        spread = Z * pl.col("stderr").fill_null(0.0)
        data = rows.select(
            say.column(rows, say.arm, "arm").alias("row"), "value", "n",
            (pl.col("value") - spread).alias("low"), (pl.col("value") + spread).alias("high"),
        )  # fmt: skip
        chart = charts.intervals(data, data["row"].unique(maintain_order=True).to_list(), x=say.name(metric, 40))
        panels.append(Chart(f"capability-{len(panels)}", chart, f"n = {data['n'].max()}", say.name(task, 40)))
    blocks: list[Block] = [
        Prose(
            f"{say.name(arm)} on {say.name(task)}: no scored logit changed, so this is the unsteered model and no "
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
        ("arm", say.name, "arm"),
        ("metric", say.name, "metric"),
        ("value", say.number, "value"),
        ("standard error", say.number, "stderr"),
        ("n", say.number, "n"),
        ("scored logits changed", say.number, "scored_logits_changed"),
    )
    return Section(
        "capability", "Capability", [*blocks, Table("capability", table, shown, "The numbers", folded=bool(panels))]
    )
