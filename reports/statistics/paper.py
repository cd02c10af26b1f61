"""The papers' figures and a run's own, data set by data set, and their sums: the table `paper`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from data.contract import LABELS, MACRO, POOLED
from data.store.tables import PAPER_ARM, Values, paper
from reports.scoring.leading import leading_scorer
from reports.statistics import published
from reports.statistics.summary import summarise

SUMS = {POOLED: ("All prompts", "Prompts of "), MACRO: ("Mean of sets", "Mean of ")}  # of all sets, of some
TITLES = {"jbb": "JailbreakBench"}


@dataclass(frozen=True)
class Row:
    """One data set and label, or several of them together.

    Attributes:
        title: The data set's name in the papers.
        label: `benign` or `harmful`.
        n: Prompts in the papers; None where they don't have the set.
        percents: The papers' rates by arm, in percent.
        ours: This run's rows of the summary by arm.
        missing: How to get the set, where it was to be run and was not there.
        sums: A key of `SUMS`, if it is several sets together.
    """

    title: str
    label: str
    n: int | None
    percents: dict[str, float]
    ours: dict[str, Values] = field(default_factory=dict)
    missing: str | None = None
    sums: str | None = None


def whole(
    summary: pl.DataFrame | None, scores: pl.DataFrame | None, missing: Mapping[str, str], seed: int = 0
) -> tuple[list[Row], str | None]:
    """Every row of the papers' table with ours, their sums, and who scored; what is missing has nothing of ours.

    Args:
        summary: Of the run.
        scores: Those that the summary counts, for the sums over the papers' sets alone.
        missing: Sets that were to be run and were not there, as `--data` takes them -> how to get them.
        seed: Of the bootstraps.
    """
    scorer = None if summary is None else leading_scorer(summary)
    sets = None if summary is None or scorer is None else summary.filter(pl.col("n") > 0, scorer=scorer)
    theirs = every(sets, missing)
    together = None if scorer is None else summed_scores(scores, scorer, theirs, seed)
    rows: list[Row] = []
    for label in sorted(LABELS):
        half = [row for row in theirs if row.label == label]
        rows += [*half, *sums(half, together)]
    return rows + others(sets, theirs, missing), scorer


def every(summary: pl.DataFrame | None, missing: Mapping[str, str] | None = None) -> list[Row]:
    """All data sets that the papers report, in their order; this run's may be named with or without their split."""
    rows = []
    for title, source, label, n, percents in published.PUBLISHED:
        names = [source, source.partition("/")[0]]
        here = None if summary is None else summary.filter(pl.col("dataset").is_in(names), label=label)
        ours = {} if here is None else {row["arm"]: row for row in here.to_dicts()}
        why = None if ours else (missing or {}).get(source)
        if source != POOLED:
            rows.append(Row(title, label, n, dict(zip(published.ARMS, percents, strict=True)), ours, why))
    return rows


def others(summary: pl.DataFrame | None, theirs: Sequence[Row], missing: Mapping[str, str]) -> list[Row]:
    """Rows of their own for data sets that the papers don't report."""
    known = {(ours["dataset"], ours["label"]) for row in theirs for ours in row.ours.values()}
    rows = []
    if summary is not None:
        alone = summary.filter(~pl.col("dataset").is_in([POOLED, MACRO]) & pl.col("label").is_in(LABELS))
        for (dataset, label), part in alone.group_by("dataset", "label", maintain_order=True):
            if (dataset, label) not in known:
                ours = {row["arm"]: row for row in part.to_dicts()}
                rows.append(Row(TITLES.get(str(dataset), str(dataset)), str(label), None, {}, ours))
    sources = {row.source for row in published.PUBLISHED}
    return rows + [Row(source, "–", None, {}, {}, how) for source, how in missing.items() if source not in sources]


def summed_scores(scores: pl.DataFrame | None, scorer: str, rows: Iterable[Row], seed: int) -> pl.DataFrame | None:
    """The summary over these rows' data sets alone: what else was run stays out of the sums."""
    keys = {(ours["dataset"], ours["label"]) for row in rows for ours in row.ours.values()}
    if scores is None or not keys:
        return None
    wanted = pl.DataFrame(sorted(keys), {"dataset": pl.String, "label": pl.String}, orient="row")
    part = scores.filter(scorer=scorer).join(wanted, on=["dataset", "label"], how="semi", maintain_order="left")
    themes = part.select("dataset", "id", "theme") if "theme" in part.columns else None
    return summarise(part.with_columns(pl.col("fitted").fill_null(False)), seed, themes)


def sums(half: Sequence[Row], together: pl.DataFrame | None) -> list[Row]:
    """All prompts of one label, and the mean of its sets; the papers' figures are summed over the same sets."""
    there = [row for row in half if row.ours]
    if not there or together is None:
        return []
    label, short = there[0].label, f"{len(there)} of {len(half)} sets" if len(there) < len(half) else ""
    n = sum(row.n or 0 for row in there)
    refused = {arm: sum(round((row.n or 0) * row.percents[arm] / 100) for row in there) for arm in published.ARMS}
    percents = {
        POOLED: {arm: 100 * count / n for arm, count in refused.items()},
        MACRO: {arm: sum(row.percents[arm] for row in there) / len(there) for arm in published.ARMS},
    }
    rows = []
    for name, title in SUMS.items():
        ours = {row["arm"]: row for row in together.filter(dataset=name, label=label).to_dicts()}
        rows.append(Row(f"{title[bool(short)]}{short}", label, n, percents[name], ours, sums=name))
    return rows


def frame_of(rows: Iterable[Row], arms: Sequence[str]) -> pl.DataFrame:
    """The numbers, with columns for these arms."""
    return pl.DataFrame(
        [
            {"dataset": row.title, "label": row.label, "n_published": row.n, "missing": row.missing}
            | {f"published {arm}": percent / 100 for arm, percent in row.percents.items()}
            | {f"{arm} {key}": row.ours.get(arm, {}).get(key) for arm in arms for key in PAPER_ARM}
            for row in rows
        ],
        schema=paper(published.ARMS, arms),
    )
