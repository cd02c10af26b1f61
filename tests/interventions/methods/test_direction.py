"""Directions: what they add up to, held against numpy."""

import json

import numpy as np
import pytest
import torch

from data.errors import UserError
from interventions import SteeringVectors


@pytest.fixture
def vectors():
    torch.manual_seed(0)
    tensors = {name: torch.randn(3, 8) for name in ("a", "b")}
    metadata = {"model": "m", "layers": "[0, 1, 2]", "counts": json.dumps({"a": 1, "b": 1}), "residual_norms": "[2.0, 3.0, 4.0]", "site": "resid_post"}  # fmt: skip
    return SteeringVectors(tensors, metadata)


def test_a_direction_is_what_strength_one_adds(vectors):
    for layer in range(3):
        assert torch.allclose(vectors["a"].at(layer), vectors.delta(layer, "a", 1.0, "residual"))
        assert torch.allclose((vectors["mean"] * -0.3).at(layer), vectors.delta(layer, "mean", -0.3, "residual"))
        assert torch.allclose(vectors.direction("b", "raw").at(layer), vectors.at(layer, "b"))


def test_directions_add_up(vectors):
    a, b = vectors["a"].tensor.numpy(), vectors["b"].tensor.numpy()
    made = (vectors["a"] * 0.5 - vectors["b"] / 4 + -vectors["a"]) * 2
    np.testing.assert_allclose(made.tensor.numpy(), (0.5 * a - b / 4 - a) * 2, rtol=1e-5, atol=1e-6)
    assert torch.equal((2 * vectors["a"]).tensor, (vectors["a"] * 2).tensor)


def test_cosines_are_numpys(vectors):
    a, b = vectors["a"].tensor.double().numpy(), vectors["b"].tensor.double().numpy()
    expected = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(vectors["a"].cosine(vectors["b"]).numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(vectors["a"].norms().numpy(), [2.0, 3.0, 4.0], rtol=1e-6)


def test_what_does_not_go_together_is_refused(vectors):
    other = SteeringVectors(vectors.tensors, vectors.metadata | {"model": "another"})
    fewer = SteeringVectors({name: tensor[:2] for name, tensor in vectors.tensors.items()},
                            vectors.metadata | {"layers": "[0, 1]", "residual_norms": "[2.0, 3.0]"})  # fmt: skip
    for odd in (other, fewer):
        with pytest.raises(UserError):
            _ = vectors["a"] + odd["a"]
    with pytest.raises(UserError, match="layer 7"):
        vectors["a"].at(7)
    with pytest.raises(UserError, match="no vector for category"):
        _ = vectors["c"]
