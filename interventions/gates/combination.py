"""Several gates as one: the mean, the smallest (`and`) or the largest (`or`) of their calibrated scores.

A member's score is calibrated by Platt's regression (1999): sigmoid(a · log-odds + b), a and b fitted to scores of rows of
other themes than its own fit's. So all members speak of the same thing, the probability of harm where both
kinds are as many, and the joined score has a threshold of its own, chosen as every gate's is.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.special import logit

from interventions.gates.features import Features, Fit
from interventions.gates.gate import NOTHING, FittedGate
from interventions.gates.quality import theme_folds

INNER_FOLDS = 3
NEVER = 1e-7


def out_of_fold(
    features: Features, rows: np.ndarray, harmful: np.ndarray, themes: Sequence[str], fit: Fit, folds: int = 5
) -> np.ndarray:
    """(rows,) float32 scores, each by a gate that was fitted without the row's theme.

    Raises:
        UserError: Too few themes.
    """
    score, names = np.empty(len(rows), np.float32), np.array(themes)
    for train, test in theme_folds(harmful, themes, folds):
        gate = fit(features, rows[train], harmful[train], names[train].tolist())
        score[test] = features.score(gate, rows[test])
    return score


def platt(score: np.ndarray, harmful: np.ndarray) -> tuple[float, float]:
    """a and b."""
    from sklearn.linear_model import LogisticRegression

    odds = logit(score.astype(np.float64).clip(NEVER, 1 - NEVER))
    scale = float(odds.std()) or 1.0
    line = LogisticRegression(class_weight="balanced").fit(odds[:, None] / scale, harmful)
    return float(line.coef_[0, 0] / scale), float(line.intercept_[0])


def joining(how: str, fits: Mapping[str, Fit]) -> Fit:
    """How a gate that joins others is fitted.

    Args:
        how: A value of `data.contract.JOINS`.
        fits: Its members' names, and how each is fitted.
    """

    def fit(features: Features, rows: np.ndarray, harmful: np.ndarray, themes: Sequence[str]) -> FittedGate:
        members = {}
        for name, own in fits.items():
            a, b = platt(out_of_fold(features, rows, harmful, themes, own, INNER_FOLDS), harmful)
            members[name] = own(features, rows, harmful, themes).calibrated(a, b)
        return FittedGate(NOTHING, NOTHING, torch.zeros(1), torch.tensor([0.5]), {"joined": how}, members)

    return fit
