"""Rates with intervals and paired tests, from scores: the table `summary`.

Bootstraps and sample sizes have their own modules; what scipy and statsmodels have is taken from them.
"""

import numpy as np
import polars as pl

from data.contract import DIFFERENCE, MACRO, POOLED
from data.intervals import wilson
from data.store.tables import SUMMARY, Values
from reports.statistics.bootstrap import clustered_interval, macro_interval
from reports.statistics.power import prompts_needed

WILSON, PROMPTS, THEMES = "wilson", "bootstrap of prompts", "bootstrap of themes"
KEYS = ("dataset", "label", "arm", "kind", "scorer")
COUNTS = ("n", "n_failed", "n_overlap", "refused", "partial", "broken", "answered")


def newcombe(both: int, first: int, second: int, neither: int) -> tuple[float, float, float]:
    """Paired difference of proportions, first minus second, with Newcombe's 95 % score interval.

    Newcombe 1998, Statistics in Medicine 17:2635, method 10. Neither scipy nor statsmodels 0.15 has it.

    Args:
        both: Pairs where both are positive.
        first: Pairs where only the first is.
        second: Pairs where only the second is.
        neither: Pairs where none is.
    """
    n = both + first + second + neither
    p1, p2 = (both + first) / n, (both + second) / n
    (l1, u1), (l2, u2) = wilson(both + first, n), wilson(both + second, n)
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    cross = both * neither - first * second
    if cross > 0:
        cross = max(cross - n / 2, 0)
    phi = cross / margins**0.5 if margins else 0.0
    below = ((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2) ** 0.5
    above = ((u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2) ** 0.5
    return p1 - p2, float(p1 - p2 - below), float(p1 - p2 + above)


def mcnemar(first: int, second: int) -> float:
    """Exact two-sided McNemar test on the discordant pairs, from statsmodels; 1 if there are none."""
    from statsmodels.stats.contingency_tables import mcnemar as test

    result = test([[0, first], [second, 0]], exact=True)
    return float(result.pvalue)  # pyright: ignore[reportAttributeAccessIssue]  # statsmodels sets it on a bare object


def holm(p: list[float]) -> list[float]:
    """Holm's step-down adjustment of a family of p-values (Holm 1979), from statsmodels."""
    from statsmodels.stats.multitest import multipletests

    return np.asarray(multipletests(p, method="holm")[1]).tolist() if p else []


def summarise(
    scores: pl.DataFrame,
    seed: int = 0,
    clusters: pl.DataFrame | None = None,
    difference: float = DIFFERENCE / 100,
    repeated: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Rates by data set, label, arm and scorer; `(pooled)` over data sets, `(macro)` their mean.

    Rows whose text was used for fitting are left out and counted (`n_overlap`); failures of a scorer are left out of
    `n` and counted (`n_failed`). Each arm is compared with the baseline on the same rows of the same scorer. Holm's
    family is, for each scorer, data set × label × arm; pooled rows repeat the others and stand outside. Where nothing
    is left, n is 0 and the rates are null.

    Args:
        scores: The table of `scoring.score`.
        seed: Of the bootstraps. A group's interval does not depend on which other groups there are.
        clusters: `dataset`, `id`, `theme`: prompts of one theme are drawn together. A row without theme is a cluster
            of its own. Without it, all rows are.
        difference: What `n_needed` is for: so many prompts a difference of this size needs to be found with 80 %
            power by the exact McNemar test at 5 %, given the disagreement seen.
        repeated: `dataset`, `id` of rows whose prompt another data set has too: they count in their own set and not in the pool.
    """
    rows = with_pooled(_with_clusters(scores, clusters), repeated)
    used = (~pl.col("fitted")) & pl.col("verdict").is_not_null()
    table = rates(rows, used)
    valid = rows.filter(used)
    pairs = _pairs(valid)
    table = table.join(_compared(pairs, difference), on=KEYS, how="left", nulls_equal=True)
    table = table.with_columns(pl.col("n_paired").fill_null(0))
    if clusters is not None:
        table = table.join(_clustered(valid, pairs, seed), on=KEYS, how="left", nulls_equal=True)
    whole = pl.concat([_in_shape(table), _macro(table, valid, pairs, seed)])
    return whole.sort("scorer", "dataset", "label", "arm", nulls_last=True)


def _with_clusters(scores: pl.DataFrame, clusters: pl.DataFrame | None) -> pl.DataFrame:
    """With `row`, a number for each (data set, id), and `cluster`, a number for each theme or row without one."""
    rows = scores.select("dataset", "id").unique(maintain_order=True).with_row_index("row")
    if clusters is None:
        rows = rows.with_columns(pl.col("row").alias("cluster"))
    else:
        themes = clusters.select("dataset", "id", "theme").unique(["dataset", "id"])
        rows = rows.join(themes, on=["dataset", "id"], how="left", maintain_order="left")
        theme = pl.concat_str("dataset", "theme", separator="\0")  # null without a theme
        rows = rows.with_columns(pl.coalesce(theme, pl.col("row").cast(pl.String)).alias("cluster"))
    return scores.join(
        rows.select("dataset", "id", "row", "cluster"), on=["dataset", "id"], how="left", maintain_order="left"
    )


def with_pooled(rows: pl.DataFrame, repeated: pl.DataFrame | None) -> pl.DataFrame:
    """Scores, and once more as `(pooled)` those that count there."""
    once = rows if repeated is None else rows.join(repeated, on=["dataset", "id"], how="anti")
    return pl.concat([rows, once.with_columns(pl.lit(POOLED).alias("dataset"))])


def _in_shape(table: pl.DataFrame) -> pl.DataFrame:
    missing = [pl.lit(None).alias(name) for name in SUMMARY if name not in table.columns]
    return table.with_columns(missing).select([pl.col(name).cast(kind) for name, kind in SUMMARY.items()])


def rates(rows: pl.DataFrame, used: pl.Expr) -> pl.DataFrame:
    """Counts, rate and Wilson's interval of every group."""
    counts = rows.group_by(KEYS, maintain_order=True).agg(
        used.sum().alias("n"),
        ((~pl.col("fitted")) & pl.col("verdict").is_null()).sum().alias("n_failed"),
        pl.col("fitted").sum().alias("n_overlap"),
        (used & pl.col("refused")).sum().alias("refused"),
        *[(used & (pl.col("verdict") == verdict)).sum().alias(verdict) for verdict in ("partial", "broken")],
        (used & answered(rows)).sum().alias("answered"),
        *([(used & nonsense()).sum().alias("incoherent")] if measured(rows) else []),
        pl.lit(WILSON).alias("interval"),
    )
    bounds = [wilson(refused, n) for refused, n in counts.select("refused", "n").iter_rows()]
    ends = pl.DataFrame(bounds, {"low": pl.Float64, "high": pl.Float64}, orient="row").fill_nan(None)
    rate = pl.when(pl.col("n") > 0).then(pl.col("refused") / pl.col("n"))
    counts = counts.with_columns(rate.alias("rate"), *ends)
    if not measured(rows):
        return counts
    bounds = [wilson(count, n) for count, n in counts.select("incoherent", "n").iter_rows()]
    names = {"incoherent_low": pl.Float64, "incoherent_high": pl.Float64}
    return counts.with_columns(*pl.DataFrame(bounds, names, orient="row").fill_nan(None))


def measured(scores: pl.DataFrame) -> bool:
    """Whether it was looked at which answers are coherent."""
    return "incoherent" in scores.columns and scores["incoherent"].is_not_null().any()


def nonsense() -> pl.Expr:
    """Answers that neither refuse nor are broken, and are incoherent."""
    return (pl.col("verdict") == "comply") & pl.col("incoherent").fill_null(False)


def answered(scores: pl.DataFrame) -> pl.Expr:
    """Answers that are answers."""
    return (pl.col("verdict") == "comply") & ~(nonsense() if measured(scores) else pl.lit(False))


def _pairs(valid: pl.DataFrame) -> pl.DataFrame:
    """Rows of every arm but the baseline, with `before`: whether the baseline refused on the same row."""
    side = ["dataset", "label", "scorer", "row"]
    baseline = valid.filter(pl.col("kind") == "baseline").select(*side, pl.col("refused").alias("before"))
    arms = valid.filter(pl.col("kind") != "baseline")
    return arms.join(baseline.unique(side, keep="first", maintain_order=True), on=side, nulls_equal=True)


def _compared(pairs: pl.DataFrame, difference: float) -> pl.DataFrame:
    """Difference from the baseline, its interval and tests; one row for each group that has a baseline."""
    after, before = pl.col("refused"), pl.col("before")
    cells = pairs.group_by(KEYS, maintain_order=True).agg(
        (after & before).sum().cast(pl.Int64).alias("both"),
        (after & ~before).sum().cast(pl.Int64).alias("arm_only"),
        (~after & before).sum().cast(pl.Int64).alias("baseline_only"),
        (~after & ~before).sum().cast(pl.Int64).alias("neither"),
        (before & answered(pairs)).sum().cast(pl.Int64).alias("cured"),
    )
    names = ("n_paired", "cured", "delta", "delta_low", "delta_high", "p", "n_needed")
    rows: list[Values] = []
    for cell in cells.to_dicts():
        both, arm_only, baseline_only, neither = (
            cell.pop(name) for name in ("both", "arm_only", "baseline_only", "neither")
        )
        n = both + arm_only + baseline_only + neither
        delta, low, high = newcombe(both, arm_only, baseline_only, neither)
        needed = prompts_needed((arm_only + baseline_only) / n, difference)
        values = (n, cell.pop("cured"), delta, low, high, mcnemar(arm_only, baseline_only), needed)
        rows.append(cell | dict(zip(names, values, strict=True)))
    return _adjusted(pl.DataFrame(rows, schema={name: SUMMARY[name] for name in (*KEYS, *names)}))


def _adjusted(compared: pl.DataFrame) -> pl.DataFrame:
    """With `p_holm`: one family a scorer; the pooled rows repeat the others and stand outside."""
    compared = compared.with_row_index("at")
    adjusted: dict[int, float] = {}
    for _, family in compared.filter(pl.col("dataset") != POOLED).group_by("scorer"):
        adjusted |= dict(zip(family["at"].to_list(), holm(family["p"].to_list()), strict=True))
    return compared.with_columns(pl.Series("p_holm", [adjusted.get(at) for at in compared["at"]], pl.Float64)).drop(
        "at"
    )


def _clustered(valid: pl.DataFrame, pairs: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Bootstrap intervals over clusters of rate and difference, for groups where some cluster holds several rows."""
    rows: list[Values] = []
    compared = {key: group for key, group in pairs.group_by(KEYS)}
    for key, group in valid.group_by(KEYS, maintain_order=True):
        n_clusters = group["cluster"].n_unique()
        entry: Values = dict(zip(KEYS, key, strict=True)) | {"n_clusters": n_clusters}
        if n_clusters < group.height:
            entry["cluster_low"], entry["cluster_high"] = clustered_interval(group, "refused", seed, key)
            if key in compared:
                low, high = clustered_interval(_with_change(compared[key]), "change", seed, key)
                entry |= {"delta_cluster_low": low, "delta_cluster_high": high}
        rows.append(entry)
    names = ("n_clusters", "cluster_low", "cluster_high", "delta_cluster_low", "delta_cluster_high")
    return pl.DataFrame(rows, schema={name: SUMMARY[name] for name in (*KEYS, *names)})


def _macro(table: pl.DataFrame, valid: pl.DataFrame, pairs: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Mean of the data sets' rates, and of their differences from the baseline; bootstrap intervals, no test."""
    singles = valid.filter(pl.col("dataset") != POOLED).partition_by(KEYS[1:], as_dict=True)
    changes = _with_change(pairs.filter(pl.col("dataset") != POOLED)).partition_by(KEYS[1:], as_dict=True)
    rows: list[Values] = []
    for key, group in table.filter(pl.col("dataset") != POOLED).group_by(KEYS[1:], maintain_order=True):
        entry: Values = {"dataset": MACRO, **dict(zip(KEYS[1:], key, strict=True))}
        entry |= {name: int(group[name].sum()) for name in (*COUNTS, "n_paired")}
        more = [name for name in ("incoherent", "cured") if name in group.columns and not group[name].has_nulls()]
        entry |= {name: int(group[name].sum()) for name in more}
        if key in singles:
            single = singles[key]
            entry["n_clusters"] = single["cluster"].n_unique()
            entry["interval"] = THEMES if entry["n_clusters"] < single.height else PROMPTS
            entry["rate"], entry["low"], entry["high"] = macro_interval(single, "refused", seed, key)
        if key in changes:
            values = macro_interval(changes[key], "change", seed, key)
            entry["delta"], entry["delta_low"], entry["delta_high"] = values
        rows.append(entry)
    return pl.DataFrame(rows, schema=SUMMARY)


def _with_change(pairs: pl.DataFrame) -> pl.DataFrame:
    """With `change`: +1 where only the arm refuses, −1 where only the baseline does."""
    return pairs.with_columns((pl.col("refused").cast(pl.Int8) - pl.col("before").cast(pl.Int8)).alias("change"))
