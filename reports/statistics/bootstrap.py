"""Percentile bootstraps over clusters of prompts: 10,000 draws, seeded, all at once.

Drawing C clusters with replacement is one multinomial draw over the clusters; and clusters that are alike (as many rows,
the same sum) are one kind, drawn as often as its members together. So a draw costs as much as there are kinds: a
handful, however many prompts there are.
"""

import json
import zlib
from collections.abc import Sequence

import numpy as np
import polars as pl

DRAWS = 10_000
LEVEL = (0.025, 0.975)


def clustered_interval(rows: pl.DataFrame, column: str, seed: int, key: Sequence[object]) -> tuple[float, float]:
    """95 % interval of the mean of `column`, clusters drawn with replacement.

    Args:
        rows: At least one, with `cluster` and `column`.
        column: Numbers or Booleans.
        seed: Together with `key` the seed of the draws.
        key: Names the group, so that its interval does not depend on which other groups there are.
    """
    low, high = np.quantile(_means(rows, column, draws_of(json.dumps([column, *key]), seed)), LEVEL)
    return float(low), float(high)


def macro_interval(rows: pl.DataFrame, column: str, seed: int, key: Sequence[object]) -> tuple[float, float, float]:
    """Mean over data sets of the mean of `column`, and its 95 % interval: clusters are drawn within each data set."""
    parts = [part for _, part in rows.sort("dataset").group_by("dataset", maintain_order=True)]
    means = [float(part[column].cast(pl.Float64).to_numpy().mean()) for part in parts]
    random = draws_of(json.dumps([column, *key]), seed)
    draws = np.mean([_means(part, column, random) for part in parts], axis=0)
    low, high = np.quantile(draws, LEVEL)
    return float(np.mean(means)), float(low), float(high)


def _means(rows: pl.DataFrame, column: str, random: np.random.Generator) -> np.ndarray:
    """Means of the drawn rows, (DRAWS,)."""
    clusters = rows.group_by("cluster").agg(pl.len().alias("size"), pl.col(column).cast(pl.Int64).sum().alias("sum"))
    kinds = clusters.group_by("size", "sum").agg(pl.len().alias("members")).sort("size", "sum")
    members = kinds["members"].to_numpy()
    drawn = random.multinomial(members.sum(), members / members.sum(), DRAWS)
    return drawn @ kinds["sum"].to_numpy() / (drawn @ kinds["size"].to_numpy())


def draws_of(name: str, seed: int) -> np.random.Generator:
    """The random numbers that go by a name: the same ones whatever else is drawn for."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])
