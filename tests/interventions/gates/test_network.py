"""A gate that is a small network: what it learns that no line can, its classes, and its file."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from data import UserError
from interventions.gates.gate import FittedGate
from interventions.gates.kinds import network, ridge
from interventions.traced.gating import Network
from tests.made.tools import Columns

WIDTH = 6


def made(count: int, seed: int, categories: bool = True) -> tuple[Columns, np.ndarray]:
    """Benign rows in the middle, harmful ones of two kinds on either side: no line tells them apart."""
    draw = np.random.default_rng(seed)
    harmful = draw.random(count) < 0.4
    side = np.where(draw.random(count) < 0.5, 1, -1)
    x = draw.normal(size=(count, WIDTH))
    x[:, 0] += 4 * harmful * side
    kinds = [("a" if one > 0 else "b") if bad else None for bad, one in zip(harmful, side, strict=True)]
    return Columns([""] * count, n_layers=2, categories=kinds if categories else (), values=x), harmful


@pytest.mark.parametrize("categories", [True, False])
def test_it_tells_apart_what_no_line_does(categories):
    known, harmful = made(1500, 1, categories)
    other, wanted = made(500, 2, categories)
    gate = network.fit(known, np.arange(1500), harmful, [])
    assert json.loads(gate.metadata["classes"]) == (["a", "b"] if categories else [""])
    every = np.arange(500)
    assert roc_auc_score(wanted, other.score(gate, every)) > 0.93
    weight, mean, bias = ridge.fit(known.values, harmful)
    assert roc_auc_score(wanted, (other.values - mean) @ weight + bias) < 0.65


def test_its_score_is_the_formula_and_the_same_seed_gives_the_same_network():
    known, harmful = made(300, 3)
    first, second = (network.fit(known, np.arange(300), harmful, []) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first.parts, second.parts, strict=True))
    x = np.concatenate([known.values] * len(first.reads), axis=1)
    assert first.network is not None
    inner, outer, classes = (part.double().numpy() for part in first.network)
    hidden = np.maximum((x - first.mean.double().numpy()) @ first.weight.double().numpy().T + inner, 0)
    odds = np.exp(hidden @ outer.T + classes)
    wanted = odds[:, 1:].sum(1) / odds.sum(1)
    assert np.allclose(known.score(first, np.arange(300)), wanted, atol=1e-5)


def test_a_fit_leaves_the_random_numbers_of_others_alone():
    known, harmful = made(200, 4)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    network.fit(known, np.arange(200), harmful, [])
    assert torch.equal(torch.rand(3), wanted)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([None, "a", "b", "c"])), min_size=1, max_size=120))
def test_every_harmful_row_has_a_class_and_benign_ones_share_the_first(rows):
    harmful = np.array([one for one, _ in rows])
    classes, names = network.classes_of(harmful, [category for _, category in rows])
    assert ((classes > 0) == harmful).all() and set(classes[harmful]) <= set(range(1, len(names) + 1))
    for at, (bad, category) in enumerate(rows):
        count = sum(one and other == category for one, other in rows)
        if bad:
            assert names[classes[at] - 1] == (category if category and count >= network.RARE else "")


def test_its_file_brings_it_back_and_a_damaged_one_is_refused(tmp_path):
    known, harmful = made(300, 6)
    origin = {"kind": "network", "model": "m", "revision": "", "site": "resid_post"}
    fitted = network.fit(known, np.arange(300), harmful, [])
    gate = replace(fitted, metadata=origin | fitted.metadata)
    gate.save(tmp_path / "g.safetensors")
    again = FittedGate.load(tmp_path / "g.safetensors")
    assert isinstance(again.network, Network) and again.reads == gate.reads
    assert all(torch.equal(one, other) for one, other in zip(again.parts, gate.parts, strict=True))
    assert gate.network is not None
    odd = {"inner": gate.network.inner[1:], "outer": gate.network.outer[:, 1:], "classes": gate.network.classes[:1]}
    for name, values in odd.items():
        replace(gate, network=gate.network._replace(**{name: values})).save(tmp_path / "odd.safetensors")
        with pytest.raises(UserError):
            FittedGate.load(tmp_path / "odd.safetensors")
    replace(gate, weight=gate.weight[0]).save(tmp_path / "odd.safetensors")
    with pytest.raises(UserError):
        FittedGate.load(tmp_path / "odd.safetensors")
    replace(gate, network=None).save(tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match="inner"):
        FittedGate.load(tmp_path / "odd.safetensors")
