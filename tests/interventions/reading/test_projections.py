"""A probe of moments and projections that come back from where the model is, is that of the rows themselves."""

import json
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from safetensors.torch import load_file, save_file

from data import UserError, load_all
from data.store.journal import Journal
from data.store.projections import Projections
from interventions import open_model
from interventions.backends.backend import open_backend
from interventions.fitting.linear import stratified
from interventions.fitting.moments import mass_mean, together
from interventions.gates.fit import fit_probe, fits_of
from interventions.model.prompt_format import encode
from interventions.reading.extract import extract
from interventions.reading.projections import extract_projections
from interventions.traced.residual import add_moments, parted_moments, whole_moments
from tests.oracles import hooked

TRAIN, CHOOSER = "train", "validation"


@pytest.fixture(scope="module", params=[False, True], ids=["simulated", "sandboxed"])
def there(request, tiny_tuned_folder):
    """The tiny model, its traces shipped and rebuilt in this process, or beside it."""
    return open_model(str(tiny_tuned_folder), remote=open_backend("simulate", sandbox=request.param))


@pytest.fixture(scope="module")
def prompts(prompts_file):
    return load_all([str(prompts_file)]).unique("prompt", keep="first", maintain_order=True)


def projections(model, prompts, folder, **options):
    fits = lambda rows: fits_of(rows, TRAIN, CHOOSER, 0)  # noqa: E731
    return extract_projections(model, prompts, folder, fits, together, mass_mean, **options)


def parted_by(prompts, *shares):
    """Every so many rows in another split, and a row without a label."""
    names = [name for name, share in zip((TRAIN, CHOOSER, "test"), shares, strict=True) for _ in range(share)]
    return prompts.with_columns(
        split=pl.Series([names[at % len(names)] for at in range(prompts.height)]),
        label=pl.when(pl.int_range(pl.len()) == 5).then(None).otherwise("label"),
    )


def test_moments_and_projections_are_numpys(tiny_tuned, there, prompts, tmp_path):
    file = Projections.open(projections(there, prompts, tmp_path, batch_tokens=60))
    assert not list(tmp_path.glob(".*")) and file.shape == (prompts.height, 4, 32)
    harmful = (prompts["label"] == "harmful").to_numpy()
    folds = [train for train, _ in stratified(harmful, 0).split(harmful, harmful)]
    states = []
    for text in prompts["prompt"]:
        (ids,) = encode(tiny_tuned.tokenizer, [text], []).ids
        states.append([hooked(tiny_tuned, ids, range(4))[at][-1].double().numpy() for at in range(4)])
    x = np.array(states)
    for at, rows in enumerate([np.arange(len(x)), *folds]):
        assert file.fit_on(rows) == at
        sides = [x[rows][harmful[rows] == side] for side in (True, False)]
        assert file.counts[at].tolist() == [len(side) for side in sides]
        means, variances = (np.stack([getattr(side, name)(0) for side in sides]) for name in ("mean", "var"))
        scale = np.sqrt(variances).max()
        assert np.abs(file.means[at] - means).max() < 1e-6 * scale
        assert np.allclose(file.squares[at] / file.counts[at][:, None, None], variances, rtol=1e-5)
        spread = (variances * [[[len(side)]] for side in sides]).sum(0) / len(rows)
        along = np.einsum("rld,ld->rl", x - means.mean(0), (means[0] - means[1]) / spread)
        assert np.abs(file.projections[..., at] - along).max() < 1e-5 * np.abs(along).max()


@pytest.mark.parametrize("shares", [None, (3, 2, 1)], ids=["every row serves all", "splits"])
@pytest.mark.parametrize("layer", [None, 2])
def test_the_probe_is_that_of_activations(tiny_tuned, there, prompts, tmp_path, shares, layer):
    some = prompts if shares is None else parted_by(prompts, *shares)
    here = fit_probe(extract(tiny_tuned, some, tmp_path / "here"), layer, fit="mass-mean")
    path = projections(there, some, tmp_path / "there")
    far = fit_probe(path, layer, fit="mass-mean")
    assert Projections.open(path).projections.shape[-1] == (6 if shares is None else 1)
    for name in ("weight", "mean", "threshold"):
        one, two = (getattr(report.probe, name) for report in (here, far))
        assert (one - two).abs().max() <= 2e-6 * one.abs().max(), name
    assert (here.probe.bias - far.probe.bias).abs() < 1e-5
    figures = {"auc", "tpr_at_1_fpr", "tpr", "fpr"}
    assert {k: v for k, v in here.probe.metadata.items() if k not in figures} == {
        k: v for k, v in far.probe.metadata.items() if k not in figures
    }
    for name in ("quality", "layers", "roc"):
        assert_frame_equal(getattr(here, name), getattr(far, name), rel_tol=1e-6, abs_tol=1e-6)


def test_other_fits_than_were_projected_for_are_refused(there, prompts, tmp_path):
    path = projections(there, parted_by(prompts, 3, 2, 1), tmp_path, layers=[1, 3])
    with pytest.raises(UserError, match="not their projections; run extract"):
        fit_probe(path, 1, fit="logistic")
    with pytest.raises(UserError, match="no projections at layer 2; they are at 1, 3"):
        fit_probe(path, 2, fit="mass-mean")
    with pytest.raises(UserError, match="projections of fits to other rows"):
        fit_probe(path, 1, fit="mass-mean", split="test", threshold_split="test")
    file = Projections.open(path)
    unread = file.rows.with_row_index("row").filter(~pl.col("projected"))["row"].to_numpy()
    assert unread.tolist() == [5]
    with pytest.raises(UserError, match="lacks rows"):
        file.along(1, 0, unread)


def test_a_run_that_was_killed_reads_no_batch_twice(there, prompts, tmp_path, monkeypatch):
    whole = load_file(projections(there, prompts, tmp_path / "whole", batch_tokens=60))
    finish, done = Journal.finish, []

    def stopping(self, noted):
        finish(self, noted)
        done.extend((self._path.name, number) for number in noted)
        if len(done) in (2, moments + 1):
            raise KeyboardInterrupt

    moments = len(set(projected_batches(prompts, there)))
    monkeypatch.setattr(Journal, "finish", stopping)
    for _ in range(2):  # in the moments, and in the projections
        with pytest.raises(KeyboardInterrupt):
            projections(there, prompts, tmp_path / "killed", batch_tokens=60)
    assert {name for name, _ in done} == {".projections-moments.journal", ".projections-rows.journal"}
    again = load_file(projections(there, prompts, tmp_path / "killed", batch_tokens=60))
    assert len(done) == len(set(done)) == 2 * moments and not list((tmp_path / "killed").glob(".*"))
    for name, wanted in whole.items():
        assert torch.equal(again[name], wanted), name


def projected_batches(prompts, model):
    """Numbers of the batches that all rows take."""
    from interventions.reading.batches import plan_batches
    from interventions.reading.residual import Source

    source = Source.of(model, prompts["prompt"].to_list(), (), "last")
    return range(len(plan_batches(source.computed(model, range(prompts.height)), 60)))


def test_massive_activations_cost_no_digit_of_a_variance():
    """A dimension whose mean is 10⁵ of its deviations, one that never changes, and groups that share rows; in parts, as jobs bring them."""
    random = np.random.default_rng(0)
    x = (random.standard_normal((90, 2, 6)) + np.array([0, 3, 100, 1e4, 1e5, 7])).astype(np.float32)
    x[..., 5] = 7.3
    groups = np.stack([np.arange(90) < 40, np.arange(90) >= 30, random.random(90) < 0.5])
    found = []
    for part in (range(25), range(25, 60), range(60, 90)):
        kept, members = [], torch.from_numpy(groups[:, part]).double()
        for start, stop in pairwise((0, len(part) // 2, len(part))):
            add_moments(kept, torch.from_numpy(x[part][start:stop]), members[:, start:stop])
        sent = parted_moments(kept, members.sum(1))
        assert {one.dtype for one in sent} == {torch.float32}
        found.append((members.sum(1).numpy(), *whole_moments(*sent).numpy()))
    counts, means, squares = together(found)
    exact = x.astype(np.float64)
    for at, rows in enumerate(groups):
        assert counts[at] == rows.sum()
        assert np.abs(means[at] - exact[rows].mean(0)).max() < 1e-6
        variance = exact[rows].var(0)
        assert np.allclose(squares[at] / counts[at], variance, rtol=1e-6) and (squares[at][:, 5] == 0).all()
    plain = (x**2).mean(0) - x.mean(0) ** 2  # the textbook's formula in float32
    assert np.abs(plain[:, 4] / exact.var(0)[:, 4] - 1).min() >= 1  # off by all of it


def test_a_file_that_is_not_whole_is_one_line(there, prompts, tmp_path):
    path = projections(there, prompts, tmp_path)
    good, metadata = load_file(path), {"layers": json.dumps([0, 1, 2, 3]), "position": "last"}
    for name, odd in (("projections", good["projections"][:3]), ("means", good["means"] * torch.nan),
                      ("members", good["members"][:2]), ("counts", good["counts"][:, :1])):  # fmt: skip
        save_file(good | {name: odd.contiguous()}, path, metadata)
        with pytest.raises(UserError, match="not those of its row table"):
            Projections.open(path)
    path.write_bytes(b"no tensors")
    with pytest.raises(UserError, match="not a readable file of projections"):
        Projections.open(path)
