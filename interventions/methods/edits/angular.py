"""Angular steering: states are turned within one plane to an angle from the direction of refusal; their length stays.

arXiv 2510.26243: h − P h + ‖P h‖ (cos θ b₁ + sin θ b₂), at every layer and position, P the projector on the span
of b₁ and b₂. A candidate a layer is the difference in means of harmful and benign rows; b₁ is the one with the highest
mean cosine to all, b₂ the first principal component of all of them, made orthogonal to b₁. Adaptive: only where b₁·h > 0.

As in the public code, rows are scaled to length 1 before they are averaged, their means too, and the principal component
is centred; its sign, which is arbitrary there, is the one that the last layer's candidate has. There the outputs of
the normalisations before attention and feed-forward are turned, here the residual stream behind each block.

A strength is a share of the way along the shorter arc: 1 ends at `angle` (by default at refusal), −1 opposite, 0 leaves
states alone, so that a gate can.
"""

import math
from collections.abc import Iterable

import numpy as np

from data.errors import UserError
from interventions.fitting.differences import unit
from interventions.methods.edits.fitted import FittedMethod
from interventions.methods.edits.rows import Rows
from interventions.traced.edits import Turn


def fit(layers: Iterable[Rows]) -> dict[str, np.ndarray]:
    """`plane`, (2, d_model) orthonormal."""
    return {"plane": plane_of(np.stack([candidate(rows) for rows in layers]))}


def candidate(rows: Rows) -> np.ndarray:
    """Difference of the mean directions of harmful and benign rows, (d_model,)."""
    return unit(unit(rows.harmful).mean(0)) - unit(unit(rows.benign).mean(0))


def plane_of(candidates: np.ndarray) -> np.ndarray:
    """b₁ and b₂ of candidates (layers, d_model).

    Raises:
        UserError: Fewer than two layers, or all candidates alike.
    """
    units = unit(candidates)
    first = units[(units @ units.T).mean(0).argmax()]
    centred = candidates - candidates.mean(0)
    second = np.linalg.svd(centred, full_matrices=False)[2][0]
    second = second - (second @ first) * first
    if len(candidates) < 2 or np.linalg.norm(second) < 1e-6 or not centred.any():
        raise UserError("angular: one layer's direction spans no plane; run extract with all --layers")
    second = unit(second)
    return np.stack([first, second * (1 if candidates[-1] @ second >= 0 else -1)])


def turn(fitted: FittedMethod, degrees: float, adaptive: bool) -> Turn:
    """It as a trace needs it."""
    return Turn(fitted.tensors["plane"], math.radians(degrees), adaptive)
