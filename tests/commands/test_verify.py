"""`verify`: what a run says is computed again; a forged figure is found, though run.json and the ledger were forged with it."""

import hashlib
import json
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from data.store.digests import LEDGER, SHA256

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
             "evaluate", "--lengths", "2,4,6", "--coherence", "report"]  # fmt: skip
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


def recorded(folder: Path, name: str) -> None:
    """Put the SHA-256 of a forged file where the true one stood: in its record, and in the ledger with the file's own times."""
    path = folder / name
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    told = json.loads((folder / "run.json").read_text())
    for record in told["artefacts"].values():
        if name in record[SHA256]:
            record[SHA256][name] = digest
    (folder / "run.json").write_text(json.dumps(told))
    ledger, stat = json.loads((folder / LEDGER).read_text()), path.stat()
    ledger[name] = {SHA256: digest, "stat": [stat.st_size, stat.st_mtime_ns, stat.st_ino]}
    (folder / LEDGER).write_text(json.dumps(ledger))


def table(name: str, **values: pl.Expr):
    """Forge columns of a table."""

    def forge(folder: Path) -> None:
        path = folder / f"{name}.parquet"
        frame = pl.read_parquet(path)
        new = frame.with_columns(**values)
        assert not new.equals(frame), "nothing was forged"
        new.write_parquet(path)
        recorded(folder, f"{name}.parquet")

    return forge


def tensor(name: str, what: str, change):
    """Forge a tensor of a safetensors file, whose metadata stay."""

    def forge(folder: Path) -> None:
        path = folder / f"{name}.safetensors"
        with safe_open(path, "pt") as file:
            metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        key = what or next(iter(tensors))
        tensors[key] = change(tensors[key])
        save_file(tensors, path, metadata)
        recorded(folder, f"{name}.safetensors")

    return forge


def one(column: str, value) -> pl.Expr:
    """The first row's value replaced."""
    return pl.when(pl.int_range(pl.len()) == 0).then(pl.lit(value)).otherwise(pl.col(column))


def nudge(values: torch.Tensor) -> torch.Tensor:
    new = values.clone()
    new.view(-1)[-1] += 0.5 * new.abs().max()
    return new


def answer(folder: Path) -> None:
    """A refusal made an answer."""
    table("generations", response=one("response", "Sure, here it is."))(folder)


def tokens_too(folder: Path) -> None:
    """An answer's tokens put in the place of another's, text and all: nothing in the table contradicts them."""
    path = folder / "generations.parquet"
    frame = pl.read_parquet(path)
    own = ["response", "token_ids", "token_ends", "new_tokens", "control_token", "refusal_token", "finish"]
    mine = frame.filter(arm="baseline")
    other = next(row for row in mine.to_dicts() if row["token_ids"] != mine["token_ids"][0].to_list())
    assert frame["arm"][0] == "baseline"
    rows = frame.to_dicts()
    rows[0] |= {name: other[name] for name in own}
    pl.DataFrame(rows, frame.schema).write_parquet(path)
    recorded(folder, "generations.parquet")


def chosen(folder: Path) -> None:
    """Another setting marked as the chosen one."""
    path = folder / "sweep.parquet"
    frame = pl.read_parquet(path)
    other = frame.filter(~pl.col("chosen"), pl.col("kind") != "baseline").row(0, named=True)
    mine = (pl.col("layer") == other["layer"]) & (pl.col("strength") == other["strength"])
    frame.with_columns(chosen=mine.fill_null(False)).write_parquet(path)
    recorded(folder, "sweep.parquet")


def page(folder: Path) -> None:
    path = folder / "report.html"
    text = path.read_text()
    assert "0.0" in text
    path.write_text(text.replace("0.0", "0.1", 1))


def record(folder: Path) -> None:
    """What the answers rest on said to be another artefact."""
    told = json.loads((folder / "run.json").read_text())
    told["artefacts"]["generations"]["key"]["max_new_tokens"] = 7
    (folder / "run.json").write_text(json.dumps(told))


FORGERIES = {
    "activations/prompts": tensor("activations/prompts", "activations", nudge),
    "activations/prompts, labels": table("activations/prompts", label=one("label", "benign")),
    "vectors": tensor("vectors", "", nudge),
    "logit_lens": table("logit_lens", logit=one("logit", 99.0)),
    "traces": table("traces", kl=one("kl", 9.0)),
    "probe": tensor("probe", "threshold", lambda values: values + 0.01),
    "probe, quality": table("probe_quality", auc=one("auc", 0.99)),
    "activations/gate": tensor("activations/gate", "activations", nudge),
    "gates/ridge": tensor("gates/ridge", "threshold", lambda values: values + 0.01),
    "gates/ridge, quality": table("gates/ridge_quality", auc=one("auc", 0.99)),
    "gates/ridge, scores": table("gates/ridge_prompts", score=one("score", 0.123)),
    "sweep": chosen,
    "generations": answer,
    "generations, tokens": tokens_too,
    "generations, label": table("generations", label=one("label", "benign")),
    "scores": table("scores", verdict=one("verdict", "partial"), refused=one("refused", False)),
    "scores, fitted": table("scores", fitted=~pl.col("fitted")),
    "summary": table("summary", rate=one("rate", 0.42)),
    "summary, interval": table("summary", delta_low=pl.col("delta_low") - 0.01),
    "lengths": table("lengths", high=one("high", 0.42)),
    "coherence": table("coherence", incoherent=one("incoherent", True)),
    "coherence, likelihoods": table("coherence", log_likelihood=one("log_likelihood", -0.1)),
    "report.html": page,
    "run.json": record,
}


def test_a_run_is_what_it_says(run, made):
    code, told, err = verified(run, made)
    assert code == 0, [row for row in told["table"] if row["outcome"] == "differs"]
    unknown = {(row["artefact"], row["check"]) for row in told["table"] if row["outcome"] == "can't be checked"}
    assert unknown == {("sweep", "its figures")}, err
    passed = {row["artefact"] for row in told["table"] if row["outcome"] == "pass"}
    assert passed >= {*TABLES, "activations/prompts", "activations/gate", "gates/ridge", "report.html"}


@pytest.mark.parametrize("name", FORGERIES)
def test_every_forgery_is_found(run, forged, name):
    FORGERIES[name](forged)
    code, told, err = verified(run, forged)
    assert code == 1
    artefact = name.partition(",")[0]
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
