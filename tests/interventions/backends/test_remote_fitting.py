"""Everything that is fitted through a model gives on a real NDIF server what it gives here."""

import subprocess
import sys

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from safetensors.torch import load_file

from tests import ROOT
from tests.ndif.client import command

COMMANDS = (
    ("vectors", "--method", "contrastive"),
    ("probe",),
    ("lowrank", "--epochs", "2", "--mode", "input"),
    ("sweep", "--layers", "1,2", "--strengths", "-0.2,-0.5", "--arm", "fixed", "--max-new-tokens", "4"),
)


@pytest.mark.ndif
def test_fitting_is_the_same_here_and_there(ndif, tiny_tuned_folder, tiny_base_folder, prompts_file, tmp_path):
    words = [*(word for command in COMMANDS for word in command), "diff", "--against", tiny_base_folder]
    options = ["--model", tiny_tuned_folder, "--data", prompts_file]
    for name in ("here", "there"):
        line = ["--run", tmp_path / name, *options, *words]
        local = [sys.executable, str(ROOT / "cli.py"), *map(str, line)]
        argv = local if name == "here" else command(*line, host=ndif.url)
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    here, there = tmp_path / "here", tmp_path / "there"
    for name, apart in (("vectors", 1e-6), ("lowrank", 1e-4)):  # sums travel in float32
        one, two = (load_file(folder / f"{name}.safetensors") for folder in (here, there))
        assert one.keys() == two.keys()
        assert all((one[key] - two[key]).abs().max() <= apart * one[key].abs().max() for key in one), name
    for name in ("probe", "activations/prompts", "activations/diff-base/pairs"):
        one, two = (load_file(folder / f"{name}.safetensors") for folder in (here, there))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one), name
    for name in ("diff", "probe_roc"):
        assert pl.read_parquet(here / f"{name}.parquet").equals(pl.read_parquet(there / f"{name}.parquet")), name
    for name in ("logit_lens", "lowrank_training", "sweep"):
        one, two = (pl.read_parquet(folder / f"{name}.parquet") for folder in (here, there))
        assert_frame_equal(one, two, rel_tol=1e-3, abs_tol=1e-4)
