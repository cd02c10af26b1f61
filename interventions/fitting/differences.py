"""Differences in means of contrasts, at all layers in one pass over a file; and vectors of length 1."""

from collections.abc import Sequence

import numpy as np

from data.store.activations import Activations
from data.store.sums import Sums
from interventions.fitting.contrasts import Contrast


def members(height: int, chosen: Sequence[Contrast]) -> np.ndarray:
    """Which sum each of so many rows counts to, (rows,) int64, or -1: the contrasts' positive rows, then their negative ones.

    Unpaired contrasts share the last group.
    """
    groups = [contrast.positive for contrast in chosen]
    groups += [contrast.negative for contrast in chosen] if chosen[0].paired else [chosen[0].negative]
    member = np.full(height, -1, np.int64)
    for number, rows in enumerate(groups):
        member[rows] = number
    return member


def mean_differences(read: Activations | Sums, chosen: Sequence[Contrast]) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each contrast's positive rows minus mean of its negative ones, summed in float64.

    Returns:
        Differences (contrasts, layers, d_model), and the mean norm of all rows used (layers,).

    Raises:
        UserError: These are sums over other groups.
    """
    member = members(read.rows.height, chosen)
    sums, norms = read.of(member) if isinstance(read, Sums) else _summed(read, member)
    counts = np.bincount(member[member >= 0])
    means = sums / counts[:, None, None]
    return means[: len(chosen)] - means[len(chosen) :], norms / counts.sum()


def _summed(activations: Activations, member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each group's sum and the sum of all norms, in one pass over the file."""
    sums = np.zeros((member.max() + 1, *activations.shape[1:]))
    norms = np.zeros(activations.shape[1])
    for start, block in activations.slices():
        here = member[start : start + len(block)]
        for number in np.unique(here[here >= 0]):
            sums[number] += block[here == number].sum(0, dtype=np.float64)
        used = block[here >= 0]
        norms += np.sqrt(np.einsum("rld,rld->rl", used, used, dtype=np.float64)).sum(0)
    return sums, norms


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scaled to length 1 along the last axis; zero stays zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length == 0, 1, length)
