"""The basis spans the category vectors, is white over benign rows, and the map is its formula."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm, subspace_angles
from sklearn.covariance import EmpiricalCovariance, LedoitWolf
from sklearn.preprocessing import StandardScaler

from data.errors import UserError
from interventions.fitting.covariance import shrunk_covariance, within_class_covariance
from interventions.methods.fit import fit_vectors
from interventions.methods.lowrank import LowRank, basis, published_basis, start_lowrank
from interventions.traced.edits import lowrank_delta
from tests.made.activation_files import CATEGORIES, prompt_rows, write

N, WIDTH = 60, 24


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    rows = prompt_rows(N, "train") + prompt_rows(20, "test")
    rng = np.random.default_rng(0)
    values = rng.standard_normal((len(rows), 2, WIDTH)) * np.linspace(0.5, 20, WIDTH) + 3
    for at, row in enumerate(rows):
        if row["label"] == "harmful":
            values[at, :, CATEGORIES.index(row["category"])] += 4
    path = write(tmp_path_factory.mktemp("lowrank"), values, rows)
    benign = values[[row["label"] == "benign" and row["split"] == "train" for row in rows], 1]
    return path, fit_vectors(path), benign.astype(np.float32).astype(np.float64)


def stacked(vectors):
    return np.stack([vectors.at(1, name).double().numpy() for name in CATEGORIES], axis=1)


def test_shrunk_covariance_is_scikit_learns_on_standardised_columns():
    x = np.random.default_rng(0).standard_normal((15, 40)) * np.linspace(1, 100, 40) + 7
    scaler = StandardScaler().fit(x)
    scale = np.diag(np.asarray(scaler.scale_))
    wanted = scale @ LedoitWolf().fit(scaler.transform(x)).covariance_ @ scale
    assert np.allclose(shrunk_covariance(x), wanted)
    assert np.linalg.eigvalsh(shrunk_covariance(x)).min() > 0 > np.linalg.eigvalsh(np.cov(x.T)).min() - 1e-9
    assert np.allclose(
        within_class_covariance([x[:5], x[5:]]), shrunk_covariance(x[:5]) / 3 + shrunk_covariance(x[5:]) * 2 / 3
    )


def test_the_basis_spans_the_vectors_and_is_white(made):
    _, vectors, benign = made
    up, down = basis(stacked(vectors), benign)
    assert np.allclose(down.T @ up, np.eye(2))
    assert subspace_angles(up, stacked(vectors)).max() < 1e-6
    covariance = shrunk_covariance(benign)
    assert np.allclose(down.T @ covariance @ down, np.eye(2))
    assert np.allclose(up.T @ np.linalg.inv(covariance) @ up, np.eye(2))
    assert np.allclose(up @ down.T @ stacked(vectors), stacked(vectors))  # a projection on their span
    assert (np.diag(down.T @ stacked(vectors)) > 0).all()  # each column leans towards its own vector


def test_the_published_basis_is_its_formula(made):
    _, vectors, benign = made
    covariance = EmpiricalCovariance().fit(benign).covariance_ + 1e-4 * np.eye(WIDTH)
    whitened = np.linalg.inv(np.real(sqrtm(covariance))) @ stacked(vectors)
    q, r = np.linalg.qr(whitened)
    up, down = published_basis(stacked(vectors), benign)
    assert up is down and np.allclose(up, q * np.sign(np.diag(r)), atol=1e-6)
    assert np.allclose(up.T @ up, np.eye(2))


def test_the_published_basis_looks_where_nothing_was_observed():
    """The flaw that `published` keeps: fewer rows than dimensions, and the whitened vectors leave the rows' span."""
    rng = np.random.default_rng(0)
    benign, vectors = rng.standard_normal((20, 200)), rng.standard_normal((200, 3))
    seen = np.linalg.qr((benign - benign.mean(0)).T)[0][:, :19]
    inside = lambda columns: (np.linalg.norm(seen.T @ columns, axis=0) / np.linalg.norm(columns, axis=0)).max()  # noqa: E731
    assert inside(published_basis(vectors, benign)[0]) < 0.01 < inside(vectors)
    assert subspace_angles(basis(vectors, benign)[0], vectors).max() < 1e-6


@given(scale=st.floats(0.01, 100))
@settings(max_examples=15, deadline=None)
def test_the_basis_does_not_change_with_the_vectors_lengths(made, scale):
    _, vectors, benign = made
    one, two = basis(stacked(vectors), benign), basis(stacked(vectors) * scale, benign)
    assert np.allclose(one[0], two[0]) and np.allclose(one[1], two[1])


@pytest.mark.parametrize("mode", ["fixed", "input"])
def test_delta_is_its_formula(made, mode):
    path, vectors, benign = made
    edit = start_lowrank(path, vectors, 1, mode=mode)
    h = torch.from_numpy(benign[:7]).float()
    up, down, z = (part.double().numpy() for part in (edit.U, edit.V, edit.z))
    wanted = np.tile(up @ z, (7, 1)) if mode == "fixed" else (benign[:7] - benign.mean(0)) @ down @ up.T
    assert np.allclose(lowrank_delta(h, edit.edit).expand(h.shape).numpy(), wanted, atol=1e-4)
    assert np.allclose(edit.mean.numpy(), benign.mean(0), rtol=1e-5)


def test_an_input_dependent_map_leaves_the_mean_benign_row_alone(made):
    edit = start_lowrank(made[0], made[1], 1, mode="input")
    assert torch.allclose(lowrank_delta(edit.mean[None], edit.edit), torch.zeros(1, WIDTH))


def test_the_start_is_small_and_follows_its_seed(made):
    path, vectors, _ = made
    one, two = start_lowrank(path, vectors, 1, seed=5), start_lowrank(path, vectors, 1, seed=5)
    assert torch.equal(one.z, two.z) and one.z.abs().max() < 0.05
    assert not torch.equal(one.z, start_lowrank(path, vectors, 1, seed=6).z)


def test_the_file_comes_back_byte_for_byte(made, tmp_path):
    for published in (False, True):
        edit = start_lowrank(made[0], made[1], 1, published=published)
        edit.save(tmp_path / "lowrank.safetensors")
        back = LowRank.load(tmp_path / "lowrank.safetensors")
        assert back.metadata == edit.metadata and back.layer == 1
        assert all(torch.equal(getattr(back, name), getattr(edit, name)) for name in ("U", "V", "z", "mean"))
        assert back.U.shape == back.V.shape == (WIDTH, 2) and back.z.shape == (2,) and back.mean.shape == (WIDTH,)


def test_what_does_not_fit_is_said(made, tmp_path, tiny):
    path, vectors, _ = made
    with pytest.raises(UserError, match="unknown mode"):
        start_lowrank(path, vectors, 1, mode="free")
    with pytest.raises(UserError, match="no activations at layer 9"):
        start_lowrank(path, vectors, 9)
    with pytest.raises(UserError, match="0 benign rows in split 'validation'"):
        start_lowrank(path, vectors, 1, split="validation")
    with pytest.raises(UserError, match="are those of 'other'"):
        start_lowrank(path, replace(vectors, metadata=vectors.metadata | {"model": "other"}), 1)
    twice = replace(vectors, tensors=dict.fromkeys(CATEGORIES, vectors.tensors["weapons"]))
    with pytest.raises(UserError, match="depend on one another"):
        start_lowrank(path, twice, 1)
    edit = start_lowrank(path, vectors, 1)
    with pytest.raises(UserError, match="24 wide"):
        edit.check(tiny)
    replace(edit, z=torch.zeros(3)).save(tmp_path / "shape.safetensors")
    replace(edit, metadata=edit.metadata | {"mode": "free"}).save(tmp_path / "mode.safetensors")
    vectors.save(tmp_path / "vectors.safetensors")
    for name, word in (("shape", "belong"), ("mode", "damaged"), ("vectors", "lacks"), ("absent", "not a readable")):
        with pytest.raises(UserError, match=word):
            LowRank.load(tmp_path / f"{name}.safetensors")
