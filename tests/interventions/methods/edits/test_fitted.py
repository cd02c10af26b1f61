"""What the methods with tensors of their own are fitted to, by loops, numpy and scikit-learn."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sklearn.decomposition import PCA

from data.contract import EDITS
from data.errors import UserError
from interventions.methods.edits import affine, alphasteer, angular, false_refusal
from interventions.methods.edits.fit import fit_edit
from interventions.methods.edits.fitted import FittedMethod
from tests.made.activation_files import CATEGORIES, prompt_rows, write

N, LAYERS, WIDTH = 96, 3, 20


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Rows whose activations are themselves, and which benign ones are declined: every other near-miss, of any split."""
    rows = prompt_rows(N, "train") + prompt_rows(16, "test")
    rng = np.random.default_rng(0)
    values = rng.standard_normal((len(rows), LAYERS, WIDTH)) * np.linspace(3, 0.05, WIDTH)
    for at, row in enumerate(rows):
        if row["label"] == "harmful":
            values[at, :, 10 + CATEGORIES.index(row["category"])] += 2
        elif row["category"]:
            values[at, :, 15] += 1
    values = values.astype(np.float32)
    declined = np.array(
        [row["label"] == "benign" and bool(row["category"]) and at % 8 == 3 for at, row in enumerate(rows)]
    )
    return write(tmp_path_factory.mktemp("own"), values, rows), values.astype(np.float64), rows, declined


def group(made, wanted, layer):
    _, values, rows, declined = made
    return np.array(
        [values[at, layer] for at, row in enumerate(rows) if row["split"] == "train" and wanted(row, declined[at])]
    )


def harmful(row, _declined):
    return row["label"] == "harmful"


def benign(row, _declined):
    return row["label"] == "benign"


def near(one, other, tolerance=1e-4):
    assert np.allclose(np.asarray(one), other, rtol=tolerance, atol=tolerance * np.abs(other).max())


def test_affine_keeps_the_mean_of_benign_rows_and_moves_to_it(made):
    fitted = fit_edit(made[0], "affine")
    rng = np.random.default_rng(1)
    table = rng.standard_normal((2, 3, WIDTH))
    table[0, 1] = 0
    found = affine.offset(fitted, [0, 2], torch.from_numpy(table).float()).numpy()
    for place, layer in enumerate((0, 2)):
        mean = group(made, benign, layer).mean(0)
        near(fitted.at(layer, "mean"), mean)
        for at, r in enumerate(table[place]):
            wanted = (np.outer(r, r) / (r @ r)) @ mean if r.any() else np.zeros(WIDTH)
            assert np.allclose(found[place, at], wanted, atol=1e-4)


@pytest.mark.parametrize("partial", [1.0, 0.4, 0.0])
def test_false_refusal_is_orthogonal_to_refusal_as_far_as_asked(made, partial):
    fitted = fit_edit(made[0], "false-refusal", declined=made[3])
    for layer in range(LAYERS):
        w = group(made, lambda row, gone: benign(row, gone) and gone, layer).mean(0)
        w = w - group(made, lambda row, gone: benign(row, gone) and not row["category"], layer).mean(0)
        r = group(made, harmful, layer).mean(0) - group(made, benign, layer).mean(0)
        r = r / np.linalg.norm(r)
        wanted = w - partial * np.outer(r, r) @ w
        found = false_refusal.direction(fitted, layer, partial)
        near(found, wanted / np.linalg.norm(wanted))
        assert abs(float(found.double() @ torch.from_numpy(r))) < 1e-5 or partial < 1


def test_alphasteer_is_the_papers_closed_form_with_matrices(made):
    """P, Δ and R written out, (d_model, d_model) each, by SVD and pseudo-inverse; both ways."""
    fitted = fit_edit(made[0], "alphasteer", declined=made[3])
    for layer in range(LAYERS):
        good, bad = group(made, benign, layer), group(made, harmful, layer)
        declined = group(made, lambda row, gone: benign(row, gone) and gone, layer)
        r = bad.mean(0) - good.mean(0)
        for name, spared, steered in (("towards", good, bad), ("away", bad, declined)):
            null = np.linalg.svd(spared)[2][-int(0.6 * WIDTH) :]
            p = null.T @ null
            x = steered @ p
            delta = np.linalg.pinv(x.T @ x + 10 * p.T @ p) @ x.T @ np.tile(r, (len(x), 1))
            near(np.outer(fitted.at(layer, name), fitted.at(layer, "refusal")), p @ delta, 1e-3)
        maps = {low.sign: low for to, low in alphasteer.maps(fitted, [layer]) if to == layer}
        h = torch.randn(5, WIDTH)
        near(
            (h @ maps[1].V) @ maps[1].U.T,
            h.numpy() @ np.outer(fitted.at(layer, "towards"), fitted.at(layer, "refusal")),
        )
        assert set(maps) == {1, -1} and maps[1].mode == "last"


def test_alphasteer_spares_what_it_is_told_to_spare(made):
    fitted = fit_edit(made[0], "alphasteer", declined=made[3])
    a = fitted.at(1, "towards").double().numpy()
    spared, steered = group(made, benign, 1) @ a, group(made, harmful, 1) @ a
    assert np.abs(spared).mean() < 0.45 < steered.mean()


def test_angular_is_scikit_learns_component_and_the_direction_most_like_the_others(made):
    fitted = fit_edit(made[0], "angular")
    candidates = []
    for layer in range(LAYERS):
        means = []
        for wanted in (harmful, benign):
            rows = group(made, wanted, layer)
            mean = np.mean([row / np.linalg.norm(row) for row in rows], axis=0)
            means.append(mean / np.linalg.norm(mean))
        candidates.append(means[0] - means[1])
    units = [c / np.linalg.norm(c) for c in candidates]
    best = max(range(LAYERS), key=lambda at: sum(units[at] @ other for other in units))
    second = np.asarray(PCA(1).fit(np.array(candidates)).components_)[0]
    second = second - (second @ units[best]) * units[best]
    second /= np.linalg.norm(second)
    near(fitted.tensors["plane"][0], units[best])
    near(fitted.tensors["plane"][1], second * np.sign(candidates[-1] @ second))


@given(degrees=st.floats(-360, 360), share=st.floats(-1, 1), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_turn_keeps_lengths_and_ends_where_it_should(degrees, share, seed):
    from interventions.traced.edits import Turn, turn_delta

    rng = np.random.default_rng(seed)
    plane = np.linalg.qr(rng.standard_normal((6, 2)))[0].T
    h = rng.standard_normal((1, 4, 6))
    turn = Turn(torch.from_numpy(plane), np.radians(degrees), False)
    new = h + turn_delta(torch.from_numpy(h), turn, torch.tensor([share], dtype=torch.float64)).numpy()
    assert np.allclose(np.linalg.norm(new, axis=-1), np.linalg.norm(h, axis=-1))
    rest = np.eye(6) - plane.T @ plane
    assert np.allclose(new @ rest, h @ rest)
    before, after = (x @ plane.T @ np.array([1, 1j]) for x in (h, new))
    goal = np.exp(1j * (np.radians(degrees) + (np.pi if share < 0 else 0)))
    gone, way = np.angle(after / before), np.angle(goal * np.abs(before) / before)
    near_half = np.abs(np.abs(way) - np.pi) < 1e-6  # either arc is the shorter one
    assert np.allclose(np.where(near_half, 0, gone), np.where(near_half, 0, abs(share) * way), atol=1e-6)


def test_adaptive_turns_leave_states_alone_that_point_away():
    from interventions.traced.edits import Turn, turn_delta

    h = torch.tensor([[[1.0, 2, 3], [-1, 2, 3]]])
    plane = torch.eye(3)[:2]
    moved = turn_delta(h, Turn(plane, 0.0, True), torch.tensor([-1.0]))
    assert torch.allclose(moved[0, 0] + h[0, 0], torch.tensor([-(5**0.5), 0.0, 3.0]), atol=1e-6)
    assert not moved[0, 1].any() and not turn_delta(h, Turn(plane, 0.0, False), torch.tensor([0.0])).any()


@pytest.mark.parametrize("method", EDITS)
def test_every_method_is_a_file_that_comes_back_byte_for_byte(made, tmp_path, method):
    fitted = fit_edit(made[0], method, declined=made[3])
    path = tmp_path / "m.safetensors"
    fitted.save(path)
    back = FittedMethod.load(path)
    assert back.metadata == {"format": "refusal-steering/method/1", **fitted.metadata} and back.method == method
    assert {name: tensor.dtype for name, tensor in load_file(path).items()} == dict.fromkeys(
        fitted.tensors, torch.float32
    )
    assert all(torch.equal(back.tensors[name], fitted.tensors[name]) for name in fitted.tensors)
    counts = json.loads(back.metadata["counts"])
    assert counts["harmful"] == N // 2 and counts["benign"] == N // 2 and counts.get("declined", N // 8) == N // 8
    save_file({"mean": torch.zeros(7, 5)}, path, back.metadata)
    with pytest.raises(UserError, match="belong"):
        FittedMethod.load(path)


def test_what_is_missing_is_said(made, tmp_path):
    path, values, rows, declined = made
    with pytest.raises(UserError, match="unknown method 'lda'; there are affine"):
        fit_edit(path, "lda")
    with pytest.raises(UserError, match="no benign row that the model declines"):
        fit_edit(path, "false-refusal", declined=np.zeros_like(declined))
    with pytest.raises(UserError, match="no harmful row"):
        fit_edit(path, "affine", split="validation")
    fitted = fit_edit(write(tmp_path, values[:, :1], rows), "alphasteer", declined=declined)
    with pytest.raises(UserError, match="was not fitted at layer 2"):
        alphasteer.maps(fitted, [2])
    with pytest.raises(UserError, match="spans no plane"):
        fit_edit(write(tmp_path, values[:, :1], rows), "angular")


def test_the_sign_of_a_plane_does_not_depend_on_the_machine():
    candidates = np.random.default_rng(3).standard_normal((4, 6))
    plane = angular.plane_of(candidates)
    assert candidates[-1] @ plane[1] >= 0 and np.allclose(plane @ plane.T, np.eye(2))
