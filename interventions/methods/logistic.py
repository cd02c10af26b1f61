"""Normal of a logistic regression between a category's rows and benign rows."""

import numpy as np

from interventions.fitting.differences import unit
from interventions.fitting.linear import fit_logistic
from interventions.methods.method import Method, Sides


def logistic_direction(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Normal of the logistic regression that tells two groups of rows apart: (d_model,), unit, in the raw residual."""
    x = np.concatenate([positive, negative])
    return unit(fit_logistic(x, np.arange(len(x)) < len(positive))[0])


def directions(sides: Sides, _paired: bool) -> np.ndarray:
    """One a category, (categories, d_model)."""
    return np.stack([logistic_direction(p, n) for p, n in sides])


METHOD = Method(directions=directions)
