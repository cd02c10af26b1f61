"""Every command on a real server, as a trusted key's and as an ordinary one's: what a local run writes."""

import json

import polars as pl
import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from tests.oracles import same_tables

KEY = "0f5c1d3e-4b7a-4e21-9c5a-ca4a57ca4a57"


@pytest.fixture(params=["ndif", pytest.param("ndif_sandbox", marks=pytest.mark.slow)])
def server(request, monkeypatch):
    """Both servers, one after the other."""
    monkeypatch.setenv("NDIF_API_KEY", KEY)
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def kept():
    """The local run, made once."""
    return {}


def chain(prompts, base):
    """A chain in which every command that traces has its turn, each quick; sums stand for activations in the vectors."""
    few = ["--limit", 6, "--max-new-tokens", 2]
    words = ["extract", "probe"]
    for gate in ("harmfulness", "cast", "network", "ridge+control"):
        words += ["probe", "--gate", gate, "--data", prompts]
    words += ["vectors", "--method", "contrastive", "trace", *few]
    words += ["sweep", "--best", 1, "--strengths", "-1,2", *few, "effects", "--limit", 4]
    words += ["diff", "--against", base, "--layers", "0,2", "generate", *few, "evaluate", "report"]
    return words


@pytest.mark.ndif
def test_every_command_writes_there_what_it_writes_here(server, run, kept, tiny_tuned_folder, tiny_base_folder, prompts_file, tmp_path):  # fmt: skip
    words = ["--model", tiny_tuned_folder, "--data", prompts_file, "--holdout", "none"]
    words += chain(prompts_file, tiny_base_folder)
    if not kept:
        kept["run"] = tmp_path / "here"
        assert run("--run", kept["run"], *words)[0] == 0
    code, _, err = run("--remote", "--host", server.url, "--run", tmp_path / "there", *words)
    assert code == 0, err
    for name in ("probe", "diff"):
        assert f"{name}: activations of single rows come back, not their sums" in err
    assert "activations/sums" in json.loads((tmp_path / "there/run.json").read_text())["artefacts"]
    same_tables(kept["run"], tmp_path / "there", but=["activations/pairs.parquet"])


@pytest.mark.ndif
def test_vectors_bring_back_their_sums_alone(server, run, tiny_tuned_folder, prompts_file, tmp_path):
    words = ["--model", tiny_tuned_folder, "--data", prompts_file, "--batch-tokens", 40]
    assert run("--run", tmp_path / "here", *words, "vectors")[0] == 0
    far = ["--remote", "--host", server.url, "--run", tmp_path / "there", *words]
    code, out, err = run("--json", *far, "vectors")
    assert code == 0 and "sums of" in err, err
    assert json.loads(out)["remote"]["jobs"] <= 4 + 2  # the sums', the type's and the lens's
    assert not (tmp_path / "there/activations/prompts.safetensors").exists()
    here, there = (load_file(tmp_path / name / "vectors.safetensors") for name in ("here", "there"))
    for name, wanted in here.items():
        assert (there[name] - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    with safe_open(tmp_path / "there/activations/sums.safetensors", "pt") as file:
        assert file.get_slice("sums").get_dtype() == "F64"
    table = pl.read_parquet(tmp_path / "there/activations/sums.parquet")
    assert set(table.filter(pl.col("group").is_not_null())["split"]) == {"train"}
    code, out, err = run("--json", *far, "vectors", "trace", "--limit", 2)
    assert code == 0 and "needs" not in err, err


@pytest.mark.ndif
def test_a_mass_mean_probe_brings_back_moments_and_projections_alone(server, run, tiny_tuned_folder, prompts_file, tmp_path):  # fmt: skip
    words = ["--model", tiny_tuned_folder, "--data", prompts_file, "--holdout", "none"]
    fit = ["probe", "--fit", "mass-mean", "--layer", "auto"]
    assert run("--run", tmp_path / "here", *words, *fit)[0] == 0
    code, out, err = run("--json", "--remote", "--host", server.url, "--run", tmp_path / "there", *words, *fit)
    assert code == 0 and "moments of 40 rows: " in err and "projections of 40 rows: " in err, err
    assert (
        "activations of single rows" not in err and json.loads(out)["remote"]["jobs"] <= 4 + 2
    )  # two looks at first tokens
    assert not (tmp_path / "there/activations/prompts.safetensors").exists()
    here, there = (load_file(tmp_path / name / "probe.safetensors") for name in ("here", "there"))
    for name in ("weight", "mean", "threshold"):
        assert (there[name] - here[name]).abs().max() <= 2e-6 * here[name].abs().max(), name
    same_tables(tmp_path / "here", tmp_path / "there", but=["activations/prompts.parquet", "activations/projections.parquet",
                                                            "activations/carried.parquet"])  # fmt: skip
