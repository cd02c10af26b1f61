"""Base model against fine-tuned: do a category's activations point the same way in both?"""

import polars as pl

from reports import charts
from reports import wording as say
from reports.artefacts import Run
from reports.blocks import Block, Chart, Prose, Row, Section, Table

NOTE = (
    "Two models that differ in nothing would reach the ceiling (dashed): halves of one model's rows against each "
    "other, at the same n. The floor (grey) is the 95 % range with labels permuted. The base tokenizer splits a "
    "refusal token that the tuned one knows, so tagged text differs in its tokens; untagged is the same text in both."
)
MOST_PANELS = 9


def section(run: Run) -> Section | None:
    """A panel a category, and what leaves the floor."""
    diff = run.table("diff")
    if diff is None:
        return None
    names = diff["category"].unique(maintain_order=True).to_list()
    against = run.records.get("diff", {}).get("against")
    title = f"Model diffing against {say.name(against)}" if against else "Base model against fine-tuned"
    blocks: list[Block] = [Prose(finding(diff))]
    if drawn := diff.drop_nulls("cosine").height:
        panels = [panel for at, name in enumerate(names[:MOST_PANELS]) if (panel := _panel(diff, name, at))]
        caption = (
            f"Cosine of each category's direction in the two models by layer, with 95 % intervals ({drawn} values)."
        )
        blocks.append(Row(panels, caption))
    blocks += [Prose(NOTE, "note"), table(diff)]
    return Section("diff", title, blocks)


def finding(diff: pl.DataFrame) -> str:
    """How many values stand clear of the floor and of the ceiling."""
    judged = diff.drop_nulls(["low", "high", "floor_high", "ceiling"])
    parts = []
    for text in judged["text"].unique(maintain_order=True):
        rows = judged.filter(pl.col("text") == text)
        above = rows.filter(pl.col("low") > pl.col("floor_high")).height
        below = rows.filter(pl.col("high") < pl.col("ceiling")).height
        parts.append(
            f"{say.name(text)}: {above} of {rows.height} values lie above the floor, {below} below the ceiling"
        )
    return (
        ("; ".join(parts) + " (each by its own 95 % interval, not corrected for how many there are).")
        if parts
        else "No value has an interval."
    )


def table(diff: pl.DataFrame) -> Table:
    """All values."""
    shown = say.table_of(
        diff,
        ("category", say.name, "category"),
        ("layer", say.number, "layer"),
        ("text", say.name, "text"),
        ("cosine", _short, "cosine"),
        ("95 % interval", say.number_span, "low", "high"),
        ("ceiling", _short, "ceiling"),
        ("floor", say.number_span, "floor_low", "floor_high"),
        ("n", say.number, "n"),
    )
    return Table("diff", diff, shown, "The numbers", folded=True)


def _panel(diff: pl.DataFrame, name: str | None, at: int) -> Chart | None:
    rows = diff.filter(pl.col("category").eq_missing(name)).drop_nulls("cosine")
    if rows.is_empty():
        return None
    series = rows["text"].unique(maintain_order=True).to_list()
    data = rows.select(pl.col("text").alias("series"), "layer", pl.col("cosine").alias("value"), "low", "high", "n")
    ends = [rows[column].mean() for column in ("ceiling", "floor_low", "floor_high")]
    ceiling, low, high = (end if isinstance(end, float) else None for end in ends)
    floor = (low, high) if low is not None and high is not None else None
    chart = charts.lines(data, series, y="cosine", zero=False, ceiling=ceiling, floor=floor)
    return Chart(f"diff-{at}", chart, f"n = {rows['n'].max()}", say.name(name, 40))


def _short(value: float | None) -> str:
    return say.number(value, 3)
