"""Differences in means of contrasts, at all layers in one pass over a file; and vectors of length 1."""

from collections.abc import Sequence

import numpy as np

from data.store.activations import Activations
from interventions.fitting.contrasts import Contrast


def mean_differences(activations: Activations, chosen: Sequence[Contrast]) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each contrast's positive rows minus mean of its negative ones, summed in float64.

    Returns:
        Differences (contrasts, layers, d_model), and the mean norm of all rows used (layers,).
    """
    shared = not chosen[0].paired
    groups = [contrast.positive for contrast in chosen]
    groups += [chosen[0].negative] if shared else [contrast.negative for contrast in chosen]
    member = np.full(activations.shape[0], -1)
    for number, rows in enumerate(groups):
        member[rows] = number
    sums = np.zeros((len(groups), *activations.shape[1:]))
    norms = np.zeros(activations.shape[1])
    for start, block in activations.slices():
        here = member[start : start + len(block)]
        for number in np.unique(here[here >= 0]):
            sums[number] += block[here == number].sum(0, dtype=np.float64)
        used = block[here >= 0]
        norms += np.sqrt(np.einsum("rld,rld->rl", used, used, dtype=np.float64)).sum(0)
    means = sums / np.array([len(rows) for rows in groups])[:, None, None]
    return means[: len(chosen)] - means[len(chosen) :], norms / (member >= 0).sum()


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scaled to length 1 along the last axis; zero stays zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length == 0, 1, length)
