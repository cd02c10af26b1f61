"""Affine concept editing: h − proj_r h + proj_r μ + α r, with r a vector and μ the mean of benign rows.

*Refusal in LLMs is an Affine Function* (ACE, arXiv 2411.09003). α = 0 sets the part of h along r to that of an average
harmless prompt, and with r the difference in means α = 1 to that of an average harmful one. Here α is an arm's
strength, and r its vectors', a category each or their mean.

The public code (EleutherAI/steering-llama3) erases with a LEACE eraser instead, whose reference is the mean of both
classes and which may project obliquely; the text's formula is taken.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from interventions.methods.edits.fitted import FittedMethod
from interventions.methods.edits.rows import Rows


def fit(layers: Iterable[Rows]) -> dict[str, np.ndarray]:
    """`mean` of benign rows, (layers, d_model)."""
    return {"mean": np.stack([rows.benign.mean(0) for rows in layers])}


def offset(fitted: FittedMethod, layers: Sequence[int], table: torch.Tensor) -> torch.Tensor:
    """proj_r μ for each vector of a table (layers, vectors, d_model); 0 where the vector is."""
    mean = torch.stack([fitted.at(layer, "mean") for layer in layers]).double()[:, None]
    r = table.double()
    along = (r * mean).sum(-1, keepdim=True) / (r * r).sum(-1, keepdim=True).clamp_min(1e-30)
    return (along * r).float()
