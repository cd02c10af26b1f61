"""Means and squared deviations of groups of rows, of parts that were read apart; and a mass-mean probe's direction from them."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

RESOLVED = 2.0**-20  # of how far a group's mean lies from what groups share: float32 carries no smaller deviation


class Moments(NamedTuple):
    """Of groups of rows.

    Attributes:
        counts: (groups,) float64, rows.
        means: float64 (groups, …).
        squares: float64 (groups, …), squared deviations from the group's mean, added up over its rows.
    """

    counts: np.ndarray
    means: np.ndarray
    squares: np.ndarray


def moments_of(x: np.ndarray, groups: np.ndarray) -> Moments:
    """Of rows that are here.

    Args:
        x: (rows, d) float64.
        groups: (groups, rows) bool; each has a row.
    """
    sides = [x[rows] for rows in groups]
    counts = groups.sum(1).astype(np.float64)
    means, squares = (np.stack(part) for part in zip(*((x.mean(0), x.var(0) * len(x)) for x in sides), strict=True))
    return Moments(counts, means, squares)


def together(parts: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Moments:
    """Of several parts' rows as of one: Chan, Golub and LeVeque 1979, Updating formulae and a pairwise algorithm for computing sample
    variances, equation 2.1.

    Parts that travelled in float32 lie off by its rounding, so that a deviation below `RESOLVED` is taken for none.
    """
    total: Moments | None = None
    for part in map(Moments._make, parts):
        if total is None:
            total = part
            continue
        shape = (-1, *[1] * (part.means.ndim - 1))
        a, b = total.counts.reshape(shape), part.counts.reshape(shape)
        n, off = np.maximum(a + b, 1), part.means - total.means
        means, squares = total.means + off * b / n, total.squares + part.squares + off**2 * a * b / n
        total = Moments(total.counts + part.counts, means, squares)
    if total is None:
        raise ValueError("no part to put together")
    shape = (-1, *[1] * (total.means.ndim - 1))
    n = total.counts.reshape(shape)
    off = total.means - (total.means * n).sum(0) / n.sum()
    return total._replace(squares=np.where(total.squares <= n * (RESOLVED * off) ** 2, 0, total.squares))


def mass_mean(moments: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Direction (…) and mean (…) of a mass-mean probe, from the moments of its two groups, the positive one first.

    Difference in means over each dimension's variance within the groups; between them, the mean (Marks and Tegmark 2023,
    arXiv 2310.06824, section 5, with a diagonal covariance). A dimension without variance counts nothing.
    """
    counts, (above, below), squares = moments
    spread = squares.sum(0) / counts.sum()
    return (above - below) / np.where(spread > 0, spread, np.inf), (above + below) / 2
