"""Base against fine-tuned: cosines are the vectors', intervals scipy's, and ceiling and floor mean what they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from data.errors import UserError
from data.store.tables import DIFF
from interventions.fitting.contrasts import Contrast
from interventions.fitting.diffing import compare, cosines, draw, measure
from interventions.methods.fit import fit_vectors
from tests.made.activation_files import cosine, prompt_rows, write

N, LAYERS, WIDTH = 40, 2, 16
SUFFIXES = ("[feelings]", "[respond]", "[weapons]")


def rows_of_two_models(rows, seed=0, turned=0.0, shared=0.5):
    """Two models' rows whose noise has `shared` variance in common; the second's category direction is turned."""
    rng = np.random.default_rng(seed)
    both, one, two = rng.standard_normal((3, len(rows), LAYERS, WIDTH))
    base, tuned = (np.sqrt(shared) * both + np.sqrt(1 - shared) * own for own in (one, two))
    harmful = np.array([row["label"] == "harmful" for row in rows])
    base[harmful, :, 0] += 2
    tuned[harmful, :, 0] += 2 * np.cos(turned)
    tuned[harmful, :, 1] += 2 * np.sin(turned)
    return base, tuned


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    rows = prompt_rows(N, "train")
    base, tuned = rows_of_two_models(rows)
    folder = tmp_path_factory.mktemp("diff")
    return write(folder / "base", base, rows), write(folder / "tuned", tuned, rows, model="tuned")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    rows = prompt_rows(N, "train")
    tags = np.random.default_rng(4).standard_normal((2, 3, LAYERS, WIDTH))
    folder = tmp_path_factory.mktemp("pairs")
    return tuple(
        write(folder / name, np.repeat(values, 3, axis=0) + np.tile(tag, (N, 1, 1)) + 0.5 * noise, rows,
              suffixes=SUFFIXES, model=name)
        for name, values, tag, noise in zip(("base", "tuned"), rows_of_two_models(rows), tags,
                                            np.random.default_rng(5).standard_normal((2, 3 * N, LAYERS, WIDTH)),
                                            strict=True)
    )  # fmt: skip


@pytest.mark.parametrize(("files", "method", "text"), [("prompts", "mean", "untagged"), ("pairs", "contrastive", "tagged"),
                                                       ("pairs", "mean", "tagged")])  # fmt: skip
def test_cosines_are_those_of_the_vectors(request, files, method, text):
    base, tuned = request.getfixturevalue(files)
    table = compare(base, tuned, difference=method)
    one, two = fit_vectors(base, method), fit_vectors(tuned, method)
    assert dict(table.schema) == DIFF and table.height == 2 * LAYERS
    for row in table.iter_rows(named=True):
        wanted = cosine(one.at(row["layer"], row["category"]).double().numpy(),
                        two.at(row["layer"], row["category"]).double().numpy())  # fmt: skip
        assert row["cosine"] == pytest.approx(wanted, abs=1e-6)
        assert row["text"] == text and row["n"] == N // 4
        assert -1 <= row["low"] <= row["cosine"] <= row["high"] <= 1
        assert -1 <= row["floor_low"] <= row["floor_high"] <= 1
    default = {"prompts": "mean", "pairs": "contrastive"}[files]
    assert compare(base, tuned).equals(table) == (default == method)


def test_one_model_against_itself_is_one_everywhere(prompts):
    table = compare(prompts[0], prompts[0])
    for column in ("cosine", "low", "high", "floor_low", "floor_high"):
        assert np.allclose(table[column], 1)
    assert (table["ceiling"] < 1).all() and (table["halves"] < table["ceiling"]).all()


def test_the_interval_is_scipys_standard_error_on_the_z_scale():
    x, y = np.random.default_rng(0).standard_normal((2, 30, 5)) + np.array([2, 1, 0, 0, 0])
    contrast = Contrast("c", np.arange(30), np.arange(30), paired=True)
    found = measure(draw(contrast, 4000, np.random.default_rng(1)), x, y)

    def z(index):
        return np.arctanh(cosine(x[index].mean(0), y[index].mean(0)))

    oracle = bootstrap((np.arange(30),), z, n_resamples=4000, vectorized=False, method="percentile",
                       rng=np.random.default_rng(2))  # fmt: skip
    reach = 1.959964 * float(oracle.standard_error)
    point = z(np.arange(30))
    assert np.arctanh(found["low"]) == pytest.approx(point - reach, abs=0.05 * reach)
    assert np.arctanh(found["high"]) == pytest.approx(point + reach, abs=0.05 * reach)


def test_two_sides_are_resampled_each_in_itself_as_scipy_does():
    rng = np.random.default_rng(0)
    (x, y), (p, q) = rng.standard_normal((2, 20, 5)) + np.array([2, 1, 0, 0, 0]), rng.standard_normal((2, 35, 5))
    contrast = Contrast("c", np.arange(20), np.arange(20, 55))
    found = measure(draw(contrast, 4000, np.random.default_rng(1)), np.concatenate([x, p]), np.concatenate([y, q]))

    def z(first, second):
        return np.arctanh(cosine(x[first].mean(0) - p[second].mean(0), y[first].mean(0) - q[second].mean(0)))

    oracle = bootstrap((np.arange(20), np.arange(35)), z, n_resamples=4000, vectorized=False, method="percentile",
                       rng=np.random.default_rng(2))  # fmt: skip
    reach = 1.959964 * float(oracle.standard_error)
    assert np.arctanh(found["high"]) - np.arctanh(found["low"]) == pytest.approx(2 * reach, rel=0.05)


@given(n=st.integers(2, 12), m=st.integers(2, 12), paired=st.booleans(), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_weights_are_means_of_rows(n, m, paired, seed):
    contrast = Contrast("c", np.arange(n), np.arange(n if paired else m), paired)
    weights = draw(contrast, 50, np.random.default_rng(seed))
    positive, negative = np.split(weights.whole, [n], axis=1)
    assert np.allclose(positive, 1 / n) and np.allclose(negative, -1 / m)
    positive, negative = np.split(weights.resampled, [n], axis=1)
    counts = positive * n
    assert np.allclose(counts, counts.round()) and np.allclose(positive.sum(1), 1)
    assert paired or np.allclose(negative.sum(1), -1)
    if paired:
        assert np.allclose(np.abs(weights.permuted), 1 / n)
    else:
        assert np.allclose(np.sort(weights.permuted, axis=1), np.sort(weights.whole, axis=1))
    assert weights.halves is not None
    first, second = weights.halves
    assert ((first != 0) & (second != 0)).sum() == 0
    for half in (first, second):
        assert np.allclose(half[:, :n].sum(1), 1) and (paired or np.allclose(half[:, n:].sum(1), -1))


def test_the_ceiling_is_the_cosine_of_two_sets_of_n_rows():
    """Spearman and Brown's step from halves to wholes, against fresh rows."""
    rng = np.random.default_rng(0)
    n, d, fresh, ceilings = 60, 200, [], []
    mean = np.r_[2.0, np.zeros(d - 1)]
    contrast = Contrast("c", np.arange(n), np.arange(n), paired=True)
    for seed in range(40):
        x, y = rng.standard_normal((2, n, d)) + mean
        fresh.append(cosine(x.mean(0), y.mean(0)))
        ceilings.append(measure(draw(contrast, 10, np.random.default_rng(seed)), x, x)["ceiling"])
    assert np.mean(ceilings) == pytest.approx(np.mean(fresh), abs=0.02)


def test_the_floor_is_what_rows_give_whose_labels_mean_nothing():
    """Two models that share 90 % of their noise: their vectors agree to 0.9 though neither knows the labels."""
    rng = np.random.default_rng(0)
    both, one, two = rng.standard_normal((3, 80, 300))
    x, y = (np.sqrt(0.9) * both + np.sqrt(0.1) * own for own in (one, two))
    found = measure(draw(Contrast("c", np.arange(30), np.arange(30, 80)), 1000, rng), x, y)
    assert found["floor_low"] < 0.9 < found["floor_high"]
    assert found["floor_low"] < found["cosine"] < found["floor_high"]
    turned = y.copy()
    x[:30, 0] += 20
    turned[:30, 1] += 20
    assert measure(draw(Contrast("c", np.arange(30), np.arange(30, 80)), 1000, rng), x, turned)["cosine"] < 0.3


def test_the_interval_covers_the_expected_cosine():
    """Where percentiles of resampled cosines do not: rows that share most of their noise."""
    d, n, draws = 100, 40, 300
    rng = np.random.default_rng(0)
    contrast = Contrast("c", np.arange(n), np.arange(n), paired=True)
    found = []
    for _ in range(120):
        both, one, two = rng.standard_normal((3, n, d)) * 2
        x, y = (np.sqrt(0.95) * both + np.sqrt(0.05) * own for own in (one, two))
        x[:, 0] += 1
        y[:, 1] += 1
        found.append(measure(draw(contrast, draws, rng), x, y))
    expected = np.mean([row["cosine"] for row in found])
    covered = np.mean([row["low"] <= expected <= row["high"] for row in found])
    assert 0.85 <= covered <= 1


@given(scale=st.floats(0.01, 100), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_nothing_changes_with_scale_or_a_shift_of_either_model(scale, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, 24, 6))
    x[:10, 0] += 1
    y[:10, 0] += 1
    weights = draw(Contrast("c", np.arange(10), np.arange(10, 24)), 50, np.random.default_rng(seed))
    one, two = measure(weights, x, y), measure(weights, x * scale + 3, y - 7)
    assert all(one[key] == pytest.approx(two[key], abs=1e-7) for key in one)


def test_rows_of_a_category_of_one_have_no_ceiling_and_zero_vectors_no_cosine(tmp_path):
    rows = [
        {"id": "a", "category": "c", "label": "harmful"},
        {"id": "b", "label": "benign"},
        {"id": "d", "label": "benign"},
    ]
    rows = [{"prompt": "x", "category": None, "dataset": "made", "split": None} | row for row in rows]
    values = np.random.default_rng(0).standard_normal((3, 1, 4))
    table = compare(write(tmp_path / "a", values, rows), write(tmp_path / "b", values, rows))
    assert table["ceiling"].null_count() == 1 and table["cosine"][0] == pytest.approx(1)
    flat = compare(write(tmp_path / "c", values * 0, rows), write(tmp_path / "d", values, rows))
    assert flat["cosine"].null_count() == flat["low"].null_count() == flat["floor_low"].null_count() == 1
    assert dict(flat.schema) == DIFF
    assert np.isnan(cosines(np.zeros((1, 4)), values[0])).all()


def test_files_that_do_not_belong_together_are_said(prompts, pairs, tmp_path):
    rows, values = prompt_rows(N, "train"), np.zeros((N, LAYERS, WIDTH))
    for other, word in [
        (write(tmp_path / "a", values, rows, layers=[4, 5]), "differ in layers"),
        (write(tmp_path / "b", values[:, :, :4], rows), r"\(40, 2, 16\) and \(40, 2, 4\)"),
        (write(tmp_path / "c", values, rows[1:] + rows[:1]), "rows differ in id"),
        (pairs[1], "differ in position"),
    ]:
        with pytest.raises(UserError, match=word):
            compare(prompts[0], other)
    with pytest.raises(UserError, match="unknown difference"):
        compare(*prompts, difference="median")
    with pytest.raises(UserError, match="have no suffixes"):
        compare(*prompts, difference="contrastive")
