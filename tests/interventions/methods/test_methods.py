"""Each method is its formula, computed here by loops, numpy and scikit-learn."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data.contract import METHODS
from data.errors import UserError
from interventions import SteeringVectors
from interventions.methods.fit import fit_vectors
from tests.made.activation_files import CATEGORIES, cosine, prompt_rows, write

N, LAYERS, WIDTH = 48, 3, 20
SUFFIXES = ("[feelings]", "[respond]", "[weapons]")
LINEAR = ("pca", "logistic", "lda")


def values_of(rows, seed=0, width=WIDTH):
    """Rows with their category's own offset, and a column of huge variance as residual streams have."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((len(rows), LAYERS, width))
    values[..., 3] *= 50
    for at, row in enumerate(rows):
        if row["label"] == "harmful":
            values[at, :, CATEGORIES.index(row["category"]) * 5 : CATEGORIES.index(row["category"]) * 5 + 2] += 3
    return values.astype(np.float32)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    rows = prompt_rows(N, "train") + prompt_rows(8, "test")
    values = values_of(rows)
    return write(tmp_path_factory.mktemp("prompts"), values, rows), values.astype(np.float64), rows


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    rows = prompt_rows(N, "train") + prompt_rows(8, "test")
    values = np.repeat(values_of(rows, 1), 3, axis=0)
    values += np.tile(np.random.default_rng(2).standard_normal((3, LAYERS, WIDTH)), (len(rows), 1, 1))
    values += 0.3 * np.random.default_rng(3).standard_normal(values.shape)
    return write(tmp_path_factory.mktemp("pairs"), values, rows, suffixes=SUFFIXES), values.astype(np.float32), rows


def sides(values, rows, name, layer):
    """Rows of the category and benign rows, of split train, at a layer."""
    take = lambda wanted: np.array([values[at, layer] for at, row in enumerate(rows) if wanted(row)], np.float64)  # noqa: E731
    train = lambda row: row["split"] == "train"  # noqa: E731
    return (
        take(lambda row: train(row) and row["label"] == "harmful" and row["category"] == name),
        take(lambda row: train(row) and row["label"] == "benign"),
    )


def test_contrastive_is_the_loop(pairs):
    path, values, rows = pairs
    vectors = fit_vectors(path, "contrastive")
    for name in CATEGORIES:
        total, count = np.zeros((LAYERS, WIDTH)), 0
        for at, row in enumerate(rows):
            if row["split"] == "train" and row["label"] == "harmful" and row["category"] == name:
                h = {suffix: values[3 * at + place].astype(np.float64) for place, suffix in enumerate(SUFFIXES)}
                total += h[f"[{name}]"] - h["[respond]"]
                count += 1
        assert np.allclose(vectors.tensors[name], total / count, rtol=1e-5, atol=1e-6)
        assert json.loads(vectors.metadata["counts"])[name] == count
    assert vectors.metadata["position"] == "suffix" and vectors.metadata["benign"] == "0"


def test_contrastive_reads_no_other_rows(pairs, tmp_path):
    path, values, rows = pairs
    table = pl.read_parquet(path.with_suffix(".parquet"))
    used = (table["label"] == "harmful") & (
        (table["suffix"] == "[respond]") | (table["suffix"] == ("[" + table["category"] + "]"))
    )
    changed = values.copy()
    changed[~used.fill_null(False).to_numpy()] = 1e6
    other = write(tmp_path, changed, rows, suffixes=SUFFIXES)
    assert equal(fit_vectors(path, "contrastive"), fit_vectors(other, "contrastive"))


def test_pca_is_scikit_learns_on_differences_and_their_negatives(prompts, pairs):
    for (path, values, rows), step in ((prompts, 1), (pairs, 3)):
        vectors = fit_vectors(path, "pca")
        for name in CATEGORIES:
            for layer in range(LAYERS):
                if step == 1:
                    positive, negative = sides(values, rows, name, layer)
                    differences = positive - negative.mean(0)
                else:
                    own = sides(values[SUFFIXES.index(f"[{name}]") :: 3], rows, name, layer)[0]
                    differences = own - sides(values[1::3], rows, name, layer)[0]
                wanted = np.asarray(PCA(1).fit(np.concatenate([differences, -differences])).components_)[0]
                check_projection(vectors.tensors[name][layer], wanted, differences.mean(0))


def test_lda_is_scikit_learns(prompts):
    path, values, rows = prompts
    vectors = fit_vectors(path, "lda")
    for layer in range(LAYERS):
        groups = [sides(values, rows, name, layer)[0] for name in CATEGORIES]
        benign = sides(values, rows, CATEGORIES[0], layer)[1]
        x, y = np.concatenate([*groups, benign]), np.repeat([0, 1, 2], [*map(len, groups), len(benign)])
        lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(x, y)
        for at, name in enumerate(CATEGORIES):
            wanted = lda.coef_[at] - lda.coef_[2]
            check_projection(vectors.tensors[name][layer], wanted, groups[at].mean(0) - benign.mean(0))


def test_lda_of_one_category_is_scikit_learns_binary_coefficient(tmp_path):
    rows = prompt_rows(30, categories=("weapons",))
    values = np.random.default_rng(5).standard_normal((30, 1, 40)).astype(np.float32)
    x, y = values[:, 0].astype(np.float64), np.array([row["label"] == "harmful" for row in rows])
    wanted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(x, y).coef_[0]
    vector = fit_vectors(write(tmp_path, values, rows), "lda").tensors["weapons"][0]
    check_projection(vector, wanted, x[y].mean(0) - x[~y].mean(0))


def test_logistic_is_scikit_learns_in_raw_units(prompts):
    path, values, rows = prompts
    vectors = fit_vectors(path, "logistic")
    for name in CATEGORIES:
        for layer in range(LAYERS):
            positive, negative = sides(values, rows, name, layer)
            x, y = np.concatenate([positive, negative]), np.repeat([1, 0], [len(positive), len(negative)])
            model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced")).fit(x, y)
            steps = np.eye(WIDTH)  # log-odds are linear: what a unit step along each axis adds is the normal
            normal = model.decision_function(steps) - model.decision_function(np.zeros((1, WIDTH)))
            check_projection(vectors.tensors[name][layer], normal, positive.mean(0) - negative.mean(0), 1e-3)


def check_projection(vector, direction, difference, tolerance=1e-5):
    """Is it the part of the difference in means that lies along the direction?"""
    unit = direction / np.linalg.norm(direction)
    assert np.allclose(vector.numpy(), unit * (unit @ difference), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", LINEAR)
def test_directions_point_towards_refusal_and_step_from_answered_to_refused(prompts, method):
    path, values, rows = prompts
    vectors = fit_vectors(path, method)
    for name in CATEGORIES:
        for layer in range(LAYERS):
            positive, negative = sides(values, rows, name, layer)
            v = vectors.tensors[name][layer].double().numpy()
            along = v / np.linalg.norm(v)
            assert (positive.mean(0) - negative.mean(0)) @ v > 0
            assert (negative.mean(0) + v) @ along == pytest.approx(positive.mean(0) @ along, rel=1e-5)


def test_random_is_as_long_as_the_mean_and_points_elsewhere(prompts):
    path = prompts[0]
    for options in ({}, {"tau": 0.1, "top_k": 7}):
        mean, random = fit_vectors(path, **options), fit_vectors(path, "random", **options)
        for name in CATEGORIES:
            assert torch.allclose(mean.tensors[name].norm(dim=1), random.tensors[name].norm(dim=1), rtol=1e-5)
            assert cosine(mean.at(1, name).numpy(), random.at(1, name).numpy()) < 0.9
            assert abs(cosine(random.at(0, name).numpy(), random.at(1, name).numpy())) < 0.9


def test_shuffled_is_the_mean_under_some_other_labels(prompts):
    path, values, rows = prompts
    vectors = fit_vectors(path, "shuffled")
    labels = [(row["label"], row["category"] if row["label"] == "harmful" else None) for row in rows[:N]]
    order = np.random.default_rng(0).permutation(
        np.concatenate([[at for at in range(N) if labels[at] == kind] for kind in
                        [("harmful", "feelings"), ("harmful", "weapons"), ("benign", None)]])
    )  # fmt: skip
    first, second, benign = np.split(order, [N // 4, N // 2])
    for name, group in (("feelings", first), ("weapons", second)):
        wanted = values[group].mean(0) - values[benign].mean(0)
        assert np.allclose(vectors.tensors[name], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["random", "shuffled"])
def test_controls_follow_their_seed(prompts, method):
    path = prompts[0]
    assert equal(fit_vectors(path, method, seed=3), fit_vectors(path, method, seed=3))
    assert not equal(fit_vectors(path, method, seed=3), fit_vectors(path, method, seed=4))


def test_a_random_layer_does_not_depend_on_the_other_layers(prompts, tmp_path):
    path, values, rows = prompts
    one = fit_vectors(write(tmp_path, values[:, 1:2], rows, layers=[1]), "random")
    assert torch.allclose(one.at(1, "weapons"), fit_vectors(path, "random").at(1, "weapons"))


@given(seed=st.integers(0, 2**32 - 1), method=st.sampled_from(["mean", *LINEAR]))
@settings(max_examples=12, deadline=None)
def test_the_order_of_rows_does_not_matter(prompts, tmp_path_factory, seed, method):
    path, values, rows = prompts
    order = np.random.default_rng(seed).permutation(len(rows))
    other = write(tmp_path_factory.mktemp("order"), values[order], [rows[at] for at in order])
    one, two = fit_vectors(path, method), fit_vectors(other, method)
    for name in CATEGORIES:
        assert torch.allclose(one.tensors[name], two.tensors[name], rtol=1e-3, atol=1e-4)


@given(
    factor=st.floats(0.01, 100),
    shift=st.floats(-10, 10),
    method=st.sampled_from(["mean", "random", "shuffled", *LINEAR]),
)
@settings(max_examples=20, deadline=None)
def test_vectors_scale_with_activations_and_ignore_a_common_shift(prompts, tmp_path_factory, factor, shift, method):
    path, values, rows = prompts
    other = write(tmp_path_factory.mktemp("scaled"), values * factor + shift, rows)
    one, two = fit_vectors(path, method), fit_vectors(other, method)
    for name in CATEGORIES:
        gap = (two.tensors[name] / factor - one.tensors[name]).norm(dim=1) / one.tensors[name].norm(dim=1)
        assert gap.max() < 2e-3


@given(
    tau=st.one_of(st.none(), st.floats(0, 2)),
    top_k=st.one_of(st.none(), st.integers(1, WIDTH)),
    method=st.sampled_from(["mean", "pca", "random"]),
)
@settings(max_examples=30, deadline=None)
def test_thresholds_and_length_hold_for_every_method(prompts, tau, top_k, method):
    vectors = fit_vectors(prompts[0], method, tau=tau, top_k=top_k, normalize=True)
    plain = fit_vectors(prompts[0], method)
    for name in CATEGORIES:
        kept = vectors.tensors[name]
        assert ((kept != 0).sum(1) <= (top_k or WIDTH)).all()
        lengths = kept.norm(dim=1)
        assert ((lengths - 1).abs() < 1e-5).logical_or(lengths == 0).all()
        if method != "random":  # entries that are kept keep their ratios
            for layer in range(LAYERS):
                at = kept[layer] != 0
                assert not at.any() or cosine(kept[layer][at].numpy(), plain.at(layer, name)[at].numpy()) > 1 - 1e-5


@pytest.mark.parametrize("method", [name for name in METHODS if name != "contrastive"])
def test_every_method_is_a_file_that_comes_back_byte_for_byte(prompts, tmp_path, method):
    vectors = fit_vectors(prompts[0], method)
    vectors.save(tmp_path / "v.safetensors")
    back = SteeringVectors.load(tmp_path / "v.safetensors")
    assert back.metadata == vectors.metadata and equal(back, vectors)
    assert back.metadata["method"] == method and back.categories == list(CATEGORIES)
    assert {name: tensor.dtype for name, tensor in load_file(tmp_path / "v.safetensors").items()} == dict.fromkeys(
        CATEGORIES, torch.float32
    )
    assert back.table(1).height == 2
    back.save(tmp_path / "again.safetensors")
    assert equal(SteeringVectors.load(tmp_path / "again.safetensors"), vectors)


def equal(one, two):
    return all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors | two.tensors)


def test_what_is_missing_is_said(prompts, pairs, tmp_path):
    path, values, rows = prompts
    with pytest.raises(UserError, match=r"unknown method 'mode'; there are mean"):
        fit_vectors(path, "mode")
    with pytest.raises(UserError, match=r"--suffix '\[feelings\]' --suffix '\[weapons\]' --suffix '\[respond\]'"):
        fit_vectors(path, "contrastive")
    with pytest.raises(UserError, match="no harmful row in split 'validation'"):
        fit_vectors(path, split="validation")
    benign = [row | {"label": "harmful", "category": "weapons"} for row in rows]
    with pytest.raises(UserError, match="--benign"):
        fit_vectors(write(tmp_path / "harmful", values, benign))
    fewer = np.delete(pairs[1].reshape(len(rows), 3, LAYERS, WIDTH), 2, axis=1).reshape(-1, LAYERS, WIDTH)
    short = write(tmp_path / "short", fewer, rows, suffixes=SUFFIXES[:2])
    for method in ("contrastive", "mean"):
        with pytest.raises(UserError, match=r"no activations with suffix '\[weapons\]'"):
            fit_vectors(short, method)
    with pytest.raises(UserError, match=r"suffix '\[answer\]'"):
        fit_vectors(pairs[0], "contrastive", respond="answer")
    flat = write(tmp_path / "flat", np.zeros_like(values), rows)
    with pytest.raises(UserError, match="hardly vary"):
        fit_vectors(flat, "lda")


def test_the_mean_of_a_pairs_file_compares_tagged_harmful_with_answered_benign(pairs):
    path, values, rows = pairs
    vectors = fit_vectors(path, "mean")
    for name in CATEGORIES:
        own = sides(values[SUFFIXES.index(f"[{name}]") :: 3], rows, name, 1)[0]
        benign = sides(values[1::3], rows, name, 1)[1]
        assert np.allclose(vectors.at(1, name), own.mean(0) - benign.mean(0), rtol=1e-4, atol=1e-5)


def test_sums_are_float64(tmp_path):
    """Float32 sums of activations of norm 1e4 lose a difference of 1e-3."""
    rows = prompt_rows(4000, categories=("weapons",))
    values = np.full((4000, 1, 4), 1e4, np.float32)
    values[[row["label"] == "harmful" for row in rows]] += np.float32(2**-9)
    vectors = fit_vectors(write(tmp_path, values, rows))
    assert np.allclose(vectors.tensors["weapons"], 2**-9, rtol=1e-4)
