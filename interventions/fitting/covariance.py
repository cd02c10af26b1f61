"""Covariances that can be inverted: far fewer prompts than dimensions is the usual case."""

import warnings
from collections.abc import Sequence

import numpy as np


def shrunk_covariance(x: np.ndarray) -> np.ndarray:
    """Ledoit–Wolf shrinkage of standardised columns, scaled back: (rows, d) -> (d, d).

    Standardised first, so that the few residual dimensions of huge variance don't set the target for all
    others; the same as scikit-learn's LDA with shrinkage='auto'. Ledoit & Wolf, *A well-conditioned estimator for
    large-dimensional covariance matrices* (2004).
    """
    from sklearn.covariance import ledoit_wolf
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Only one sample available")
        covariance, _ = ledoit_wolf(scaler.fit_transform(x))
    scale = np.asarray(scaler.scale_)
    return scale[:, None] * covariance * scale[None, :]


def within_class_covariance(groups: Sequence[np.ndarray]) -> np.ndarray:
    """Shrunk covariance inside groups, weighted by their sizes: each (rows, d) -> (d, d)."""
    total = sum(len(group) for group in groups)
    summed = np.zeros((groups[0].shape[1],) * 2)
    for group in groups:
        summed += len(group) / total * shrunk_covariance(group)
    return summed
