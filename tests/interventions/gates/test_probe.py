"""The probe is scikit-learn's, its threshold is the rule asked for, and it scores in use as when it was chosen."""

import json

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data.errors import UserError
from interventions.fitting.linear import C_GRID, best_c
from interventions.gates.fit import fit_probe
from interventions.gates.gate import FittedGate
from interventions.gates.quality import choose_threshold, tpr_at
from tests.made.activation_files import prompt_rows, write

WIDTH, LAYERS = 12, 3
SIZES = {"train": 80, "validation": 60, "test": 40}


def values_of(rows, seed=0):
    """Harmful rows lean along two axes; the last layer tells them best."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((len(rows), LAYERS, WIDTH)) * np.linspace(1, 30, WIDTH) + 5
    harmful = np.array([row["label"] == "harmful" for row in rows])
    for layer in range(LAYERS):
        values[harmful, layer, :2] += 0.7 * (layer + 1)
    return values.astype(np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    rows = [row for split, n in SIZES.items() for row in prompt_rows(n, split)]
    values = values_of(rows)
    return write(tmp_path_factory.mktemp("probe"), values, rows), values, rows


def part(values, rows, split, layer):
    chosen = [at for at, row in enumerate(rows) if row["split"] == split]
    return values[chosen, layer].astype(np.float64), np.array([rows[at]["label"] == "harmful" for at in chosen])


def test_the_probe_is_scikit_learns(made):
    path, values, rows = made
    report = fit_probe(path, 1)
    x, y = part(values, rows, "train", 1)
    c = float(report.probe.metadata["c"])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, class_weight="balanced", max_iter=5000)).fit(x, y)
    for split in SIZES:
        x, y = part(values, rows, split, 1)
        score = report.probe.score(torch.from_numpy(x)).numpy()
        assert np.allclose(score, model.predict_proba(x)[:, 1], atol=1e-4)
        if split != "train":
            found = report.quality.filter(split=split, against="all").row(0, named=True)
            assert found["auc"] == pytest.approx(roc_auc_score(y, score))
            assert found["tpr_at_1_fpr"] == max(t for f, t, _ in zip(*roc_curve(y, score), strict=True) if f <= 0.01)
            fired = score >= float(report.probe.threshold)
            assert found["fpr"] == fired[~y].mean() and found["tpr"] == fired[y].mean()
            wilson = binomtest(int(fired[y].sum()), int(y.sum())).proportion_ci(method="wilson")
            assert (found["tpr_low"], found["tpr_high"]) == pytest.approx((wilson.low, wilson.high))
            curve = report.roc.filter(split=split)
            area = np.trapezoid(curve["tpr"], curve["fpr"])
            assert area == pytest.approx(found["auc"])


def test_score_is_the_contracts_formula_on_any_float_type(made):
    path, values, _ = made
    probe = fit_probe(path, 2).probe
    x = torch.from_numpy(values[:9, 2])
    wanted = expit((x.double() - probe.mean.double()) @ probe.weight.double() + probe.bias.double())
    assert torch.allclose(probe.score(x).double(), wanted, atol=1e-5)
    assert probe.score(x).shape == (9,) and probe.score(x).dtype == torch.float32
    half = probe.score(x.to(torch.bfloat16))
    assert torch.equal(half, probe.score(x.to(torch.bfloat16).float()))


def test_near_misses_are_benign_rows_of_their_own_report(made):
    path, values, rows = made
    report = fit_probe(path, 2)
    assert json.loads(report.probe.metadata["counts"]) == {"harmful": 40, "benign": 40, "near_miss": 20}
    x, y = part(values, rows, "test", 2)
    near = np.array(
        [row["label"] == "benign" and row["category"] is not None for row in rows if row["split"] == "test"]
    )
    score = report.probe.score(torch.from_numpy(x)).numpy()
    found = report.quality.filter(split="test", against="near-miss").row(0, named=True)
    assert found["auc"] == pytest.approx(roc_auc_score(y[y | near], score[y | near]))
    assert found["n_benign"] == 10


def test_auto_takes_the_layer_with_the_highest_validation_auc(made):
    path, values, rows = made
    report = fit_probe(path, None)
    aucs = []
    for layer in range(LAYERS):
        x, y = part(values, rows, "train", layer)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced")).fit(x, y)
        x, y = part(values, rows, "validation", layer)
        aucs.append(roc_auc_score(y, model.predict_proba(x)[:, 1]))
    assert np.allclose(report.layers["auc"], aucs, atol=2e-3)
    assert report.probe.layer == int(np.argmax(aucs)) == report.layers.filter(chosen=True)["layer"].item()


scored = st.lists(
    st.tuples(st.booleans(), st.floats(0, 1, width=32) | st.sampled_from([0.0, 0.25, 0.5, 1.0])),
    min_size=2,
    max_size=60,
)


@given(rows=scored)
@settings(max_examples=200, deadline=None)
def test_youden_has_the_highest_j_of_all_thresholds(rows):
    y, score = np.array([row[0] for row in rows]), np.array([row[1] for row in rows], np.float32)
    assume(0 < y.sum() < len(y))
    threshold = np.float32(choose_threshold(y, score))
    j = lambda at: (score[y] >= at).mean() - (score[~y] >= at).mean()  # noqa: E731
    candidates = [*score, np.float32(2)]
    assert j(threshold) == pytest.approx(max(map(j, candidates)))
    assert j(threshold) == pytest.approx((roc_curve(y, score)[1] - roc_curve(y, score)[0]).max())


@given(rows=scored, fpr=st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_a_named_false_positive_rate_is_kept_with_the_most_hits(rows, fpr):
    y, score = np.array([row[0] for row in rows]), np.array([row[1] for row in rows], np.float32)
    assume(0 < y.sum() < len(y))
    threshold = np.float32(choose_threshold(y, score, fpr))
    assert (score[~y] >= threshold).mean() <= fpr
    best = max((score[y] >= at).mean() for at in [*score, np.float32(2)] if (score[~y] >= at).mean() <= fpr)
    assert (score[y] >= threshold).mean() == best == tpr_at(y, score, fpr)


def test_the_threshold_stands_between_scores():
    y, score = np.array([False, False, True, True]), np.array([0.1, 0.3, 0.7, 0.9], np.float32)
    assert choose_threshold(y, score) == pytest.approx(0.5)
    assert choose_threshold(~y, score, 0.0) > 0.9  # nothing passes


def test_of_equal_thresholds_the_one_with_fewer_false_alarms_is_taken():
    y = np.array([True, False, True, False, True, False])
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], np.float32)  # J is 1/3 from 0.9, 0.7 and 0.5 on
    assert choose_threshold(y, score) == pytest.approx(0.85)
    assert choose_threshold(y[::-1], score) > 0.9
    assert choose_threshold(y, score, 0.5) == pytest.approx(0.65)


def test_fpr_is_obeyed_on_validation(made):
    path, values, rows = made
    for fpr in (0.0, 0.1, 0.5):
        probe = fit_probe(path, 2, fpr=fpr).probe
        x, y = part(values, rows, "validation", 2)
        assert (probe.score(torch.from_numpy(x)) >= probe.threshold)[~torch.from_numpy(y)].float().mean() <= fpr
        assert probe.metadata["threshold_rule"] == f"fpr<={fpr:g}"


def test_c_is_cross_validations(made):
    _, values, rows = made
    x, y = part(values, rows, "train", 2)
    means = []
    for c in C_GRID:
        aucs = []
        for fit, held in StratifiedKFold(5, shuffle=True, random_state=0).split(x, y):
            scaler = StandardScaler().fit(x[fit])
            model = LogisticRegression(C=c, class_weight="balanced", max_iter=5000).fit(
                scaler.transform(x[fit]), y[fit]
            )
            aucs.append(roc_auc_score(y[held], model.decision_function(scaler.transform(x[held]))))
        means.append(np.mean(aucs))
    assert best_c(x, y, 0) == C_GRID[int(np.argmax(means))]


def test_mass_mean_is_the_difference_in_means_over_the_variance_within(made):
    path, values, rows = made
    report = fit_probe(path, None, fit="mass-mean")
    layer = report.probe.layer
    x, y = part(values, rows, "train", layer)
    wanted = np.array([
        (np.mean(column[y]) - np.mean(column[~y])) / np.mean(np.where(y, column - column[y].mean(), column - column[~y].mean()) ** 2)
        for column in x.T
    ])  # fmt: skip
    weight = report.probe.weight.double().numpy()
    assert np.allclose(weight / np.linalg.norm(weight), wanted / np.linalg.norm(wanted), atol=1e-6)
    along = x @ wanted
    line = LogisticRegression(class_weight="balanced").fit((along / along.std())[:, None], y)
    x, y = part(values, rows, "test", layer)
    score = report.probe.score(torch.from_numpy(x)).numpy()
    assert np.allclose(score, line.predict_proba((x @ wanted / along.std())[:, None])[:, 1], atol=1e-4)
    assert report.probe.metadata["method"] == "mass-mean"
    assert list(report.layers.filter("chosen")["layer"]) == [layer]
    best = report.layers.sort("auc", "tpr_at_1_fpr", descending=True, maintain_order=True)["layer"][0]
    assert layer == best


def test_the_published_fit_is_pytorchs_own_loop(made):
    path, values, rows = made
    probe = fit_probe(path, 1, fit="published", seed=7).probe
    x, y = part(values, rows, "train", 1)
    linear = torch.nn.Linear(WIDTH, 1)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in (linear.weight, linear.bias):
            parameter.copy_((torch.rand(parameter.numel(), generator=generator) * 2 - 1).reshape(parameter.shape))
            parameter.mul_(WIDTH**-0.5)
    optimizer = torch.optim.AdamW(linear.parameters(), lr=1e-3, weight_decay=1e-4)
    inputs, wanted = torch.from_numpy(x - x.mean(0)).float(), torch.from_numpy(y).float()
    for _ in range(15):
        order = torch.randperm(len(x), generator=generator)
        loss = torch.nn.BCEWithLogitsLoss()(linear(inputs[order]).squeeze(-1), wanted[order])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.allclose(probe.weight, linear.weight[0].detach(), atol=1e-5)
    assert torch.allclose(probe.bias, linear.bias.detach(), atol=1e-5)
    assert np.allclose(probe.mean.numpy(), x.mean(0), rtol=1e-5)


@pytest.mark.parametrize("fit", ["logistic", "mass-mean", "published"])
def test_rows_without_a_split_are_scored_by_probes_that_have_not_seen_them(tmp_path, fit):
    """Labels at random: a probe on more dimensions than rows would tell its own rows apart perfectly."""
    rng = np.random.default_rng(0)
    rows = [row | {"label": "harmful" if coin else "benign"} for row, coin in
            zip(prompt_rows(60), rng.random(60) < 0.5, strict=True)]  # fmt: skip
    path = write(tmp_path, rng.standard_normal((60, 1, 200)), rows)
    report = fit_probe(path, 0, fit=fit)
    assert max(report.quality.filter(against="all")["auc"].to_list()) < 0.8
    assert report.quality["split"].unique().sort().to_list() == ["test", "validation"]


def test_the_file_comes_back_byte_for_byte(made, tmp_path):
    probe = fit_probe(made[0], 1).probe
    probe.save(tmp_path / "probe.safetensors")
    back = FittedGate.load(tmp_path / "probe.safetensors")
    assert back.metadata == probe.metadata
    for name, shape in (("weight", (WIDTH,)), ("mean", (WIDTH,)), ("bias", (1,)), ("threshold", (1,))):
        assert torch.equal(getattr(back, name), getattr(probe, name)) and getattr(back, name).shape == shape
    again = fit_probe(made[0], 1).probe
    assert torch.equal(again.weight, probe.weight) and again.metadata == probe.metadata


def test_what_does_not_fit_is_said(made, tmp_path, tiny):
    from dataclasses import replace

    path, values, rows = made
    with pytest.raises(UserError, match="unknown fit"):
        fit_probe(path, 0, fit="svm")
    with pytest.raises(UserError, match="no activations at layer 7"):
        fit_probe(path, 7)
    with pytest.raises(UserError, match="no harmful row in split 'dev' to choose the threshold"):
        fit_probe(path, 0, threshold_split="dev")
    few = prompt_rows(60, "validation") + prompt_rows(4, "train")[1:]
    with pytest.raises(UserError, match="at least two harmful"):
        fit_probe(write(tmp_path / "few", values[:63], few), 0)
    pairs = write(tmp_path / "pairs", np.repeat(values, 2, 0), rows, suffixes=("[a]", "[respond]"))
    with pytest.raises(UserError, match="a probe reads prompts"):
        fit_probe(pairs, 0)
    probe = fit_probe(path, 1).probe
    with pytest.raises(UserError, match="12 wide"):
        probe.check(tiny)
    fitting = replace(probe, weight=torch.zeros(32), metadata=probe.metadata | {"model": tiny.name})
    fitting.check(tiny)
    with pytest.raises(UserError, match="which no prompt has"):
        replace(fitting, metadata=fitting.metadata | {"position": "suffix"}).check(tiny)
    probe.save(tmp_path / "good.safetensors")
    replace(probe, weight=torch.zeros(3)).save(tmp_path / "shape.safetensors")
    replace(probe, bias=torch.tensor([float("nan")])).save(tmp_path / "nan.safetensors")
    replace(probe, metadata={"format": "x"}).save(tmp_path / "other.safetensors")
    replace(probe, metadata=probe.metadata | {"layer": "-1"}).save(tmp_path / "layer.safetensors")
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04N.")
    for name, word in (("shape", "belong"), ("nan", "no numbers"), ("other", "lacks"), ("layer", "damaged"),
                       ("pickle", "not a readable"), ("absent", "not a readable")):  # fmt: skip
        with pytest.raises(UserError, match=word):
            FittedGate.load(tmp_path / f"{name}.safetensors")
