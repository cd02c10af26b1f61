"""Sums that come back from where the model is are those of the rows, wherever that is and however its jobs are cut."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from data import UserError, load_all
from data.store.journal import Journal
from interventions import open_model
from interventions.backends.backend import Backend
from interventions.methods.fit import fit_vectors, group_of
from interventions.model.prompt_format import encode
from interventions.reading.sums import extract_sums
from interventions.traced.residual import parted, whole
from tests.oracles import hooked


@pytest.fixture(scope="module")
def there(tiny_tuned_folder):
    """The tiny model, its traces shipped and rebuilt beside it."""
    from interventions.backends.backend import open_backend

    return open_model(str(tiny_tuned_folder), remote=open_backend("simulate", sandbox=True))


@pytest.fixture(scope="module")
def prompts(prompts_file):
    return load_all([str(prompts_file)])


def states(model, text: str, suffix: str = "") -> np.ndarray:
    """(layers, d_model) at the last token, by plain hooks."""
    (ids,) = encode(model.tokenizer, [text], [suffix] if suffix else []).ids
    return np.stack([hooked(model, ids, range(4))[at][-1].double().numpy() for at in range(4)])


def test_mean_vectors_are_a_plain_difference_in_means(tiny_tuned, there, prompts, tmp_path):
    path = extract_sums(there, prompts, tmp_path, lambda rows: group_of(rows, "mean"), batch_tokens=60)
    got, rows = fit_vectors(path), pl.read_parquet(path.with_suffix(".parquet"))
    assert rows.height == prompts.height and rows["group"].null_count() == 0 and not list(tmp_path.glob(".*"))
    seen = {text: states(tiny_tuned, text) for text in prompts["prompt"].unique()}
    mean = lambda part: np.mean([seen[text] for text in part["prompt"]], axis=0)  # noqa: E731
    benign = mean(prompts.filter(label="benign"))
    for name in ("weapons", "feelings"):
        wanted = mean(prompts.filter(category=name, label="harmful")) - benign
        assert np.abs(got.tensors[name].double().numpy() - wanted).max() < 1e-6 * np.abs(wanted).max()
    norms = np.mean([np.linalg.norm(seen[text], axis=-1) for text in prompts["prompt"]], axis=0)
    assert np.allclose(json.loads(got.metadata["residual_norms"]), norms, rtol=1e-6)


@pytest.mark.parametrize("method", ["contrastive", "random", "shuffled"])
def test_vectors_of_sums_are_those_of_activations(tiny_tuned, there, prompts, tmp_path, method):
    from interventions.reading.extract import extract

    how = (
        {"position": "suffix", "suffixes": ["[weapons]", "[feelings]", "[respond]"]} if method == "contrastive" else {}
    )
    some = prompts.filter(label="harmful") if how else prompts
    here = fit_vectors(extract(tiny_tuned, some, tmp_path, layers=[1, 3], **how), method, seed=3)
    path = extract_sums(there, some, tmp_path, lambda rows: group_of(rows, method, seed=3), layers=[1, 3], **how)
    far = fit_vectors(path, method, seed=3)
    for name, wanted in here.tensors.items():
        assert (far.tensors[name] - wanted).abs().max() < 1e-6 * wanted.abs().max()
    assert {k: v for k, v in far.metadata.items() if k != "residual_norms"} == {
        k: v for k, v in here.metadata.items() if k != "residual_norms"
    }


def test_other_sums_than_a_method_rests_on_are_refused(there, prompts, tmp_path):
    path = extract_sums(there, prompts, tmp_path, lambda rows: group_of(rows, "mean"), layers=[0])
    with pytest.raises(UserError, match="holds sums over other rows"):
        fit_vectors(path, "shuffled")
    with pytest.raises(UserError, match="not their sums"):
        fit_vectors(path, "lda")


def test_a_run_that_was_killed_reads_no_batch_twice(there, prompts, tmp_path, monkeypatch):
    groups = lambda rows: group_of(rows, "mean")  # noqa: E731
    whole = load_file(extract_sums(there, prompts, tmp_path / "whole", groups, batch_tokens=60))
    finish, done = Journal.finish, []

    def stopping(self, noted):
        finish(self, noted)
        done.extend(noted)
        if len(done) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "finish", stopping)
    with pytest.raises(KeyboardInterrupt):
        extract_sums(there, prompts, tmp_path / "killed", groups, batch_tokens=60)
    again = load_file(extract_sums(there, prompts, tmp_path / "killed", groups, batch_tokens=60))
    assert len(done) == len(set(done)) > 2
    for name, wanted in whole.items():
        assert wanted.dtype == torch.float64 and torch.equal(again[name], wanted)


def test_what_comes_back_does_not_grow_with_the_prompts(tmp_path):
    """A 70B model's six sums in 80 layers, and a small model's: long jobs where each brings much."""
    sums = 4 * 7 * 80 * 8193
    backend = Backend("remote", in_flight=4)
    assert backend._most(400, 1, sums) == 96 and backend._most(59, 1, sums) == 59
    assert sums < 20e6  # of 2,000 prompts of 60 tokens, in the 59 batches of one request
    assert backend._most(400, 1, 4 * 7 * 30 * 577) == 24 and backend._most(20, 1, 4 * 7 * 30 * 577) == 5


def test_sums_travel_in_half_the_bytes_and_lose_nothing_of_their_differences():
    """Groups that differ by a hundred-thousandth of what they share, as beside massive activations."""
    random = np.random.default_rng(0)
    counts = np.array([400.0, 3.0, 1000.0])
    means = 3000 * random.standard_normal((1, 2, 50)) + 0.03 * random.standard_normal((3, 2, 50))
    sums = torch.from_numpy(means * counts[:, None, None])
    centre, left = parted(sums, torch.from_numpy(counts))
    assert centre.dtype == left.dtype == torch.float32
    again = whole(centre, left, torch.from_numpy(counts)).numpy() / counts[:, None, None]
    wanted, plain = means[0] - means[2], (sums.float().double().numpy() / counts[:, None, None])
    assert np.abs(again[0] - again[2] - wanted).max() < 1e-6 * np.abs(wanted).max()
    assert np.abs(plain[0] - plain[2] - wanted).max() > 1e-4 * np.abs(wanted).max()  # float32 sums would
