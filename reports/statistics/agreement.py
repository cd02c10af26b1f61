"""Do the scorers agree? Cohen's kappa of every pair of them on the answers that both scored."""

import itertools
from math import isfinite

import numpy as np
import polars as pl

from data.contract import SCORED

KEY = ("dataset", "id", "arm")
SCHEMA = {
    "first": pl.String, "second": pl.String, "n": pl.Int64, "both": pl.Int64, "first_only": pl.Int64,
    "second_only": pl.Int64, "neither": pl.Int64, "agreement": pl.Float64, "kappa": pl.Float64,
    "kappa_low": pl.Float64, "kappa_high": pl.Float64,
}  # fmt: skip


def agreement(scores: pl.DataFrame) -> pl.DataFrame:
    """One row a pair of scorers: counts of answers refused by both, one or none, and Cohen's kappa of `refused`.

    Kappa (Cohen 1960) with its 95 % interval (Fleiss, Cohen and Everitt 1969), both from statsmodels; null where it does
    not exist, because both scorers gave one and the same verdict throughout.
    """
    present = [name for name in SCORED if name in set(scores["scorer"])]
    refused = {
        name: scores.filter((pl.col("scorer") == name) & pl.col("refused").is_not_null()).select(*KEY, "refused")
        for name in present
    }
    rows = [
        _pair(first, second, refused[first], refused[second]) for first, second in itertools.combinations(present, 2)
    ]
    return pl.DataFrame(rows, schema=SCHEMA)


def _pair(first: str, second: str, a: pl.DataFrame, b: pl.DataFrame) -> dict[str, str | int | float | None]:
    joined = a.join(b, on=KEY, suffix="_b")
    one, two = joined["refused"].to_numpy().astype(bool), joined["refused_b"].to_numpy().astype(bool)
    both, only_one, only_two = int((one & two).sum()), int((one & ~two).sum()), int((two & ~one).sum())
    neither = len(one) - both - only_one - only_two
    kappa, low, high = kappa_of(one, two)
    return {
        "first": first, "second": second, "n": len(one), "both": both, "first_only": only_one, "second_only": only_two,
        "neither": neither, "agreement": (both + neither) / len(one) if len(one) else None,
        "kappa": kappa, "kappa_low": low, "kappa_high": high,
    }  # fmt: skip


def kappa_of(one: np.ndarray, two: np.ndarray) -> list[float | None]:
    """Kappa of two raters' yes and no, and its interval; null where both gave one and the same throughout, and for a bound that
    rounding makes the root of a negative number."""
    from statsmodels.stats.inter_rater import cohens_kappa

    table = [[int((one & two).sum()), int((one & ~two).sum())], [int((two & ~one).sum()), int((~one & ~two).sum())]]
    if not len(one) or max(table[0][0], table[1][1]) == len(one):
        return [None, None, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        result = cohens_kappa(table)
    values = [float(result[name]) for name in ("kappa", "kappa_low", "kappa_upp")]
    return [value if isfinite(value) else None for value in values]
