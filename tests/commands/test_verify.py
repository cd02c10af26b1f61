"""`verify`: what a run says is computed again; a forged figure is found, though run.json and the ledger were forged with it."""

import json
import shutil
from pathlib import Path

import pytest

from tests.made.forgeries import FORGERIES, artefact_of, checks_of, tensor

TABLES = ("vectors", "logit_lens", "traces", "generations", "scores", "summary", "lengths", "probe", "sweep")


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_tuned_folder, prompts_file):
    """A run directory with everything that the tests forge."""
    import subprocess
    import sys

    from tests import ROOT

    folder = tmp_path_factory.mktemp("verified") / "run"
    words = ["--run", folder, "--model", tiny_tuned_folder, "--data", prompts_file, "extract", "vectors", "probe", "--fit", "mass-mean",
             "trace", "--data", prompts_file, "--max-new-tokens", "3", "sweep", "--strengths", "-0.3,-0.6", "--layers", "1,2", "--best", "1", "--max-new-tokens", "3",
             "--refusal-loss", "1", "probe", "--gate", "ridge", "--data", prompts_file,
             "generate", "--max-new-tokens", "6", "--arm", "baseline", "--arm", "fixed", "--arm", "gated:gate=ridge",
             "evaluate", "--lengths", "2,4,6", "--coherence", "judges", "--scorer", "phrases", "effects", "--arm", "baseline", "--arm", "fixed",
             "--limit", "4", "--max-new-tokens", "3", "category", "--limit", "8", "--random", "1", "report"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "cli.py", *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def forged(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "run"))


def verified(run, folder, *words) -> tuple[int, dict, str]:
    code, out, err = run("--run", folder, "--json", "verify", "--share", "1", "--seed", "1", *words)
    return code, json.loads(out.splitlines()[0]) if out else {}, err


def test_a_run_is_what_it_says(run, made):
    code, told, err = verified(run, made)
    assert code == 0, [row for row in told["table"] if row["outcome"] == "differs"]
    unknown = {(row["artefact"], row["check"]) for row in told["table"] if row["outcome"] == "can't be checked"}
    assert not unknown, err
    passed = {row["artefact"] for row in told["table"] if row["outcome"] == "pass"}
    assert passed >= {
        *TABLES,
        "activations/prompts",
        "activations/gate",
        "gates/ridge",
        "effects",
        "category",
        "judges",
        "report.html",
    }


@pytest.mark.parametrize("name", FORGERIES)
def test_every_forgery_is_found(run, forged, name):
    artefact = artefact_of(name)
    if artefact == "activations/pairs":
        pytest.skip("mean vectors rest on prompts alone; benchmarks/forgeries.py forges a real run's pairs")
    FORGERIES[name](forged)
    code, told, err = verified(run, forged, *(word for one in checks_of(name) for word in ("--only", one)))
    assert code == 1, told["table"]
    odd = {row["artefact"] for row in told["table"] if row["outcome"] == "differs"}
    assert artefact in odd, told["table"]
    hashes = [row for row in told["table"] if row["check"] == "files" and row["outcome"] == "differs"]
    assert not hashes, "the forged record hides it from the hashes alone"
    assert artefact in err


def test_what_is_altered_without_its_record_is_found_by_its_hash(run, forged):
    path = forged / "vectors.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    code, told, _ = verified(run, forged, "--share", "0")
    assert code == 1
    assert ("vectors", "files", "differs") in {(row["artefact"], row["check"], row["outcome"]) for row in told["table"]}


def test_without_the_model_what_takes_it_is_said_and_is_no_difference(run, made, monkeypatch):
    monkeypatch.setattr("interventions.model.opening.is_here", lambda _name: False)
    code, told, _ = verified(run, made)
    rows = {(row["artefact"], row["check"]): row for row in told["table"]}
    for name in ("generations", "traces", "logit_lens", "activations", "gates"):
        assert rows[name, "by the model"]["outcome"] == "can't be checked"
        assert "is not on this machine; --model FOLDER names it" in rows[name, "by the model"]["found"]
    assert rows["summary", "from scores"]["outcome"] == "pass"
    assert code == 0


def test_nothing_is_written(run, forged):
    def state() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in forged.rglob("*")}

    before = state()
    verified(run, forged)
    assert state() == before


def test_a_folder_without_a_run_is_refused(run, tmp_path):
    code, _, err = run("--run", tmp_path / "none", "verify")
    assert code == 1
    assert "holds no run" in err
    assert not (tmp_path / "none").exists()


def test_a_network_that_another_machine_trains_otherwise_is_no_forgery(
    run, tiny_tuned_folder, prompts_file, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    code, _, err = run("--run", folder, "--model", tiny_tuned_folder, "--data", prompts_file, "probe", "--gate", "network", "--data", prompts_file)  # fmt: skip
    assert code == 0, err

    def outcomes():
        code, told, err = verified(run, folder, "--only", "gates")
        assert told, err
        return code, {(row["check"], row["outcome"]) for row in told["table"]}

    code, found = outcomes()
    assert code == 0 and ("fitted again", "pass") in found
    with monkeypatch.context() as patched:
        patched.setattr("interventions.gates.kinds.network.RATE", 1.02e-3)
        code, found = outcomes()
        assert code == 0 and {("fitted again", "can't be checked"), ("its threshold", "pass")} <= found
        tensor("gates/network", "threshold", lambda values: values + 0.01)(folder)
        code, found = outcomes()
        assert code == 1 and ("its threshold", "differs") in found
