"""How good is a scorer? Its verdicts beside labels by hand, and rates corrected for its errors.

A rate counts full refusals, so sensitivity is the share of them that a scorer calls refusals, and specificity the share of all
other answers that it does not.
"""

from collections.abc import Iterator
from math import isfinite, nan, sqrt

import polars as pl

from data.contract import VERDICTS
from data.intervals import wilson
from data.store.tables import JUDGES, JUDGES_CLASSES, JUDGES_DISAGREEMENTS, JUDGES_RATES, Values
from reports.statistics.agreement import kappa_of

Z = 1.959963984540054  # of a 95 % interval
ALL = "all"


def rogan_gladen(
    refused: int, n: int, hits: int, n_refused: int, passes: int, n_other: int
) -> tuple[float, float, float]:
    """A rate corrected for a scorer's errors (Rogan and Gladen 1978), with its 95 % interval, cut to [0, 1].

    (p + Sp − 1) / (Se + Sp − 1); the interval is that of Lang and Reiczigel (2014, Preventive Veterinary Medicine 113:13), which
    holds that Se and Sp were estimated too. NaN where the scorer tells nothing: Se + Sp ≤ 1.

    Args:
        refused: Answers that the scorer calls refusals, of `n`.
        n: Answers that are counted.
        hits: Full refusals by hand that it calls so, of `n_refused`.
        n_refused: Full refusals by hand.
        passes: Other answers by hand that it does not call refusals, of `n_other`.
        n_other: Other answers by hand.
    """
    if not (n and n_refused and n_other) or hits / n_refused + passes / n_other <= 1:
        return nan, nan, nan
    p, se, sp = refused / n, hits / n_refused, passes / n_other
    rate = (p + sp - 1) / (se + sp - 1)
    m, m_se, m_sp = n + Z**2, n_refused + 2, n_other + 2
    p, se, sp = (refused + Z**2 / 2) / m, (hits + 1) / m_se, (passes + 1) / m_sp
    if se + sp <= 1:
        return min(max(rate, 0.0), 1.0), 0.0, 1.0
    middle = (p + sp - 1) / (se + sp - 1)
    of_se, of_sp = se * (1 - se) / m_se, sp * (1 - sp) / m_sp
    shift = 2 * Z**2 * (middle * of_se - (1 - middle) * of_sp)
    spread = Z * sqrt(p * (1 - p) / m + middle**2 * of_se + (1 - middle) ** 2 * of_sp) / (se + sp - 1)
    low, high = middle + shift - spread, middle + shift + spread
    return tuple(min(max(bound, 0.0), 1.0) for bound in (rate, low, high))  # pyright: ignore[reportReturnType]


def quality(bench: pl.DataFrame) -> pl.DataFrame:
    """One row a scorer and half, in the columns of `JUDGES`; what a scorer gave no verdict on is counted apart.

    Args:
        bench: `scorer`, `half`, `hand` and `verdict` of each answer.
    """
    return pl.DataFrame([_quality(*part) for part in _parts(bench)], schema=JUDGES)


def classes(bench: pl.DataFrame) -> pl.DataFrame:
    """One row a scorer, half and class by hand: what the scorer calls them, and how often it is wrong (Wilson's interval).

    No verdict is no error, and is counted apart.
    """
    rows: list[Values] = []
    for scorer, half, part in _parts(bench):
        for hand in VERDICTS:
            mine = part.filter(pl.col("hand") == hand)
            counts = {verdict: int((mine["verdict"] == verdict).sum()) for verdict in VERDICTS}
            given = sum(counts.values())
            wrong = given - counts[hand]
            low, high = wilson(wrong, given)
            rows.append({"scorer": scorer, "half": half, "hand": hand, "n": mine.height, **counts, "none": mine.height - given,
                         "error": wrong / given if given else None, "low": _told(low), "high": _told(high)})  # fmt: skip
    return pl.DataFrame(rows, schema=JUDGES_CLASSES).filter(pl.col("n") > 0)


def disagreements(bench: pl.DataFrame) -> pl.DataFrame:
    """Every answer that a scorer calls something else than the hand does, with its text."""
    odd = bench.filter(pl.col("verdict").is_not_null() & (pl.col("verdict") != pl.col("hand")))
    return odd.select([pl.col(name).cast(kind) for name, kind in JUDGES_DISAGREEMENTS.items()])


def corrected(counted: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    """Raw and corrected refusal rates by scorer, label and arm, in the columns of `JUDGES_RATES`.

    Args:
        counted: `scorer`, `label`, `arm`, `verdict` of answers that count, and `hand`, null where it is not known.
        found: Of `quality`, one row a scorer, of other answers than these.
    """
    known = {row["scorer"]: row for row in found.to_dicts()}
    rows: list[Values] = []
    for (scorer, label, arm), group in counted.group_by("scorer", "label", "arm", maintain_order=True):
        own = known.get(scorer)
        if own is None:
            continue
        refused, n, hand = int((group["verdict"] == "refuse").sum()), group.height, group["hand"]
        hits, passes = (round((own[name] or 0) * own[of]) for name, of in
                        (("sensitivity", "n_refused"), ("specificity", "n_other")))  # fmt: skip
        low, high = wilson(refused, n)
        rate = [_told(value) for value in rogan_gladen(refused, n, hits, own["n_refused"], passes, own["n_other"])]
        rows.append({"scorer": scorer, "label": label, "arm": arm, "n": n, "rate": refused / n, "low": low, "high": high,
                     "corrected": rate[0], "corrected_low": rate[1], "corrected_high": rate[2],
                     "hand": None if hand.has_nulls() else (hand == "refuse").mean()})  # fmt: skip
    return pl.DataFrame(rows, schema=JUDGES_RATES)


def _parts(bench: pl.DataFrame) -> Iterator[tuple[str, str, pl.DataFrame]]:
    """Scorer, half and rows: of each half, and of all where there are several."""
    for (scorer,), mine in bench.group_by("scorer", maintain_order=True):
        halves = mine["half"].unique(maintain_order=True).to_list()
        for half in halves:
            yield str(scorer), half, mine.filter(pl.col("half") == half)
        if ALL not in halves:
            yield str(scorer), ALL, mine


def _quality(scorer: str, half: str, part: pl.DataFrame) -> Values:
    given = part.filter(pl.col("verdict").is_not_null())
    refused, said = given["hand"] == "refuse", given["verdict"] == "refuse"
    hits, passes = int((refused & said).sum()), int((~refused & ~said).sum())
    n_refused, n = int(refused.sum()), given.height
    n_other = n - n_refused
    wrong = int((given["hand"] != given["verdict"]).sum())
    kappa = kappa_of(refused.to_numpy(), said.to_numpy())
    values: Values = {"scorer": scorer, "half": half, "n": n, "n_failed": part.height - n, "wrong": wrong}
    values |= _share("error", "low", "high", wrong, n)
    values |= dict(zip(("kappa", "kappa_low", "kappa_high"), kappa, strict=True))
    values |= {"n_refused": n_refused, "n_other": n_other}
    values |= _share("sensitivity", "sensitivity_low", "sensitivity_high", hits, n_refused)
    values |= _share("specificity", "specificity_low", "specificity_high", passes, n_other)
    return values


def _share(name: str, low: str, high: str, count: int, n: int) -> Values:
    bounds = wilson(count, n)
    return {name: count / n if n else None, low: _told(bounds[0]), high: _told(bounds[1])}


def _told(value: float) -> float | None:
    return value if isfinite(value) else None
