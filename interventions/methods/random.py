"""A random direction as long as the difference in means. A control."""

from collections.abc import Sequence

import numpy as np

from interventions.methods.method import Method


def random_directions(layers: Sequence[int], shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Standard normal (categories, layers, d_model); a layer's draw doesn't depend on which others there are."""
    draws = [np.random.default_rng([seed, layer]).standard_normal((shape[0], shape[2])) for layer in layers]
    return np.stack(draws, axis=1)


METHOD = Method(draw=random_directions)
