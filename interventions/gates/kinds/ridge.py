"""Ridge regression of ±1 on the residual stream at several layers and positions.

x standardised with both classes counting the same, and divided by √d; w = argmin Σ c_i (x_i·w − y_i)² + λ‖w‖², c_i the
inverse of the class's size, solved in the rows' dual where rows are fewer than dimensions. score = sigmoid(4 x·w).

Which layers and positions, and λ, is chosen by the AUC of scores that leave each row's theme out. These need no fits of their own:
with G = C^½ K C^½ + λ and β = G⁻¹ C^½ y they are y_g − C_g^−½ ((G⁻¹)_gg)⁻¹ β_g for the rows g of a theme, so that one eigendecomposition
of C^½ K C^½ gives them for every λ. Its cost grows with the cube of the rows: of many rows, every so many themes choose for all.
"""

import json
from collections.abc import Sequence

import numpy as np

from interventions.gates.features import Features, Kind, fitted, scaled
from interventions.gates.gate import FittedGate
from interventions.gates.quality import auc
from interventions.model.model import Model
from interventions.traced.gating import Read

PENALTY, PENALTIES = 0.3, (0.3, 0.03, 0.1, 1.0, 3.0)
CHOOSING = 2000  # rows at most that layers, positions and penalty are chosen on
SHARPNESS = 4.0  # of the sigmoid: monotonous, so that it changes no decision
THROUGH, EARLY, LATE = ((8, 11, 14, 17, 20, 23), (4, 9, 14, 19), (20, 23, 26, 29))  # of 30 blocks
GRID = (
    (("last", THROUGH), ("mean", EARLY)),
    (("last", THROUGH),),
    (("last", LATE), ("mean", EARLY)),
    (("mean", EARLY),),
    (("last", THROUGH), ("mean", EARLY), ("instruction", THROUGH)),
)


def grid(n_layers: int) -> list[list[Read]]:
    """What may be read of a model of so many blocks: layers and positions, of which the first is the default."""
    return [[read for position, layers in some for read in scaled(position, layers, n_layers)] for some in GRID]


def fit(x: np.ndarray, harmful: np.ndarray, penalty: float = PENALTY) -> tuple[np.ndarray, np.ndarray, float]:
    """Weight (x,), mean (x,) and bias of the log-odds (x − mean)·weight + bias.

    Args:
        x: (rows, x) float64.
        harmful: (rows,) bool.
        penalty: λ.
    """
    share = _shares(harmful)
    mean, scale = _standard(x, share)
    scale = scale / np.sqrt(x.shape[1])
    z, weighs = (x - mean) * scale, share * len(x)
    if len(x) > x.shape[1]:
        normal = (z.T * weighs) @ z + penalty * np.eye(x.shape[1])
        return SHARPNESS * scale * np.linalg.solve(normal, z.T @ (weighs * _signs(harmful))), mean, 0.0
    dual = np.linalg.solve(z @ z.T + penalty * np.diag(1 / weighs), _signs(harmful))
    return SHARPNESS * scale * (z.T @ dual), mean, 0.0


def without_theme(
    kernel: np.ndarray, harmful: np.ndarray, themes: Sequence[str], penalties: Sequence[float]
) -> np.ndarray:
    """Predictions (penalties, rows) of each row by the regression on all rows but those of its theme.

    Standardisation aside: `kernel` (rows, rows) is of x standardised once.
    """
    root = np.sqrt(_shares(harmful) * len(harmful))
    values, vectors = np.linalg.eigh(root[:, None] * kernel * root)
    target, names = root * _signs(harmful), np.array(themes)
    found = np.empty((len(penalties), len(harmful)))
    groups = [np.flatnonzero(names == name) for name in dict.fromkeys(themes)]
    for at, penalty in enumerate(penalties):
        inverse = 1 / (values.clip(min=0) + penalty)
        dual = vectors @ (inverse * (vectors.T @ target))
        for rows in groups:
            block = (vectors[rows] * inverse) @ vectors[rows].T
            found[at, rows] = (target[rows] - np.linalg.solve(block, dual[rows])) / root[rows]
    return found


def fit_chosen(features: Features, rows: np.ndarray, harmful: np.ndarray, themes: Sequence[str]) -> FittedGate:
    """On some rows, reads and penalty chosen among them."""
    choices, some = grid(features.n_layers), choosing(themes)
    those, label, names = rows[some], harmful[some], np.array(themes)[some].tolist()
    share, kernels = _shares(label), {}
    for read in dict.fromkeys(read for reads in choices for read in reads):
        x = features.residual(read, those)
        mean, scale = _standard(x, share)
        z = (x - mean) * scale
        kernels[read] = z @ z.T / x.shape[1]
    told = []
    for reads in choices:
        kernel = np.mean([kernels[read] for read in reads], axis=0)
        told += [(auc(label, score), reads, penalty) for score, penalty in
                 zip(without_theme(kernel, label, names, PENALTIES), PENALTIES, strict=True)]  # fmt: skip
    best, reads, penalty = max(told, key=lambda one: one[0])  # the first of equals
    x = np.concatenate([features.residual(read, rows) for read in reads], axis=1)
    return fitted(*fit(x, harmful, penalty), reads=json.dumps(reads), penalty=f"{penalty:g}", chosen_by_auc=f"{best:.6f}",
                  chosen_among=str(len(told)), chosen_rows=str(len(some)))  # fmt: skip


def choosing(themes: Sequence[str], most: int = CHOOSING) -> np.ndarray:
    """Numbers of the rows to choose on: all of them, or of more than `most` those of every so many themes, at least ten of these."""
    names = list(dict.fromkeys(themes))
    kept = set(names[:: min(-(-len(themes) // most), max(1, len(names) // 10))])
    return np.array([at for at, theme in enumerate(themes) if theme in kept])


def _shares(harmful: np.ndarray) -> np.ndarray:
    """c_i: they sum to 1, half for each class."""
    return np.where(harmful, 0.5 / harmful.sum(), 0.5 / (~harmful).sum())


def _signs(harmful: np.ndarray) -> np.ndarray:
    return np.where(harmful, 1.0, -1.0)


def _standard(x: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (x,) and one over the spread (x,), zero where there is none."""
    mean = share @ x
    spread = np.sqrt(share @ (x - mean) ** 2)
    return mean, np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)


def reads_of(model: Model) -> list[Read]:
    """Everything that may be read."""
    return list(dict.fromkeys(read for reads in grid(model.n_layers) for read in reads))


KIND = Kind(fit_chosen, reads_of)
