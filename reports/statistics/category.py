"""Does it matter whose vector is added? Every category's vector on every category's rows: a matrix, and a permutation test.

y (rows, categories) is each row's outcome under each category's vector. Rows differ, and so do vectors: from y both means are taken,
z = y − row mean − column mean + grand mean, and the statistic is how far a row's own category stands above the others,
T = C/(C − 1) · mean of z at (row, its category). Where vectors are interchangeable, which rows are whose category's says nothing: the
categories of whole themes are permuted, 10,000 times.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from data.store.tables import CATEGORY, CATEGORY_TEST
from reports.statistics.bootstrap import DRAWS, draws_of
from reports.statistics.effects import ratio, share

SIDES = {"towards": 1.0, "away": -1.0}  # refusal that is wanted of harmful rows, and not of benign ones
ALL = "(all)"
OUTCOMES = ("refusal_probability", "refused")


def matrix(outcomes: pl.DataFrame, reached: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    """The table `category`: a row for each side, vector and category of rows, and one for all of these together.

    Args:
        outcomes: `side`, `vector`, `rows` (the row's own category), `cluster`, `refusal_probability`, `refused`, a row each.
        reached: `side`, `vector`, `strength`, `unit`, `kl`, `why_not`.
        seed: Of the bootstrap over clusters.
    """
    found = []
    both = pl.concat([outcomes, outcomes.with_columns(rows=pl.lit(ALL))])
    for (side, vector, rows), part in both.group_by("side", "vector", "rows", maintain_order=True):
        random = draws_of(f"{side} {vector} {rows}", seed)
        mass = part["refusal_probability"].to_numpy()
        values = ratio(mass, np.ones(len(mass)), part["cluster"].to_list(), random)
        rate = share(part["refused"].to_numpy())
        found.append((side, vector, rows, part.height, *values, *rate))
    names = [
        "side",
        "vector",
        "rows",
        "n",
        "refusal_probability",
        "probability_low",
        "probability_high",
        "refused",
        "low",
        "high",
    ]
    table = pl.DataFrame(found, names, orient="row").join(
        reached, on=["side", "vector"], how="left", maintain_order="left"
    )
    return table.select(pl.col(name).cast(kind) for name, kind in CATEGORY.items())


def own_or_another(outcomes: pl.DataFrame, categories: Sequence[str], seed: int = 0) -> pl.DataFrame:
    """The table `category_test`: for each side and outcome whether a row's own category does better than another's."""
    found = []
    for side, sign in SIDES.items():
        rows = outcomes.filter(pl.col("side") == side, pl.col("vector").is_in(list(categories)))
        for outcome in OUTCOMES:
            wide = rows.pivot("vector", index=["row", "rows", "cluster"], values=outcome, maintain_order=True)
            if wide.height and wide["rows"].n_unique() > 1:
                y = wide.select(categories).cast(pl.Float64).to_numpy()
                own = np.array([list(categories).index(name) for name in wide["rows"]])
                found.append(
                    (side, outcome, wide.height, *own_against_others(sign * y, own, wide["cluster"].to_list(), seed))
                )
    return pl.DataFrame(found, CATEGORY_TEST, orient="row")


def own_against_others(
    y: np.ndarray, own: np.ndarray, clusters: Sequence[str], seed: int = 0
) -> tuple[float, float | None, float | None, float]:
    """T, its 95 % bootstrap interval over clusters, and the one-sided p of the permutation test.

    Args:
        y: (rows, categories), more is better.
        own: (rows,) each row's own category, its column.
        clusters: (rows,) rows of one cluster and category are permuted together.
        seed: Of the draws.
    """
    rows, count = y.shape
    z = (y - y.mean(1, keepdims=True) - y.mean(0) + y.mean()) * count / (count - 1)
    names = list(zip(clusters, own.tolist(), strict=True))
    units = {name: at for at, name in enumerate(dict.fromkeys(names))}
    which = np.array([units[name] for name in names])
    sums = np.zeros((len(units), count))
    np.add.at(sums, which, z)
    labels = np.array([category for _, category in units])
    value, low, high = ratio(
        z[np.arange(rows), own], np.ones(rows), list(clusters), draws_of("own against others", seed)
    )
    random = draws_of("permutations", seed)
    drawn = random.permuted(np.tile(labels, (DRAWS, 1)), axis=1)
    null = sums[np.arange(len(units)), drawn].sum(1) / rows
    assert value is not None
    p = (1 + int((null >= value - 1e-12).sum())) / (DRAWS + 1)
    return value, low, high, p


def sentence(test: pl.DataFrame, budget: float | None) -> str:
    """The answer, in one sentence; the budget in nats, if it is known."""
    parts = []
    shown = []
    for row in test.filter(pl.col("outcome") == "refusal_probability").drop_nulls(["difference", "p"]).to_dicts():
        what = "refusal of harmful prompts" if row["side"] == "towards" else "release of benign near-misses"
        span = (
            ""
            if row["low"] is None or row["high"] is None
            else f", {100 * row['low']:+.1f} to {100 * row['high']:+.1f}"
        )
        parts.append(
            f"{what} {100 * row['difference']:+.1f} points of probability mass{span}, p = {row['p']:.3g}, n = {row['n']}"
        )
        shown.append(row["p"] < 0.05)
    if not parts:
        return "Whether it matters whose vector is added can't be said: it takes rows of two categories."
    answer = ("The row's own category's vector does better than another's" if all(shown) else
              "On one side alone the row's own category's vector does better than another's" if any(shown) else
              "It is not shown to matter whose vector is added")  # fmt: skip
    at = "equal KL" if budget is None else f"a KL of {budget:g} nats each"
    return f"{answer}, at {at}: {'; '.join(parts)}."
