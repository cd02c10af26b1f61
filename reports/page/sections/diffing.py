"""Base model against fine-tuned: do a category's activations point the same way in both?"""

import polars as pl

from reports.page import charts
from reports.page import wording as say
from reports.page.blocks import Block, Chart, Prose, Row, Section, Table
from reports.page.run import Run

NOTE = (
    "Two models that differ in nothing would reach the ceiling (dotted): halves of one model's rows against each "
    "other, at the same n. The floor (grey) is the 95 % range with labels permuted. Tagged text ends with a refusal "
    "token; untagged is the bare prompt. "
)
SAME_IDS = "Both models read the same token ids."
OWN_SPLIT = (
    "As published, the base split each refusal token in its own way and was read at its last piece, “]” for every "
    "category: tagged values compare different tokens."
)
MOST_PANELS = 9
BOUNDS = ("low", "high", "ceiling", "floor_low", "floor_high")


def section(run: Run) -> Section | None:
    """A panel a category, and what leaves the floor."""
    diff = run.table("diff")
    if diff is None:
        return None
    names = diff["category"].unique(maintain_order=True).to_list()
    base, tuned, own_split = compared(run)
    title = f"{say.name(tuned, 40)} against {say.name(base, 40)}" if base and tuned else "Base model against fine-tuned"
    blocks: list[Block] = [Prose(finding(diff))]
    if drawn := diff.drop_nulls("cosine").height:
        domain = _domain(diff)
        panels = [panel for at, name in enumerate(names[:MOST_PANELS]) if (panel := _panel(diff, name, at, domain))]
        caption = (
            f"Cosine of each category's direction in the two models by layer, with 95 % intervals ({drawn} values)."
        )
        blocks.append(Row(panels, caption))
    blocks += [Prose(NOTE + (OWN_SPLIT if own_split else SAME_IDS), "note"), table(diff)]
    return Section("diff", title, blocks)


def compared(run: Run) -> tuple[str | None, str | None, bool]:
    """Names of the two models, and whether each read its own tokens, as far as the record says so."""
    key = run.records.get("diff", {}).get("key")
    key = key if isinstance(key, dict) else {}
    base, tuned = (part.get("model") if isinstance(part := key.get(side), dict) else None for side in ("base", "tuned"))
    return (str(base) if base else None), (str(tuned) if tuned else None), key.get("own_split") is True


def finding(diff: pl.DataFrame) -> str:
    """How many values stand clear of the floor and of the ceiling."""
    judged = diff.drop_nulls(["low", "high", "floor_high", "ceiling"])
    parts = []
    for text in judged["text"].unique(maintain_order=True):
        rows = judged.filter(pl.col("text") == text)
        above = rows.filter(pl.col("low") > pl.col("floor_high")).height
        below = rows.filter(pl.col("high") < pl.col("ceiling")).height
        counted = f"{above} of {rows.height} values lie above the floor, {below} below the ceiling"
        parts.append(f"{say.name(text)}: {counted}")
    if not parts:
        return "No value has an interval."
    return "; ".join(parts) + " (each by its own 95 % interval, not corrected for how many there are)."


def table(diff: pl.DataFrame) -> Table:
    """All values."""
    shown = say.table_of(
        diff,
        ("category", say.name, "category"),
        ("layer", say.number, "layer"),
        ("text", say.name, "text"),
        ("cosine", say.number, "cosine"),
        ("95 % interval", say.number_span, "low", "high"),
        ("ceiling", say.number, "ceiling"),
        ("floor", say.number_span, "floor_low", "floor_high"),
        ("n", say.number, "n"),
    )
    return Table("diff", diff, shown, "The numbers", folded=True)


def _panel(diff: pl.DataFrame, name: str | None, at: int, domain: tuple[float, float] | None) -> Chart | None:
    rows = diff.filter(pl.col("category").eq_missing(name)).drop_nulls("cosine")
    if rows.is_empty():
        return None
    series = rows["text"].unique(maintain_order=True).to_list()
    data = rows.select(pl.col("text").alias("series"), "layer", pl.col("cosine").alias("value"), *BOUNDS, "n")
    sizes = ", ".join(f"{say.name(text)} n = {rows.filter(pl.col('text') == text)['n'].max()}" for text in series)
    chart = charts.lines(data, series, y="cosine", zero=False, domain=domain)
    return Chart(f"diff-{at}", chart, sizes, say.name(name, 40))


def _domain(diff: pl.DataFrame) -> tuple[float, float] | None:
    """All that the panels show, so that they can be held against each other."""
    drawn = diff.drop_nulls("cosine").select(pl.min_horizontal("cosine", *BOUNDS).min().alias("low"),
                                             pl.max_horizontal("cosine", *BOUNDS).max().alias("high"))  # fmt: skip
    low, high = drawn.row(0)
    return None if low is None or high is None else (min(low, 0.0), max(high, 1.0))
