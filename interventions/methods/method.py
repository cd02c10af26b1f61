"""What a steering method is: which rows it compares, and the direction that it finds in them at one layer."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from interventions.fitting.contrasts import Contrast

Sides = Sequence[tuple[np.ndarray, np.ndarray]]  # of each category (rows, d_model) that refuse, and that answer


class Method(NamedTuple):
    """A way to a category's direction; `fit.fit_vectors` does what all have in common.

    The difference in means δ of each category's contrast is computed first, at all layers. Then:

    Attributes:
        is_paired: Whether it compares each prompt with itself, from the activations' rows.
        relabel: Other contrasts in the place of the true ones; a control.
        directions: Unit directions ŵ (categories, d_model) at one layer, from the contrasts' sides and whether they are
            paired: the vector is the part of δ along ŵ, ŵ(ŵ·δ). It points towards refusal, and adding it at strength 1
            moves an average answered row as far along ŵ as the average refused row lies. None: the vector is δ.
        draw: Directions (categories, layers, d_model) drawn at random, for layers, shape and seed, in δ's place and
            length; a control.
    """

    is_paired: Callable[[pl.DataFrame], bool] = lambda _rows: False
    relabel: Callable[[list[Contrast], np.random.Generator], list[Contrast]] | None = None
    directions: Callable[[Sides, bool], np.ndarray] | None = None
    draw: Callable[[Sequence[int], tuple[int, ...], int], np.ndarray] | None = None
