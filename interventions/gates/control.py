"""Logistic regression on the log probabilities of the control tokens, first after the unsteered prompt: what the model says."""

import numpy as np

from interventions.fitting.linear import fit_logistic


def fit(x: np.ndarray, harmful: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Weight, mean and bias; x (rows, control tokens) log probabilities."""
    return fit_logistic(x, harmful, c=1.0)
