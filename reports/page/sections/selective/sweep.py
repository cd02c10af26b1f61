"""The sweep over layers and strengths, on validation rows, and what was chosen."""

from typing import Any

import polars as pl

from reports.page import charts
from reports.page import wording as say
from reports.page.blocks import Block, Chart, Prose, Row, Section, Table
from reports.page.names import named
from reports.page.run import Run

MOST_PANELS = 6


def section(run: Run) -> Section | None:
    """A heat map an arm and label."""
    sweep = run.table("sweep")
    if sweep is None:
        return None
    place = {arm: at for at, arm in enumerate(sweep["arm"].unique(maintain_order=True))}
    ordered = sweep.sort(pl.col("arm").replace_strict(place), "label", maintain_order=True)  # benign first
    panels = [
        panel
        for at, (key, rows) in enumerate(ordered.group_by("arm", "label", "strength_unit", maintain_order=True))
        if (panel := heat_map(at, short(sweep, key[0]), key[1:], rows)) is not None
    ]
    caption = (
        "On rows kept for choosing, not for evaluation. The first token is a check that steering does something; "
        "settings with a dot answered, and their text decided. Framed: the setting that was chosen."
    )
    blocks: list[Block] = [Prose(chosen(sweep)), *answered(sweep)]
    blocks += [Row(panels[:MOST_PANELS], caption)] if panels else []
    return Section("sweep", "Sweep of layers and strengths", [*blocks, table(sweep)])


def heat_map(at: int, called: str | None, key: tuple[Any, ...], rows: pl.DataFrame) -> Chart | None:
    """One arm and label: share refused where every setting answered, else the first token's probability."""
    label, unit = key
    value = "refused" if rows["refused"].null_count() == 0 else "refusal_probability"
    drawn = rows.select(
        "layer", "strength", pl.col(value).alias("value"), "broken", "n", "chosen",
        (pl.col("refused").is_not_null() & pl.lit(value != "refused")).alias("answered"),
    ).drop_nulls(["layer", "strength"])  # fmt: skip
    if drawn["value"].drop_nulls().is_empty():
        return None
    title = "refused" if value == "refused" else "probability of a refusal token"
    caption = f"{title.capitalize()}, strength in {say.units(unit)}; n = {say.count_range(drawn['n'])} a cell."
    heading = f"{say.name(called, 40)}: {say.PROMPTS.get(label, say.name(label))}"
    return Chart(f"sweep-{at}", charts.heat(drawn, title), caption, heading)


def answered(sweep: pl.DataFrame) -> list[Table]:
    """Settings that generated text, where not every one did: what became of harmful and benign rows."""
    tried = sweep.filter(pl.col("refused").is_not_null())
    if tried.is_empty() or tried.height == sweep.height:
        return []
    keys = ["arm", "layer", "strength", "strength_unit"]
    sides = [
        tried.filter(pl.col("label") == label).select(
            *keys, *(pl.col(name).alias(f"{name} {label}") for name in ("n", "refused", "broken", "chosen"))
        )
        for label in say.LABELS
    ]
    frame = sides[0].join(sides[1], on=keys, how="full", coalesce=True, nulls_equal=True, maintain_order="left_right")
    shown = say.table_of(
        frame,
        ("arm", lambda arm: short(sweep, arm), "arm"),
        ("layer", say.number, "layer"),
        ("strength", say.number, "strength"),
        ("benign n", say.number, "n benign"),
        ("benign refused", say.percent, "refused benign"),
        ("benign broken", say.percent, "broken benign"),
        ("harmful n", say.number, "n harmful"),
        ("harmful refused", say.percent, "refused harmful"),
        ("harmful broken", say.percent, "broken harmful"),
        ("chosen", lambda *flags: "chosen" if any(flags) else "", "chosen benign", "chosen harmful"),
    )
    return [Table("sweep-answered", frame, shown, "Settings that answered")]


def chosen(sweep: pl.DataFrame) -> str:
    """What was chosen, in a sentence."""
    picked = sweep.filter("chosen").select("arm", "layer", "strength", "strength_unit").unique(maintain_order=True)
    steered = sweep.filter(pl.col("arm") != "baseline")
    tried = steered.select("arm", "layer", "strength", "strength_unit").unique().height
    if picked.is_empty():
        return f"{say.counted(tried, 'setting')} tried, none chosen."
    texts = [
        f"{short(sweep, arm)} at layer {say.number(layer)}, strength {say.number(strength)}"
        for arm, layer, strength, _ in picked.iter_rows()
    ]
    measured = " or ".join(map(say.units, picked["strength_unit"].unique(maintain_order=True)))
    flattering = "The rates that led to a choice flatter it; those of the evaluation don't."
    return f"Chosen of {say.counted(tried, 'setting')}: {say.listed(texts)} (in {measured}). {flattering}"


def short(sweep: pl.DataFrame, arm: str | None) -> str:
    """An arm's name among those of the sweep."""
    return say.name(arm if arm is None else named(sweep["arm"].drop_nulls())[arm].short)


def table(sweep: pl.DataFrame) -> Table:
    """All cells."""
    shown = say.table_of(
        sweep,
        ("arm", lambda arm: short(sweep, arm), "arm"),
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
