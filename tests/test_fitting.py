"""`vectors`, `probe`, `lowrank`, `diff` and `sweep` from the command line."""

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
from conftest import WORDS

from interventions.probes import Probe, fit_probe


@pytest.fixture(scope="session")
def split_file(tmp_path_factory):
    """Ninety prompts of two categories, near-misses and plain benign ones, in three splits."""
    import random

    random_ = random.Random(2)
    rows = []
    for at in range(120):
        category, label = (("weapons", "harmful"), ("feelings", "harmful"), (None, "benign"), ("weapons", "benign"))[
            at % 4
        ]
        text = " ".join(random_.choices(WORDS, k=random_.randint(2, 12)))
        text = f"{'kill a person' if category == 'weapons' and label == 'harmful' else 'tell me'} {text}"
        split = ("train", "train", "validation", "test")[at // 4 % 4]
        rows.append({"id": f"p{at}", "prompt": text, "category": category, "label": label, "split": split})
    path = tmp_path_factory.mktemp("data") / "split.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


@pytest.fixture
def chain(tiny_tuned_folder, split_file, tmp_path):
    """The group's options for a run on a tiny model with refusal tokens."""
    return ["--run", tmp_path / "run", "--model", tiny_tuned_folder, "--data", split_file]


def records(tmp_path):
    return json.loads((tmp_path / "run" / "run.json").read_text())["artefacts"]


def check_contract(folder):
    check = Path(__file__).parents[2] / "shared" / "check_contract.py"
    if check.exists():
        done = subprocess.run([sys.executable, check, folder], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_probe_writes_the_librarys_fit_and_is_made_once(run, chain, tmp_path):
    code, out, err = run(*chain, "probe", "--fpr", "0.1")
    assert code == 0 and "running extract" in err and "near-miss" in out
    folder = tmp_path / "run"
    probe, report = (
        Probe.load(folder / "probe.safetensors"),
        fit_probe(folder / "activations" / "prompts.safetensors", 2, fpr=0.1),
    )
    assert probe.layer == 2 and torch.equal(probe.weight, report.probe.weight)
    assert pl.read_parquet(folder / "probe_roc.parquet").equals(report.roc)
    assert pl.read_parquet(folder / "probe_layers.parquet").equals(report.layers)
    stamp = (folder / "probe.safetensors").stat().st_mtime_ns
    code, out, err = run(*chain, "--json", "probe", "--fpr", "0.1")
    assert code == 0 and "again" not in err and (folder / "probe.safetensors").stat().st_mtime_ns == stamp
    answer = json.loads(out)
    assert answer["command"] == "probe" and {row["against"] for row in answer["table"]} == {"all", "near-miss"}
    code, _, err = run(*chain, "probe", "--layer", "auto", "--fit", "published")
    assert code == 0 and "probe is made again" in err
    layers = pl.read_parquet(folder / "probe_layers.parquet")
    assert layers["auc"].max() == layers.filter(chosen=True)["auc"].item()
    assert records(tmp_path)["probe"]["key"]["fit"] == "published"
    check_contract(folder)


def test_a_gated_arm_makes_its_probe_and_remakes_it_as_it_was(run, chain, tmp_path):
    words = ["generate", "--arm", "gated", "--max-new-tokens", 2]
    code, _, err = run(*chain, *words)
    assert code == 0 and "generate needs a probe (there is none): running probe" in err
    table = pl.read_parquet(tmp_path / "run" / "generations.parquet")
    assert table["gate"].null_count() == 0 and table["gate"].is_between(0, 1).all()
    assert run(*chain, "probe", "--layer", 1)[0] == 0
    assert run(*chain, "--limit", 100, "extract")[0] == 0
    code, _, err = run(*chain, *words)
    assert code == 0 and "a probe (the activations are newer)" in err
    assert records(tmp_path)["probe"]["key"]["layer"] == 1
    code, _, err = run(*chain, "--no-auto", "--run", tmp_path / "empty", *words)
    assert code == 1 and "first" in err


@pytest.mark.parametrize("words", [["probe", "--layer", "deep"], ["probe", "--fpr", "2"], ["probe", "--fit", "svm"]])
def test_usage_errors(run, chain, tmp_path, words):
    assert run(*chain, *words)[0] == 2
    assert not (tmp_path / "run").exists()
