"""The first hour: twenty steps from somebody's own prompts and models. Each ends well, or in one line whose advice then works."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import polars as pl
import pytest

from tests import ROOT
from tests.made.models import make_tiny
from tests.made.prompts import WORDS

SHORT = ("--max-new-tokens", 3)


@pytest.fixture
def hour(tmp_path, tiny_folder, tiny_tuned_folder, monkeypatch):
    """A folder with prompts of two kinds, no more, and `data/` and `reports/` of its owner."""
    monkeypatch.chdir(tmp_path)
    for name in ("data", "reports"):
        (tmp_path / name).mkdir()
    texts = [("kill a person", "harmful"), ("write a poem", "benign")] * 40
    lines = [
        f"{text} {WORDS[at % 20]} {WORDS[at * 7 % 20]} {WORDS[at // 20]},{label}"
        for at, (text, label) in enumerate(texts)
    ]
    (tmp_path / "mine.csv").write_text("prompt,label\n" + "\n".join(lines) + "\n")
    (tmp_path / "capital.csv").write_text("Prompt,Label\n" + "\n".join(lines[:20]) + "\n")
    (tmp_path / "odd.csv").write_text(
        "prompt,label\n" + "\n".join(line.replace("harmful", "unsafe") for line in lines) + "\n"
    )
    (tmp_path / "lines.txt").write_text("write a poem\ntell me the best painter\n")
    return tmp_path


@pytest.mark.slow
def test_the_first_hour(run, hour, tiny_folder, caplog):
    base = make_base(hour)
    mine = ("--model", tiny_folder, "--data", "mine.csv")

    # 1 to 4: the whole chain on a file without splits and categories, by a chat model without refusal tokens
    code, out, err = run(*mine, "extract", "vectors", "probe", "generate", *SHORT, "evaluate", "report")
    assert code == 0 and err.count("80 rows have no split") == 1
    summary = pl.read_parquet("runs/default/summary.parquet")
    assert summary.filter(dataset="mine")["n"].min() == 12 and summary.filter(dataset="mine")["rate"].null_count() == 0
    assert set(summary["arm"]) == {"baseline", "fixed", "gated"}
    assert pl.read_parquet("runs/default/generations.parquet")["gate"].drop_nulls().len() == 24
    assert "refusal" in out and max(map(len, out.splitlines())) <= 200 and "null" not in out
    # 5, 6: a second arm and a second strength join the first
    assert run("--data", "mine.csv", "generate", *SHORT, "--arm", "gated", "--arm", "fixed:strength=-0.5")[0] == 0
    assert set(pl.read_parquet("runs/default/generations.parquet")["arm"]) == {
        "baseline",
        "fixed",
        "gated",
        "fixed:strength=-0.5",
    }
    words = [
        "trace",
        "--arm",
        "gated",
        "--arm",
        "fixed",
        "--strength",
        "-0.2,-0.4,-0.6",
        "--prompt",
        "tell me the best",
    ]
    assert run(*words)[0] == 0 and pl.read_parquet("runs/default/traces.parquet").height == 6
    # 7, 8: rates of all of them, a page
    code, out, err = run("--data", "mine.csv", "evaluate", "report")
    assert (
        code == 0
        and "fixed:strength=-0.5" in out
        and "fixed:strength" in (hour / "runs/default/report.html").read_text()
    )
    # 9: without --data it says that it answers others
    code, _, err = run("generate", *SHORT, "--limit", 2)
    assert code == 0 and "the vectors are of mine.csv" in err
    # 10, 11: files for other programs, a model folder
    assert run("export", "--format", "lm-eval")[0] == 0 and (hour / "runs/default/export/lm-eval.pt").exists()
    assert (
        run("bake", "--out", "baked")[0] == 0
        and run("--run", "runs/baked", "--model", "baked", "--data", "mine.csv", "extract")[0] == 0
    )
    # 12: headings with capitals
    code, _, err = run("--run", "runs/capital", "--model", tiny_folder, "--data", "capital.csv", "vectors")
    assert code == 0 and "'Label' is read as 'label'" in caplog.text
    # 13: labels of another kind: the line says which; with these the same command works
    code, _, err = run("--run", "runs/odd", "--model", tiny_folder, "--data", "odd.csv", "vectors")
    assert code == 1 and "'harmful'" in err.splitlines()[-1]
    (hour / "odd.csv").write_text((hour / "odd.csv").read_text().replace("unsafe", "harmful"))
    assert run("--run", "runs/odd", "--model", tiny_folder, "--data", "odd.csv", "vectors")[0] == 0
    # 14: one prompt a line
    assert run("trace", "--data", "lines.txt")[0] == 0
    # 15: a base model, without a chat template
    assert (
        run(
            "--run",
            "runs/base",
            "--model",
            base,
            "--data",
            "mine.csv",
            "probe",
            "generate",
            *SHORT,
            "--limit",
            4,
            "evaluate",
        )[0]
        == 0
    )
    # 16: a device that is not there: the advice works
    code, _, err = run("--run", "runs/device", *mine, "--device", "warp9", "extract")
    assert code == 1 and (advice := re.search(r"--device (\w+)", err.splitlines()[-1])) is not None
    assert run("--run", "runs/device", *mine, "--device", advice[1], "extract")[0] == 0
    # 17: a split that is none, an arm that would do nothing
    assert run("--run", "runs/new", *mine, "generate", "--split", "tets")[0] == 2
    code, _, err = run("--data", "mine.csv", "generate", *SHORT, "--arm", "fixed:gate=ridge")
    assert code == 2 and "use gated" in err
    # 18: an input that is missing, with --no-auto: the command that it names works
    code, _, err = run("--run", "runs/new", *mine, "--no-auto", "generate", *SHORT, "--limit", 2)
    told = re.search(r"run `python cli.py (.*?)` first", err)
    assert code == 1 and told is not None
    assert run("--model", tiny_folder, "--data", "mine.csv", *shlex.split(told[1]))[0] == 0
    assert run("--run", "runs/new", *mine, "--no-auto", "generate", *SHORT, "--limit", 2, "--arm", "baseline")[0] == 0


@pytest.mark.slow
def test_a_run_that_was_interrupted_goes_on(hour, tiny_folder):
    """19."""
    words = [sys.executable, ROOT / "cli.py", "--model", tiny_folder, "--data", "mine.csv", "--batch-tokens", 8, "generate",
             "--max-new-tokens", 40, "--split", "train"]  # fmt: skip
    words = [str(word) for word in words]
    own = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(words, cwd=hour, env=own, stderr=subprocess.PIPE, text=True)
    journal = hour / "runs/default/.generations.journal"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_text().count("\n") > 3) and first.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    _, err = first.communicate()
    assert first.returncode == 130 and "run the same command again" in err
    again = subprocess.run(words, cwd=hour, env=own, stderr=subprocess.PIPE, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert not journal.exists() and pl.read_parquet(hour / "runs/default/generations.parquet").height == 80


@pytest.mark.slow
def test_a_notebook_beside_folders_called_data_and_reports(hour, tiny_folder, tmp_path_factory):
    """20: an editable install, as documented, used from a folder that has `data/` and `reports/` of its own; nnsight first."""
    copy, wheels, site = (tmp_path_factory.mktemp(name) for name in ("copy", "wheels", "site"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "cli.py", "commands", "data", "interventions", "reports"):
        (copy / name).symlink_to(ROOT / name)
    build = f"from setuptools import build_meta; build_meta.build_editable({str(wheels)!r})"
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", build], cwd=copy, env=plain, check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, site], check=True)
    cells = f"""
import site; site.addsitedir({str(site)!r})
import nnsight
from pathlib import Path
from data import load_all
from interventions import SteeringVectors, extract, open_model
import reports.scoring.scores
model = open_model({str(tiny_folder)!r})
extract(model, load_all(["mine.csv"]), Path("acts"), layers=[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", cells], cwd=hour, env=plain, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (hour / "acts" / "prompts.safetensors").exists()


def make_base(folder):
    """A tiny model whose tokenizer has no chat template."""
    base = make_tiny(folder / "base", seed=3)
    for name in ("chat_template.jinja",):
        (base / name).unlink(missing_ok=True)
    settings = base / "tokenizer_config.json"
    kept = {name: value for name, value in json.loads(settings.read_text()).items() if name != "chat_template"}
    settings.write_text(json.dumps(kept))
    return base
