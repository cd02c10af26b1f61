"""`vectors --method NAME` of methods with tensors of their own, and the arms that draw on them, through the command line."""

import json

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

from commands.framework.app import Session
from data.contract import EDITS
from interventions.model.prompt_format import encode
from interventions.steering.first_token import FirstPositions, first_texts
from tests.oracles import plain, said

NAMES = ("weapons", "feelings")


@pytest.fixture
def some_declined(monkeypatch):
    """Every other prompt is declined, whatever a model of random numbers says."""
    declines(monkeypatch, lambda at: NAMES[0] if at % 2 else "respond")


def declines(monkeypatch, said_at):
    """What opens the answer to each prompt is what `said_at` says of its place."""

    def first_positions(_session, _model, prompts, _journal=None):
        return FirstPositions([said_at(at) for at in range(len(prompts))], [], np.zeros((len(prompts), 0)))

    monkeypatch.setattr(Session, "first_positions", first_positions)


def test_what_the_arms_draw_on_is_fitted_and_used(run, tiny_tuned_folder, prompts_file, tmp_path, some_declined):
    folder = tmp_path / "run"
    group = ("--run", folder, "--model", tiny_tuned_folder, "--data", prompts_file, "--holdout", "none")
    fits = [word for method in EDITS for word in ("vectors", "--method", method)]
    arms = [word for arm in ("baseline", *EDITS, "ablate:layers=all,scope=all") for word in ("--arm", arm)]
    code, _, err = run(*group, "extract", *fits, "generate", *arms, "--max-new-tokens", 3, "evaluate", "report")
    assert code == 0, err
    records = json.loads((folder / "run.json").read_text())["artefacts"]
    assert {f"methods/{method}" for method in EDITS} <= set(records["generations"]["key"])
    table = pl.read_parquet(folder / "generations.parquet")
    assert set(table["kind"]) == {"baseline", *EDITS, "ablate"}
    rows = pl.read_parquet(folder / "activations" / "prompts.parquet").with_row_index("row")
    values = load_file(folder / "activations" / "prompts.safetensors")["activations"]
    benign = rows.filter(label="benign")["row"].to_numpy()
    mean = load_file(folder / "methods" / "affine.safetensors")["mean"]
    assert np.allclose(mean, values[benign].astype(np.float64).mean(0), atol=1e-5)
    used = pl.read_parquet(folder / "scores.parquet")
    assert used["fitted"].all()  # all of them were fitted to
    code, _, err = run(*group, "vectors", "--method", "angular", "--tau", 0.1)
    assert code == 1 and "--tau says nothing of --method angular" in err


def test_what_is_missing_is_made_on_the_way_or_named(run, tiny_tuned_folder, prompts_file, tmp_path, some_declined):
    group = ("--run", tmp_path / "run", "--model", tiny_tuned_folder, "--data", prompts_file)
    code, _, err = run(*group, "extract", "vectors", "generate", "--no-auto", "--arm", "angular", "--max-new-tokens", 1)
    assert code == 1 and "vectors" in err and "Traceback" not in err
    code, _, err = run(*group, "generate", "--arm", "false-refusal", "--max-new-tokens", 1)
    assert code == 0, err
    assert (tmp_path / "run" / "methods" / "false-refusal.safetensors").exists()


def test_a_model_that_declines_nothing_is_one_line(run, tiny_tuned_folder, prompts_file, tmp_path, monkeypatch):
    declines(monkeypatch, lambda _at: "respond")
    code, _, err = run("--run", tmp_path / "run", "--model", tiny_tuned_folder, "--data", prompts_file,
                       "extract", "vectors", "--method", "false-refusal")  # fmt: skip
    assert code == 1 and "no benign row that the model declines" in err and "Traceback" not in err


def test_first_texts_are_transformers_own(tiny):
    texts = ["tell me the poem", "the best", "please tell me the best friend"]
    wanted = [said(tiny, plain(tiny, ids, 0, "prompt", 5)[0])[1] for ids in encode(tiny.tokenizer, texts).ids]
    assert first_texts(tiny, texts, 5) == wanted
