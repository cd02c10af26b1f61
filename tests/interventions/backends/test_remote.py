"""A real NDIF server on this machine: what runs there is what runs here."""

import json
import shutil
import subprocess
import sys
import sysconfig
import time

import nnsight
import polars as pl
import pytest
import torch

from data import load_all
from interventions import open_model
from interventions.backends.backend import open_backend
from interventions.reading.batches import pad_batch
from interventions.reading.extract import extract
from interventions.reading.residual import read_residual
from interventions.steering.arms import Arm, parse_arms
from interventions.steering.generate import generate
from interventions.steering.plans import Tools
from tests import ROOT
from tests.made.tools import EVERY_ROUTE, arms_of, probe_of, vectors_of
from tests.ndif.client import CANARY, SECONDS, command, doors
from tests.oracles import same_activations, same_answers

pytestmark = pytest.mark.usefixtures("canary")


@pytest.mark.ndif
def test_remote_and_simulated_are_local_on_the_embedded_model(ndif, embedded, tmp_path):
    """64 prompts: activations to the bit; answers with a vector and a strength a row."""
    prompts = load_all(["embedded/test"]).sort(pl.col("prompt").str.len_chars()).head(64)
    tools = Tools(vectors_of(embedded, categories=prompts["category"].drop_nulls().unique().sort().to_list()))
    arms = parse_arms(["baseline", "oracle:benign=-40,harmful=30"], Arm("x", "fixed", 17, strength=-30.0, unit="unit"))
    tables = {}
    for name, remote in {"local": False, **doors(ndif)}.items():
        model = embedded if remote is False else open_model("smollm2", remote=remote)
        assert model.dtype == embedded.dtype and model.backend.kind == name
        assert (next(model.module.parameters()).device.type == "meta") == (name == "remote")
        extract(model, prompts, tmp_path / name, layers=[0, 17, 29])
        tables[name] = generate(model, prompts, tools, tmp_path / f"{name}.parquet", arms=arms, max_new_tokens=4)
    for name in ("remote", "simulate"):
        same_activations(tmp_path / "local", tmp_path / name)
        same_answers(tables["local"], tables[name])
        assert set(tables[name]["backend"]) == {name}
    assert tables["remote"]["strength"].n_unique() > 2 and tables["remote"]["vector"].n_unique() > 2


@pytest.mark.ndif
def test_every_route_and_suffix_is_local(ndif, tiny_tuned, tiny_tuned_folder, prompts_file, tmp_path):
    prompts, suffixes = load_all([str(prompts_file)]), ["[weapons]", "[respond]", "tell me"]
    tables = {}
    for name, remote in {"local": False, **doors(ndif)}.items():
        model = tiny_tuned if remote is False else open_model(str(tiny_tuned_folder), remote=remote)
        tools = Tools(vectors_of(model), probe_of(model))
        tables[name] = generate(
            model, prompts, tools, tmp_path / f"{name}.parquet", arms=arms_of(EVERY_ROUTE), max_new_tokens=6
        )
        extract(model, prompts, tmp_path / name, position="suffix", suffixes=suffixes)
    for name in ("remote", "simulate"):
        same_answers(tables["local"], tables[name])
        same_activations(tmp_path / "local", tmp_path / name, "pairs")


@pytest.mark.ndif
def test_trace_alone_is_the_whole_chain_in_little_memory(ndif, tmp_path):
    """No model named, on this machine: the embedded one, whose weights are not loaded here."""
    words = command("--run", tmp_path, "--limit", 30, "--json", "trace", host=ndif.url)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    (line,) = map(json.loads, out.splitlines())
    assert line["command"] == "trace" and line["remote"]["jobs"] >= 2
    events = [json.loads(text) for text in err.splitlines() if text.startswith("{")]
    assert {event["state"] for event in events if "state" in event} >= {"COMPLETED"}
    assert [event for event in events if event.get("rows") == event.get("of")]
    records = json.loads((tmp_path / "run.json").read_text())["artefacts"]
    assert records["traces"]["backend"] == records["activations/sums"]["backend"] == "remote"
    assert 30 * 576 < records["activations/sums"]["remote"]["received"] < 30 * 30 * 576 * 4
    assert CANARY not in out + err + (tmp_path / "run.json").read_text()


@pytest.mark.ndif
def test_a_client_is_light(ndif, tmp_path):
    words = command("--run", tmp_path, "--limit", 10, "extract", host=ndif.url)
    probe = "import resource, subprocess, sys; r = subprocess.run(sys.argv[1:], stderr=subprocess.DEVNULL).returncode\n"
    probe += "print(r, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    done = subprocess.run([sys.executable, "-c", probe, *words], capture_output=True, text=True, timeout=SECONDS)
    code, peak = done.stdout.splitlines()[-1].split()
    assert code == "0" and int(peak) * 1024 < 1.2e9, done


@pytest.mark.ndif
def test_a_result_of_many_megabytes_arrives_whole(ndif, tiny_tuned_folder):
    far = open_model(str(tiny_tuned_folder), remote=open_backend("remote", ndif.url, timeout=SECONDS))
    network = far.nnsight
    with network.trace(
        {"input_ids": torch.ones(1, 2, dtype=torch.long)}, backend=far.backend.nnsight(network)
    ) as tracer:
        noise = nnsight.save(torch.randn(5_000_000, generator=torch.Generator().manual_seed(7)))
        tracer.stop()
    assert torch.equal(noise, torch.randn(5_000_000, generator=torch.Generator().manual_seed(7)))


@pytest.mark.ndif
def test_status_lists_what_is_up(ndif, run, tmp_path, monkeypatch, tiny_tuned_folder):
    monkeypatch.chdir(tmp_path)
    far = open_model(str(tiny_tuned_folder), remote=open_backend("remote", ndif.url, timeout=SECONDS))
    read_residual(far, [pad_batch([[1, 1]], 0)], [0])
    deadline = time.monotonic() + 90
    while True:
        code, out, err = run("--json", "status", "--host", ndif.url)
        assert code == 0, err
        told = json.loads(out)
        models = {one["model"]: one for one in told["ndif"]["models"]}
        if str(tiny_tuned_folder) in models or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert models[str(tiny_tuned_folder)]["state"] == "RUNNING" and models[str(tiny_tuned_folder)]["llama"]
    assert all(row["fits"] for row in told["ndif"]["versions"]) and told["ndif"]["reachable"]
    assert told["local"]["torch"] == torch.__version__
    code, out, _ = run("--remote", "status", "--host", ndif.url)
    assert code == 0 and "reachable" in out and "nnsight" in out and CANARY not in out
    assert not list(tmp_path.iterdir())


@pytest.mark.ndif
def test_an_installed_package_from_another_folder(ndif, tiny_tuned, tiny_tuned_folder, prompts_file, tmp_path):
    source, venv = tmp_path / "source", tmp_path / "venv"
    kept = shutil.ignore_patterns("__pycache__", ".*", "build", "runs", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=kept)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (packages,) = (venv / "lib").glob("python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(venv),
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        str(source),
    ]
    subprocess.run(pip, check=True, capture_output=True, timeout=SECONDS)
    words = [
        "--remote",
        "--host",
        ndif.url,
        "--run",
        "run",
        "--model",
        tiny_tuned_folder,
        "--data",
        prompts_file,
        "--holdout",
        "none",
    ]
    words = [venv / "bin/refusal", *words, "extract", "vectors", "generate", "--max-new-tokens", "3"]
    done = subprocess.run(list(map(str, words)), cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert (packages / "interventions").is_dir()
    extract(tiny_tuned, load_all([str(prompts_file)]), tmp_path / "here")
    same_activations(tmp_path / "here", tmp_path / "run" / "activations")
