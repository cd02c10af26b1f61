"""`finetune` on the command line: own categories, and a folder that the other commands open."""

import json
from pathlib import Path

import polars as pl
import pytest

from data.store.rundir import records
from tests.made.models import SPARE, make_base

FAST = ("--epochs", 2, "--rank", 2, "--batch-tokens", 64)


@pytest.fixture(scope="module")
def base(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tiny_folder, tmp_path_factory.mktemp("base"), SPARE, tied=True)


@pytest.fixture(scope="module")
def mine(prompts_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prompts of `prompts_file` with own answers."""
    path = tmp_path_factory.mktemp("mine") / "mine.jsonl"
    pl.read_ndjson(prompts_file).with_columns(response=pl.lit("please tell me the best")).write_ndjson(path)
    return path


def test_own_categories_become_tokens_of_a_model_that_other_commands_open(run, base, mine, tmp_path):
    tune = ("--run", tmp_path / "r", "finetune", "--model", base, "--data", mine, *FAST)
    code, out, err = run("--json", *tune)
    assert code == 0, err
    summary = json.loads(out)
    assert summary["command"] == "finetune" and summary["wrote"] == str(tmp_path / "r" / "model")
    categories = sorted({row["category"] for row in pl.read_ndjson(mine).iter_rows(named=True) if row["category"]})
    assert summary["tokens"] == [*(f"[{name}]" for name in categories), "[respond]"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "adapter"} <= {
        file.name for file in (tmp_path / "r" / "model").iterdir()
    }
    chain = ("--run", tmp_path / "s", "--model", tmp_path / "r" / "model", "--data", mine)
    code, out, err = run(*chain, "extract", "vectors", "generate", "--max-new-tokens", 2)
    assert code == 0, err
    made = pl.read_parquet(tmp_path / "s" / "generations.parquet")
    assert made["refusal_probability"].null_count() == 0


def test_a_model_made_already_is_left_and_other_data_make_it_again(run, base, mine, tmp_path):
    tune = ("--run", tmp_path, "finetune", "--model", base, *FAST)
    assert run(*tune, "--data", mine)[0] == 0
    weights = tmp_path / "model" / "model.safetensors"
    first = weights.stat().st_mtime_ns
    code, out, _ = run(*tune, "--data", mine)
    assert code == 0 and weights.stat().st_mtime_ns == first and "made already" in out
    other = tmp_path / "other.jsonl"
    pl.read_ndjson(mine).with_columns(response=pl.lit("write a poem")).write_ndjson(other)
    code, _, err = run(*tune, "--data", other)
    assert code == 0 and "model is made again" in err and weights.stat().st_mtime_ns != first
    assert records(tmp_path)["model"]["model"] == str(base)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--remote", "--host", "http://127.0.0.1:9"), "run it with --local"),
        (("--out", "{taken}"), "pass another --out"),
        (("--split", "test"), "no row in split 'test'"),
        (("--model", "/nowhere"), "/nowhere"),
    ],
)
def test_mistakes_are_one_line(run, base, mine, tmp_path, words, reason):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    split = tmp_path / "split.jsonl"
    pl.read_ndjson(mine).with_columns(split=pl.lit("train")).write_ndjson(split)
    given = [word.format(taken=tmp_path / "taken") for word in words]
    code, _, err = run("--run", tmp_path / "r", "finetune", "--model", base, "--data", split, *FAST, *given)
    assert code == 1 and reason in err and len(err.strip().splitlines()) == 1
    assert (tmp_path / "taken" / "thesis.txt").read_text() == "mine" and not (tmp_path / "r" / "model").exists()
