"""AlphaSteer: h + s·hPΔ, next to nothing on the prompts that P was made from, and refusal on the others.

arXiv 2506.07022: P projects on the span of the benign activations' smallest singular directions;
Δ = (XᵀX + λPᵀP)⁺XᵀR with X = H_harmful P, and every row of R the refusal vector r = mean(harmful) − mean(benign). R's
rows being alike, PΔ = a rᵀ with a = P(XᵀX + λPᵀP)⁺Xᵀ1: what is added is r times one number of h, which is what is stored.

For a positive strength, towards refusal, as published. For a negative one the roles are swapped: P from the harmful
activations, X from the benign ones that the model declines, so that refusal is taken from these.

As in the public code: λ = 10, P of the last 60 % of d_model directions (there 30 to 60 %, by hand), no centring, and in a
prompt every position gets what its last token asks for (the text has each position's own; the maps are fitted to last
tokens alone). The published layers are 8 to 19 of 32. There block L's input is edited, here block L's output.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from interventions.methods.edits.fitted import FittedMethod
from interventions.methods.edits.rows import Rows, mean_difference
from interventions.traced.edits import LowRankEdit

NULL_SHARE, PENALTY = 0.6, 10.0
SIGNS = {"towards": 1, "away": -1}


def fit(layers: Iterable[Rows]) -> dict[str, np.ndarray]:
    """`refusal` r, and a of both ways, `towards` and `away`, (layers, d_model) each."""
    found = [
        (mean_difference(rows), reader(rows.benign, rows.harmful), reader(rows.harmful, rows.declined))
        for rows in layers
    ]
    return {name: np.stack([parts[at] for parts in found]) for at, name in enumerate(("refusal", *SIGNS))}


def reader(spared: np.ndarray, steered: np.ndarray) -> np.ndarray:
    """a = P(XᵀX + λPᵀP)⁺Xᵀ1, (d_model,): h·a is near 0 on spared rows and near 1 on steered ones, (rows, d_model) each."""
    null = null_space(spared)
    x = steered @ null  # P = null nullᵀ, so that the pseudo-inverse is an inverse among null's coordinates
    return null @ np.linalg.solve(x.T @ x + PENALTY * np.eye(null.shape[1]), x.sum(0))


def null_space(x: np.ndarray, share: float = NULL_SHARE) -> np.ndarray:
    """The right singular vectors of the smallest singular values of (rows, d_model), orthonormal columns."""
    count = int(x.shape[1] * share)
    return np.linalg.eigh(x.T @ x)[1][:, :count]


def maps(fitted: FittedMethod, layers: Sequence[int]) -> tuple[tuple[int, LowRankEdit], ...]:
    """For each layer the map of positive strengths and that of negative ones."""
    return tuple(
        (layer, LowRankEdit(r[:, None], fitted.at(layer, name)[:, None], nothing[:1], nothing, "last", sign))
        for layer in layers
        for r in (fitted.at(layer, "refusal"),)
        for nothing in (torch.zeros_like(r),)
        for name, sign in SIGNS.items()
    )
