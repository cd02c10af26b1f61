"""What comes with the project is taken where it would be made alike, and nowhere else; and it is what it says."""

import json

import numpy as np
import polars as pl
import pytest
import torch

from data import fingerprint, load_all
from data.contract import GATE_DATA, GATE_KEPT, TUNED_MODEL
from data.store import shipped
from data.store.digests import SHA256, sha256_of
from data.store.rundir import records
from tests.made.forgeries import tensor

GATE = "gates/network"


@pytest.fixture
def place(tiny_tuned_folder, prompts_file, tmp_path, monkeypatch, run):
    """A run whose gate of words is what comes with the project, and how to ask another run for one."""

    def ask(name, *more):
        return run(
            "--run",
            tmp_path / name,
            "--model",
            tiny_tuned_folder,
            "--data",
            prompts_file,
            "probe",
            "--gate",
            "words",
            *more,
        )

    code, _, err = ask("first")
    assert code == 0, err
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "first")
    return ask


def none_fitted(*_, **__):
    raise AssertionError("a gate was fitted")


def test_a_gate_that_would_be_fitted_alike_is_taken(place, tmp_path, monkeypatch, run):
    with monkeypatch.context() as patched:
        patched.setattr("interventions.gates.fit_gate.fit_gate", none_fitted)
        patched.setattr("commands.probe.gate_rows", none_fitted)
        code, _, err = place("second")
        assert code == 0 and "comes with this tool" in err, err
        code, _, err = place("second")  # and is there then, as any other
        assert code == 0 and "comes with this tool" not in err, err
    files = ["gates/words.safetensors", "gates/words_quality.parquet", "gates/words_prompts.parquet"]
    for name in files:
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
    first, second = (records(tmp_path / name)["gates/words"] for name in ("first", "second"))
    assert (first["id"], first[SHA256], first["data"]) == (second["id"], second[SHA256], second["data"])
    code, out, err = run("--run", tmp_path / "second", "verify")
    assert code == 0 and "as it comes with this tool" in out + err
    code, out, err = run("--run", tmp_path / "second", "verify", "--share", 1)
    assert code == 0 and "fitted again" in out + err


def test_a_gate_of_another_key_is_fitted(place, tmp_path):
    code, _, err = place("second", "--fpr", 0.1)
    assert code == 0 and "comes with this tool" not in err
    metadata = pl.read_parquet(tmp_path / "second/gates/words_prompts.parquet")
    assert metadata.height > 0
    assert records(tmp_path / "second")["gates/words"]["id"] != records(tmp_path / "first")["gates/words"]["id"]


def test_what_was_altered_does_not_pass_for_what_comes_with_the_project(place, tmp_path, run):
    place("second")
    record = records(tmp_path / "second")["gates/words"]
    assert shipped.is_shipped("gates/words", record) and not shipped.is_shipped("gates/cast", record)
    tensor("gates/words", "threshold", lambda values: values + 0.01)(tmp_path / "second")
    code, out, err = run("--run", tmp_path / "second", "verify", "--share", 0)
    assert code == 1 and "'threshold' lies" in out + err and "gates/words" in err


def test_the_shipped_gate_is_of_the_prompts_and_the_model_that_are_shipped():
    from interventions.model.embedded import revision_of

    [(name, record)] = [(name, one) for name, one in records(shipped.FOLDER).items() if name.startswith("gates/")]
    assert name == GATE and len(record[SHA256]) == 3
    assert all(sha256_of(shipped.FOLDER / file) == digest for file, digest in record[SHA256].items())
    rows = load_all(GATE_DATA).filter(pl.col("split") != "test")
    key = record["key"]
    assert (key["fingerprint"], key["revision"]) == (fingerprint(rows), revision_of(TUNED_MODEL))
    assert (key["model"], key["gate"], key["keep_refusal"], key["fpr"]) == (TUNED_MODEL, "network", GATE_KEPT, None)
    kept = pl.read_parquet(shipped.FOLDER / f"{GATE}_prompts.parquet")
    assert kept["prompt"].equals(rows["prompt"])
    assert sum(path.stat().st_size for path in shipped.FOLDER.rglob("*") if path.is_file()) < 6_000_000


@pytest.mark.slow
def test_the_shipped_gate_scores_what_transformers_computes_as_it_scored_out_of_fold():
    """By the formula in numpy, on what plain hooks see of transformers' blocks; a score out of fold is another gate's, but one like it."""
    from safetensors import safe_open

    from interventions import open_model
    from interventions.model.prompt_format import encode

    model = open_model(TUNED_MODEL)
    rows = pl.read_parquet(shipped.FOLDER / f"{GATE}_prompts.parquet").sample(60, seed=0)
    encoded = encode(model.tokenizer, rows["prompt"].to_list())
    with safe_open(shipped.FOLDER / f"{GATE}.safetensors", "np") as file:
        weight, mean, inner, outer, classes = (
            file.get_tensor(part) for part in ("weight", "mean", "inner", "outer", "classes")
        )
        reads = json.loads(file.metadata()["reads"])
    blocks: dict[int, torch.Tensor] = {}
    hooks = [
        block.register_forward_hook(
            lambda _m, _i, out, at=at: blocks.update({at: out[0] if isinstance(out, tuple) else out[0][None]})
        )
        for at, block in enumerate(model.module.model.layers)
    ]
    odds = []
    for ids, (start, end) in zip(encoded.ids, encoded.user, strict=True):
        with torch.no_grad():
            model.module(torch.tensor([ids]))
        read = {
            "last": lambda rows: rows[-1],
            "mean": lambda rows, of=slice(start, end): rows[of].mean(0),
            "instruction": lambda rows, at=end - 1: rows[at],
        }
        parts = [read[position](blocks[layer].flatten(0, -2)) for layer, position in reads]
        logits = np.maximum(weight @ (torch.cat(parts).numpy() - mean) + inner, 0) @ outer.T + classes
        odds.append(float(np.log(np.exp(logits[1:]).sum()) - logits[0]))
    for hook in hooks:
        hook.remove()
    assert np.corrcoef(1 / (1 + np.exp(-np.array(odds))), rows["score"].to_numpy())[0, 1] > 0.9
