"""First principal component of the differences that `mean` or, given pairs, `contrastive` averages."""

import numpy as np

from interventions.fitting.contrasts import has_suffixes
from interventions.fitting.differences import unit
from interventions.methods.method import Method, Sides


def pca_direction(differences: np.ndarray) -> np.ndarray:
    """First principal component of differences (rows, d_model) about 0: (d_model,), unit, of either sign.

    Not centred, because their mean is what is looked for: the same as PCA of the differences together with their
    negatives, and so as in *Representation Engineering* (arXiv 2310.01405, section 3.1), where the order within a
    pair is random.
    """
    from scipy.linalg import eigh

    wide = differences.shape[0] <= differences.shape[1]
    gram = differences @ differences.T if wide else differences.T @ differences
    last = len(gram) - 1
    leading = eigh(gram, subset_by_index=[last, last])[1][:, 0]
    return unit(differences.T @ leading if wide else leading)


def directions(sides: Sides, paired: bool) -> np.ndarray:
    """One a category, (categories, d_model): of the pairs' differences, or of refusing rows less the answered rows' mean."""
    return np.stack([pca_direction(p - (n if paired else n.mean(0))) for p, n in sides])


METHOD = Method(is_paired=has_suffixes, directions=directions)
