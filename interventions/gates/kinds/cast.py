"""Conditional activation steering's condition: how much of h lies along a condition vector.

s(h) = cos(h, tanh(proj_c h)), proj_c h = (c cᵀ / c·c) h, against a threshold from either side (arXiv 2409.05907); h
is the mean over the user's tokens, and c the first principal component of the harmful and harmless rows' states
about the middle of the two means. Layer and comparator are found by grid: of every layer, and either side, the one whose
best threshold has the highest F1 on the rows. The gain is the comparator: its sign says which side is harmful, its
size 4 over the standard deviation of s, so that scores are spread; the threshold is then chosen as every gate's is.
"""

import json
from collections.abc import Sequence

import numpy as np

from interventions.gates.features import Features, Kind, fitted
from interventions.gates.gate import FittedGate

SPREAD = 4.0


def condition(x: np.ndarray, harmful: np.ndarray) -> np.ndarray:
    """First principal component (d_model,) of states (rows, d_model) about the middle of the classes' means."""
    from scipy.sparse.linalg import svds

    centred = x - (x[harmful].mean(0) + x[~harmful].mean(0)) / 2
    return svds(centred, k=1, v0=np.ones(min(centred.shape)))[2][0]


def similarity(x: np.ndarray, c: np.ndarray) -> np.ndarray:
    """cos(h, tanh(proj_c h)): (rows, d_model) -> (rows,)."""
    projected = np.tanh((x @ c)[:, None] * c / (c @ c))
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(projected, axis=1)
    return (x * projected).sum(1) / np.maximum(lengths, 1e-12)


def best_f1(score: np.ndarray, harmful: np.ndarray) -> tuple[float, float]:
    """The highest F1 of `score ≥ threshold`, and that threshold."""
    order = np.argsort(-score, kind="stable")
    hits, ranked = np.cumsum(harmful[order]), score[order]
    f1 = 2 * hits / (np.arange(1, len(score) + 1) + harmful.sum())
    f1[:-1][ranked[:-1] == ranked[1:]] = -1  # a threshold does not part equals
    at = int(f1.argmax())
    return float(f1[at]), float(ranked[at])


def fit(features: Features, rows: np.ndarray, harmful: np.ndarray, _themes: Sequence[str]) -> FittedGate:
    """On some rows."""
    found = []
    for layer in features.files["mean"].layers:
        x = features.residual((layer, "mean"), rows)
        c = condition(x, harmful)
        s = similarity(x, c)
        for side in (1, -1):
            f1, threshold = best_f1(side * s, harmful)
            found.append((f1, -layer, side, threshold * side, c, float(s.std()) or 1.0))
    _, layer, side, threshold, c, spread = max(found, key=lambda one: one[:3])
    gain = side * SPREAD / spread
    return fitted(c, np.zeros(len(c)), -gain * threshold, form="cast", gain=repr(gain),
                  comparator="larger" if side > 0 else "smaller", reads=json.dumps([[-layer, "mean"]]))  # fmt: skip


KIND = Kind(fit, lambda model: [(layer, "mean") for layer in range(model.n_layers)])
