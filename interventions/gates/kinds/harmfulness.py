"""How much nearer to harmful than to harmless prompts: cosines to their means at the instruction's last token.

Δ(h) = mean over layers of cos(h, μ_harmful) − cos(h, μ_harmless), h the residual stream at the last token of the user's
text (arXiv 2507.11878), over the layers that carry it: those whose own Δ tells rows of other themes apart
within 0.02 AUC of the best layer's. In weights: h scaled to length 1 at each layer, times μ̂_harmful − μ̂_harmless. A
logistic regression on Δ gives it the scale of log-odds.
"""

import json
from collections.abc import Sequence

import numpy as np

from interventions.gates.features import Features, Kind, fitted
from interventions.gates.gate import FittedGate
from interventions.gates.quality import auc, theme_folds

NEAR = 0.02  # AUC


def direction(x: np.ndarray, harmful: np.ndarray) -> np.ndarray:
    """μ̂_harmful − μ̂_harmless of one layer's states (rows, d_model), means scaled to length 1."""
    means = [x[mine].mean(0) for mine in (harmful, ~harmful)]
    return means[0] / np.linalg.norm(means[0]) - means[1] / np.linalg.norm(means[1])


def cosines(x: np.ndarray, along: np.ndarray) -> np.ndarray:
    """(rows,): states scaled to length 1, times a direction."""
    return x @ along / np.maximum(np.linalg.norm(x, axis=1), 1e-12)


def fit(features: Features, rows: np.ndarray, harmful: np.ndarray, themes: Sequence[str]) -> FittedGate:
    """On some rows."""
    from sklearn.linear_model import LogisticRegression

    file, folds = features.files["instruction"], theme_folds(harmful, themes)
    told: dict[int, float] = {}
    for layer in file.layers:
        x, score = features.residual((layer, "instruction"), rows), np.zeros(len(rows))
        for train, test in folds:
            score[test] = cosines(x[test], direction(x[train], harmful[train]))
        told[layer] = auc(harmful, score)
    layers = [layer for layer, value in told.items() if value >= max(told.values()) - NEAR]
    found = [(features.residual((layer, "instruction"), rows), layer) for layer in layers]
    weights = [direction(x, harmful) for x, _ in found]
    delta = np.mean([cosines(x, along) for (x, _), along in zip(found, weights, strict=True)], axis=0)
    scale = float(delta.std()) or 1.0
    line = LogisticRegression(class_weight="balanced").fit(delta[:, None] / scale, harmful)
    weight = np.concatenate(weights) / len(layers) * (line.coef_[0, 0] / scale)
    return fitted(weight, np.zeros(len(weight)), float(line.intercept_[0]), form="cosine",
                  reads=json.dumps([[layer, "instruction"] for layer in layers]))  # fmt: skip


KIND = Kind(fit, lambda model: [(layer, "instruction") for layer in range(model.n_layers)])
