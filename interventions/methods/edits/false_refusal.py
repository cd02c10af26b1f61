"""False refusal: w = mean(declined harmless prompts) − mean(harmless prompts), made orthogonal to refusal and ablated.

*Surgical, Cheap, and Flexible: Mitigating False Refusal* (arXiv 2410.03415): with r = mean(harmful) − mean(harmless), w − λ(r̂·w)r̂ is
projected out of the residual stream at every layer and position; λ = 1 keeps refusal as it is, less trades some of it.
Both are read at one layer, which the paper chooses on validation prompts (`sweep --layers` does).

The text is taken. Here r's harmless rows are all benign ones, as of the other vectors, and w's those that the model
answers.
"""

from collections.abc import Iterable

import numpy as np
import torch

from data.errors import UserError
from interventions.methods.edits.fitted import FittedMethod
from interventions.methods.edits.rows import Rows, mean_difference


def fit(layers: Iterable[Rows]) -> dict[str, np.ndarray]:
    """`false_refusal` w and `refusal` r, (layers, d_model) each."""
    found = [(rows.declined.mean(0) - rows.harmless.mean(0), mean_difference(rows)) for rows in layers]
    return {"false_refusal": np.stack([w for w, _ in found]), "refusal": np.stack([r for _, r in found])}


def direction(fitted: FittedMethod, layer: int, partial: float = 1.0) -> torch.Tensor:
    """w − λ(r̂·w)r̂ of a layer, unit, (d_model,).

    Raises:
        UserError: Nothing of w is left.
    """
    w, r = (fitted.at(layer, name).double() for name in ("false_refusal", "refusal"))
    left = w - partial * (r @ w) / (r @ r).clamp_min(1e-30) * r
    if float(left.norm()) <= 1e-6 * float(w.norm()):
        raise UserError(
            f"false-refusal: at layer {layer} nothing of its direction is left beside refusal; take another layer"
        )
    return (left / left.norm()).float()
