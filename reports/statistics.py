"""Rates with intervals and paired tests, from scores."""

import numpy as np
import polars as pl
from scipy.stats import binomtest

Z = 1.959963984540054  # two-sided 95 %
BOOTSTRAP = 10_000
KEYS = ("dataset", "label", "arm", "kind", "scorer")
SCHEMA = {
    "dataset": pl.String, "label": pl.String, "arm": pl.String, "kind": pl.String, "scorer": pl.String,
    "n": pl.Int64, "n_failed": pl.Int64, "n_overlap": pl.Int64, "refused": pl.Int64, "rate": pl.Float64,
    "low": pl.Float64, "high": pl.Float64, "partial": pl.Int64, "broken": pl.Int64, "answered": pl.Int64,
    "n_paired": pl.Int64, "delta": pl.Float64, "delta_low": pl.Float64, "delta_high": pl.Float64,
    "p": pl.Float64, "p_holm": pl.Float64,
}  # fmt: skip


def wilson(successes: pl.Expr, n: pl.Expr) -> tuple[pl.Expr, pl.Expr]:
    """Wilson's 95 % score interval of a proportion, as polars expressions; null where n is 0 (Wilson 1927)."""
    share = successes / n
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * (share * (1 - share) / n + Z**2 / (4 * n**2)).sqrt()
    low = pl.when(n > 0).then(pl.when(successes == 0).then(0.0).otherwise((middle - half).clip(0, 1)))
    high = pl.when(n > 0).then(pl.when(successes == n).then(1.0).otherwise((middle + half).clip(0, 1)))
    return low, high


def newcombe(both: int, first: int, second: int, neither: int) -> tuple[float, float, float]:
    """Paired difference of proportions, first minus second, with Newcombe's 95 % score interval.

    Newcombe 1998, Statistics in Medicine 17:2635, method 10.

    Args:
        both: Pairs where both are positive.
        first: Pairs where only the first is.
        second: Pairs where only the second is.
        neither: Pairs where none is.
    """
    n = both + first + second + neither
    p1, p2 = (both + first) / n, (both + second) / n
    (l1, u1), (l2, u2) = _wilson(both + first, n), _wilson(both + second, n)
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    cross = both * neither - first * second
    if cross > 0:
        cross = max(cross - n / 2, 0)
    phi = cross / margins**0.5 if margins else 0.0
    below = ((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2) ** 0.5
    above = ((u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2) ** 0.5
    return p1 - p2, p1 - p2 - below, p1 - p2 + above


def mcnemar(first: int, second: int) -> float:
    """Exact two-sided McNemar test on the discordant pairs: a binomial test at one half."""
    return float(binomtest(first, first + second, 0.5).pvalue) if first + second else 1.0


def holm(p: list[float]) -> list[float]:
    """Holm's step-down adjustment of a family of p-values (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(np.asarray(p)[order] * (len(p) - np.arange(len(p))))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted.tolist()


def summarise(scores: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    """Rates by data set, label, arm and scorer; `(pooled)` over data sets, `(macro)` their mean.

    Rows whose text was used for fitting are left out and counted (`n_overlap`); failures of a scorer are left out of
    `n` and counted (`n_failed`). Each arm is compared with the baseline on the same rows of the same scorer.
    """
    pooled = pl.concat(
        [scores, scores.with_columns(pl.lit("(pooled)").alias("dataset"), key=_row_key())], how="diagonal"
    )
    pooled = pooled.with_columns(pl.coalesce("key", _row_key()).alias("key"))
    used = (~pl.col("fitted")) & pl.col("verdict").is_not_null()
    counts = pooled.group_by(KEYS, maintain_order=True).agg(
        used.sum().alias("n"),
        ((~pl.col("fitted")) & pl.col("verdict").is_null()).sum().alias("n_failed"),
        pl.col("fitted").sum().alias("n_overlap"),
        (used & pl.col("refused")).sum().alias("refused"),
        *[(used & (pl.col("verdict") == verdict)).sum().alias(verdict) for verdict in ("partial", "broken", "comply")],
    )
    low, high = wilson(pl.col("refused"), pl.col("n"))
    rates = counts.with_columns(
        pl.when(pl.col("n") > 0).then(pl.col("refused") / pl.col("n")).alias("rate"),
        low.alias("low"),
        high.alias("high"),
    ).rename({"comply": "answered"})
    table = rates.join(_paired(pooled.filter(used)), on=KEYS, how="left", nulls_equal=True)
    table = table.with_columns(pl.col("n_paired").fill_null(0))
    table = pl.concat([_in_shape(table), _macro(rates, seed)])
    return table.sort("scorer", "dataset", "label", "arm", nulls_last=True)


def _row_key() -> pl.Expr:
    return pl.concat_str(["dataset", "id"], separator="\0")


def _in_shape(table: pl.DataFrame) -> pl.DataFrame:
    return table.select([pl.col(name).cast(kind) for name, kind in SCHEMA.items()])


def _paired(used: pl.DataFrame) -> pl.DataFrame:
    """Difference from the baseline and its tests, one row for each group that has a baseline."""
    side = ["dataset", "label", "scorer", "key"]
    baseline = used.filter(pl.col("kind") == "baseline").select(*side, pl.col("refused").alias("before"))
    pairs = used.filter(pl.col("kind") != "baseline").join(baseline, on=side, nulls_equal=True)
    cells = pairs.group_by(KEYS, maintain_order=True).agg(
        (pl.col("refused") & pl.col("before")).sum().alias("both"),
        (pl.col("refused") & ~pl.col("before")).sum().alias("arm_only"),
        (~pl.col("refused") & pl.col("before")).sum().alias("baseline_only"),
        (~pl.col("refused") & ~pl.col("before")).sum().alias("neither"),
    )
    rows = []
    for cell in cells.to_dicts():
        four = [cell.pop(name) for name in ("both", "arm_only", "baseline_only", "neither")]
        delta, low, high = newcombe(*four)
        test = {"p": mcnemar(four[1], four[2])}
        rows.append({**cell, "n_paired": sum(four), "delta": delta, "delta_low": low, "delta_high": high, **test})
    names = ("n_paired", "delta", "delta_low", "delta_high", "p")
    frame = pl.DataFrame(rows, schema={name: SCHEMA[name] for name in (*KEYS, *names)})
    # One family a scorer: data set × label × arm; the pooled rows repeat the others and stand outside.
    frame = frame.with_columns(pl.lit(None, pl.Float64).alias("p_holm")).with_row_index("at")
    adjusted: dict[int, float] = {}
    for _, family in frame.filter(pl.col("dataset") != "(pooled)").group_by("scorer"):
        adjusted |= dict(zip(family["at"].to_list(), holm(family["p"].to_list()), strict=True))
    return frame.with_columns(pl.Series("p_holm", [adjusted.get(at) for at in frame["at"]], pl.Float64)).drop("at")


def _macro(rates: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Mean of the data sets' rates with a bootstrap interval over rows within each; no test."""
    random = np.random.default_rng(seed)
    rows = []
    single = rates.filter((pl.col("dataset") != "(pooled)") & (pl.col("n") > 0))
    for key, group in single.group_by(*KEYS[1:], maintain_order=True):
        n, share = group["n"].to_numpy(), group["rate"].to_numpy()
        draws = (random.binomial(n, share, (BOOTSTRAP, len(n))) / n).mean(1)
        low, high = np.quantile(draws, [0.025, 0.975])
        sums = {
            name: int(group[name].sum())
            for name in ("n", "n_failed", "n_overlap", "refused", "partial", "broken", "answered")
        }
        names = dict(zip(KEYS[1:], key, strict=True))
        rows.append(
            {"dataset": "(macro)", **names, **sums, "rate": share.mean(), "low": low, "high": high, "n_paired": 0}
        )
    return pl.DataFrame(rows, schema=SCHEMA)


def _wilson(successes: int, n: int) -> tuple[float, float]:
    interval = binomtest(successes, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)
