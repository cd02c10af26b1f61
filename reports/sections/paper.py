"""The papers' figures beside this run's, where the data set is theirs."""

from dataclasses import dataclass

import polars as pl

from reports import published
from reports import wording as say
from reports.artefacts import Run
from reports.blocks import Prose, Section, Table
from reports.sections.answer import SCORERS, kind_of

MOST_ARMS = 6


@dataclass(frozen=True)
class Row:
    """One data set and label: the papers' three rates and this run's rows by arm."""

    title: str
    label: str
    n: int
    percents: dict[str, float]
    ours: dict[str, dict[str, object]]


def section(run: Run) -> Section | None:
    """A row a data set that the papers have too, or None where there is none."""
    summary = run.table("summary")
    if summary is None:
        return None
    scorers = summary.filter(pl.col("n") > 0)["scorer"].unique().to_list()
    scorer = next((scorer for scorer in SCORERS if scorer in scorers), None)
    if scorer is None:
        return None
    arms = [arm for arm in run.arms() if kind_of(arm) != "random"][:MOST_ARMS]
    rows = matched(summary.filter((pl.col("scorer") == scorer) & (pl.col("n") > 0)))
    if not rows:
        return None
    model = run.first("model")
    warning = (
        f" The papers' model is {published.MODEL}; this is {say.name(model)}: the figures stand beside each other, "
        "no more."
    )
    text = (
        f"Refused, in percent, as published for layer {published.LAYER} and strengths "
        f"{say.signed(f'{published.STRENGTH_BENIGN:g}')} and +{published.STRENGTH_HARMFUL:g} (categorical: one "
        f"vector a prompt; low-rank: one combination for all), and here, scored by {scorer}, with Wilson's 95 % "
        f"intervals. Their judge, template and answers' length differ.{warning if model != published.MODEL else ''}"
    )
    return Section(
        "paper", "Beside the papers", [Prose(text), Table("paper", frame_of(rows, arms), shown_of(rows, arms))]
    )


def matched(summary: pl.DataFrame) -> list[Row]:
    """Data sets of this run that the papers report, in the papers' order; named with or without their split."""
    theirs = published.table().filter(pl.col("source") != published.POOLED)
    rows = []
    for (title, source, label), part in theirs.group_by("title", "source", "label", maintain_order=True):
        names = [source, str(source).partition("/")[0]]
        ours = summary.filter(pl.col("dataset").is_in(names) & (pl.col("label") == label))
        if ours.height:
            percents = {arm: percent for arm, percent in part.select("arm", "percent").iter_rows()}
            rows.append(
                Row(str(title), str(label), int(part["n"][0]), percents, {row["arm"]: row for row in ours.to_dicts()})
            )
    return rows


def frame_of(rows: list[Row], arms: list[str]) -> pl.DataFrame:
    """The numbers."""
    return pl.DataFrame(
        [
            {"dataset": row.title, "label": row.label, "n_published": row.n}
            | {f"published {arm}": row.percents[arm] / 100 for arm in published.ARMS}
            | {f"{arm} {key}": row.ours.get(arm, {}).get(key) for arm in arms for key in ("n", "rate", "low", "high")}
            for row in rows
        ],
        infer_schema_length=None,
    )


def shown_of(rows: list[Row], arms: list[str]) -> pl.DataFrame:
    """What stands on the page."""
    columns: dict[str, list[str]] = {
        "data set": [row.title for row in rows],
        "prompts": [row.label for row in rows],
        "n there": [f"{row.n:,}" for row in rows],
        "n here": [say.count_range(pl.Series([ours["n"] for ours in row.ours.values()])) for row in rows],
    }
    columns |= {f"papers: {arm}": [f"{row.percents[arm]:.2f} %" for row in rows] for arm in published.ARMS}
    columns |= {f"here: {say.arm(arm)}": [_ours(row.ours.get(arm)) for row in rows] for arm in arms}
    return pl.DataFrame(columns)


def _ours(row: dict[str, object] | None) -> str:
    if row is None:
        return "–"
    rate, low, high = (value if isinstance(value, float) else None for value in (row["rate"], row["low"], row["high"]))
    interval = say.span(low, high).replace(" ", "\u00a0")
    return f"{say.percent(rate)} ({interval})"
