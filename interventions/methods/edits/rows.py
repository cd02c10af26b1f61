"""The rows that a method's own tensors are fitted to, one layer at a time."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np


class Rows(NamedTuple):
    """Residuals at one layer, float64 (rows, d_model) each.

    Attributes:
        layer: The block.
        harmful: Rows that should be declined.
        benign: All others.
        declined: Benign rows that the model declines; none where nobody asked.
        harmless: Benign rows that it answers, those without a category if there are any.
    """

    layer: int
    harmful: np.ndarray
    benign: np.ndarray
    declined: np.ndarray
    harmless: np.ndarray


Fit = Callable[[Iterable[Rows]], dict[str, np.ndarray]]


def mean_difference(rows: Rows) -> np.ndarray:
    """mean(harmful) − mean(benign), (d_model,)."""
    return rows.harmful.mean(0) - rows.benign.mean(0)
