"""The sweep over layers and strengths, on validation rows, and what was chosen."""

import polars as pl

from reports import charts
from reports import wording as say
from reports.artefacts import Run
from reports.blocks import Block, Chart, Prose, Row, Section, Table

MOST_PANELS = 6


def section(run: Run) -> Section | None:
    """A heat map an arm and label."""
    sweep = run.table("sweep")
    if sweep is None:
        return None
    panels = []
    for (arm, label, unit), rows in sweep.group_by("arm", "label", "strength_unit", maintain_order=True):
        value = "refused" if rows["refused"].drop_nulls().len() else "refusal_probability"
        drawn = rows.select("layer", "strength", pl.col(value).alias("value"), "broken", "n", "chosen").drop_nulls(
            ["layer", "strength"]
        )
        if drawn["value"].drop_nulls().is_empty():
            continue
        title = "refused" if value == "refused" else "probability of a refusal token"
        heading = f"{say.name(arm, 40)}, {label or 'no label'}"
        sizes = f"{title}, in units of {say.name(unit)}; n = {say.count_range(drawn['n'])} a cell"
        panels.append(Chart(f"sweep-{len(panels)}", charts.heat(drawn, title), sizes, heading))
    caption = (
        "Share refused at each layer and strength, on rows kept for choosing, not for evaluation. Framed: the "
        "setting that was chosen."
    )
    blocks: list[Block] = [
        Prose(chosen(sweep)),
        *([Row(panels[:MOST_PANELS], caption)] if panels else []),
        table(sweep),
    ]
    return Section("sweep", "Sweep of layers and strengths", blocks)


def chosen(sweep: pl.DataFrame) -> str:
    """What was chosen, in a sentence."""
    picked = sweep.filter("chosen").select("arm", "layer", "strength", "strength_unit").unique(maintain_order=True)
    tried = sweep.select("layer", "strength").unique().height
    if picked.is_empty():
        return f"{tried} settings tried, none chosen."
    texts = [
        f"{say.name(arm)} at layer {layer}, strength {say.number(strength)} ({say.name(unit)})"
        for arm, layer, strength, unit in picked.iter_rows()
    ]
    flattering = "The rates that led to a choice flatter it; those of the evaluation don't."
    return f"Of {tried} settings: {say.listed(texts)}. {flattering}"


def table(sweep: pl.DataFrame) -> Table:
    """All cells."""
    shown = say.table_of(
        sweep,
        ("arm", say.name, "arm"),
        ("label", say.name, "label"),
        ("layer", say.number, "layer"),
        ("strength", say.number, "strength"),
        ("unit", say.name, "strength_unit"),
        ("n", say.number, "n"),
        ("refused", say.percent, "refused"),
        ("probability of a refusal token", say.percent, "refusal_probability"),
        ("broken", say.percent, "broken"),
        ("chosen", lambda chosen: "chosen" if chosen else "", "chosen"),
    )
    return Table("sweep", sweep, shown, "The numbers", folded=True)
