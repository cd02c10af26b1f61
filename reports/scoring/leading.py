"""Which scorer heads the page."""

from collections.abc import Mapping

import polars as pl

from data.contract import MACRO, SCORERS

FEW = 0.1  # of any arm's answers to one label's prompts


def trust(scorer: str) -> int:
    """A scorer's place in the order of trust, 0 for the best; what is not known comes last."""
    return [*SCORERS, scorer].index(scorer)


def best_scorer(counted: pl.DataFrame, failed: Mapping[str, float]) -> str | None:
    """The best scorer of these rows that failed on few answers at most; if all failed on more, the best."""
    there = [scorer for scorer in SCORERS if scorer in counted["scorer"]]
    return next((scorer for scorer in there if failed.get(scorer, 0.0) <= FEW), next(iter(there), None))


def leading_scorer(summary: pl.DataFrame) -> str | None:
    """The best scorer of a whole summary, if any answer counts."""
    return best_scorer(summary.filter(pl.col("n") > 0), failures(summary))


def failures(summary: pl.DataFrame) -> dict[str, float]:
    """Scorer -> the share of an arm's answers to one label's prompts that got no verdict, where it is largest."""
    groups = summary.filter(pl.col("dataset") != MACRO).group_by("scorer", "label", "arm")
    counts = groups.agg(pl.col("n").sum(), pl.col("n_failed").sum()).filter(pl.col("n") + pl.col("n_failed") > 0)
    worst = counts.group_by("scorer").agg((pl.col("n_failed") / (pl.col("n") + pl.col("n_failed"))).max())
    return dict(worst.iter_rows())
