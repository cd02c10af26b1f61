"""A real NDIF server on this machine: what runs there is what runs here, and nothing that breaks it hangs or loses."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import nnsight
import polars as pl
import pytest
import torch

from data import UserError, load_all
from data.store.journal import Journal
from data.store.progress import Watch
from interventions import open_model
from interventions.backends.backend import Backend, open_backend
from interventions.backends.ndif.client import Client
from interventions.reading.batches import pad_batch
from interventions.reading.extract import extract
from interventions.reading.residual import read_residual
from interventions.steering.arms import Arm, parse_arms
from interventions.steering.generate import generate
from interventions.steering.plans import Tools
from tests import ROOT
from tests.faults.ndif import standing_in
from tests.made.models import make_tiny
from tests.made.prompts import benign_prompts
from tests.made.tools import EVERY_ROUTE, arms_of, probe_of, vectors_of
from tests.ndif.client import SECONDS, command, doors
from tests.ndif.postgres import binaries, keys_database
from tests.ndif.server import free_ports
from tests.oracles import same_activations, same_answers

CANARY = "0f5c1d3e-4b7a-4e21-9c5a-ca4a57ca4a57"


@pytest.fixture(autouse=True)
def canary(monkeypatch):
    monkeypatch.setenv("NDIF_API_KEY", CANARY)
    monkeypatch.setenv("REFUSAL_HOLDOUT", "none")  # as the library's extract, which is compared with, has no splits


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Prompts that a tiny model needs a few hundred batches for."""
    return benign_prompts(tmp_path_factory.mktemp("many") / "many.jsonl", 700)


@pytest.fixture(scope="module")
def work(many, tiny_tuned_folder):
    """A run of some hundred batches, in tens of jobs."""
    return ["--model", tiny_tuned_folder, "--data", many, "--batch-tokens", 24, "--in-flight", 3, "extract"]


@pytest.fixture(scope="module")
def undisturbed(many, tiny_tuned, tmp_path_factory):
    """What `work` makes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    extract(tiny_tuned, load_all([str(many)]), folder, batch_tokens=24)
    return folder


def errors(text: str) -> list[str]:
    return [line for line in text.replace("\r", "\n").splitlines() if line.startswith("error")]


def one_line(outcome: tuple[int, str, str], reason: str) -> None:
    code, out, err = outcome
    assert code == 1 and len(errors(err)) == 1 and reason in errors(err)[0], outcome
    assert CANARY not in out + err


# What runs there is what runs here.


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


# Clients that die.


def begun(words: list[str], run_dir: Path, ids: int = 1) -> subprocess.Popen[str]:
    """A run with its first jobs sent."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if sent(run_dir) >= ids:
            return process
        time.sleep(0.02)
    raise AssertionError(process.communicate(timeout=5)[1])


def sent(run_dir: Path) -> int:
    journals = list(run_dir.rglob(".*.journal"))
    return sum(journal.read_text().count('"id": "') for journal in journals if journal.exists())


KILLS = pytest.mark.skipif(
    "REFUSAL_TEST_KILLS" not in os.environ, reason="a sandbox takes seconds a job; REFUSAL_TEST_KILLS=10 asks for it"
)


@pytest.mark.ndif
@pytest.mark.parametrize("server", ["ndif", pytest.param("ndif_sandbox", marks=KILLS)])
def test_a_killed_client_collects_and_ends_the_same(request, server, run, work, undisturbed, tmp_path):
    """Ten kills where REFUSAL_TEST_KILLS=10; nothing whose id was journalled is computed again."""
    ids: dict[str, set[str]] = {}
    ndif = request.getfixturevalue(server)
    random_ = random.Random(0)
    for _ in range(int(os.environ.get("REFUSAL_TEST_KILLS", "3"))):
        process = begun(command("--run", tmp_path, *work, host=ndif.url), tmp_path, sent(tmp_path) + 1)
        time.sleep(random_.uniform(0, 1))
        process.kill()
        process.wait()
        journal = tmp_path / "activations" / ".prompts.journal"
        assert journal.exists(), "the run was over before it could be killed"
        text = journal.read_text()
        for line in text[: text.rfind("\n")].splitlines()[1:]:
            entry = json.loads(line)
            if "job" in entry and entry["noted"]["id"]:
                ids.setdefault(entry["job"], set()).add(entry["noted"]["id"])
        assert CANARY not in text
    code, _, err = run("--remote", "--host", ndif.url, "--run", tmp_path, *work)
    assert code == 0, err
    same_activations(undisturbed, tmp_path / "activations")
    assert ids and all(len(found) == 1 for found in ids.values())
    assert CANARY not in (tmp_path / "run.json").read_text()


@pytest.mark.ndif
def test_ctrl_c_is_130_at_once_and_the_next_run_goes_on(ndif, run, work, undisturbed, tmp_path):
    process = begun(command("--run", tmp_path, *work, host=ndif.url), tmp_path)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "run the same command again to go on" in err and "Traceback" not in err
    assert time.monotonic() - start < 15
    assert run("--remote", "--host", ndif.url, "--run", tmp_path, *work)[0] == 0
    record = json.loads((tmp_path / "run.json").read_text())["artefacts"]["activations/prompts"]
    assert record["remote"]["collected"] >= 1
    same_activations(undisturbed, tmp_path / "activations")


@pytest.mark.ndif
def test_a_killed_trace_and_generation_go_on(ndif, run, tiny_tuned_folder, prompts_file, tmp_path):
    words = ["--model", tiny_tuned_folder, "--data", prompts_file, "--batch-tokens", 20]
    far = ["--remote", "--host", ndif.url]
    for name in ("killed", "whole"):
        code, _, err = run(*far, "--run", tmp_path / name, *words, "extract", "vectors")
        assert code == 0, err
    for step in (["trace", "--limit", 40, "--max-new-tokens", 2], ["generate", "--max-new-tokens", 2]):
        process = begun(command("--run", tmp_path / "killed", *words, *step, host=ndif.url), tmp_path / "killed", 3)
        process.kill()
        process.wait()
        for name in ("killed", "whole"):
            code, _, err = run(*far, "--run", tmp_path / name, *words, *step)
            assert code == 0, err
    for name in ("traces", "generations"):
        one, two = (pl.read_parquet(tmp_path / run_dir / f"{name}.parquet") for run_dir in ("killed", "whole"))
        assert one.equals(two)


# Servers that break.


@contextmanager
def after(run_dir: Path, ids: int, act: Callable[[], object]) -> Iterator[threading.Event]:
    """Do `act` as soon as so many jobs are journalled."""
    done, over = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.is_set():
            if sent(run_dir) >= ids:
                act()
                done.set()
                return
            time.sleep(0.02)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield done
    finally:
        over.set()
        thread.join(60)


@pytest.mark.ndif
@pytest.mark.parametrize("victim", ["actor", "worker"])
def test_what_dies_and_comes_back_is_outlived(breakable, run, work, undisturbed, tmp_path, victim):
    words = ["--remote", "--host", breakable.url, "--timeout", 200, "--run", tmp_path, *work]
    if victim == "actor":  # Ray knows several, and starts each anew
        kill = lambda: [os.kill(process, signal.SIGKILL) for process in breakable.actors()]  # noqa: E731
    else:
        kill = lambda: os.kill(breakable.find(victim), signal.SIGKILL)  # noqa: E731
    with after(tmp_path, 4, kill) as done:
        outcome = run(*words)
    assert done.is_set()
    if outcome[0] == 0:
        same_activations(undisturbed, tmp_path / "activations")
    else:
        one_line(outcome, "run the same command again")
        assert run(*words)[0] == 0
        same_activations(undisturbed, tmp_path / "activations")


@pytest.mark.ndif
def test_a_frozen_api_ends_in_a_line_within_the_deadline(breakable, run, work, undisturbed, tmp_path):
    words = ["--remote", "--host", breakable.url, "--run", tmp_path, *work]
    frozen = breakable.find("worker")
    try:
        with after(tmp_path, 4, lambda: os.kill(frozen, signal.SIGSTOP)):
            start = time.monotonic()
            one_line(run("--timeout", 12, *words), "--timeout")
            assert time.monotonic() - start < 60
        start = time.monotonic()
        one_line(run(*words), "did not answer")
        assert time.monotonic() - start < 20
        code, out, _ = run("status", "--host", breakable.url)
        assert code == 0 and "did not answer" in out
    finally:
        os.kill(frozen, signal.SIGCONT)
    assert run(*words)[0] == 0
    same_activations(undisturbed, tmp_path / "activations")


@pytest.mark.ndif
@pytest.mark.parametrize("victim", ["dispatcher", "redis"])
def test_what_dies_for_good_ends_in_a_line_within_the_deadline(breakable, run, work, undisturbed, tmp_path, victim):
    words = ["--remote", "--host", breakable.url, "--run", tmp_path, *work]
    try:
        with after(tmp_path, 4, lambda: os.kill(breakable.find(victim), signal.SIGKILL)):
            start = time.monotonic()
            one_line(run("--timeout", 12, *words), "again")
            assert time.monotonic() - start < 60
    finally:
        breakable.restart(*(["redis"] if victim == "redis" else []), "api")
    deadline = time.monotonic() + SECONDS
    code, _, err = run("--timeout", 60, *words)  # what the dead one had queued is lost, and overdue after this
    while code and "reconnecting" in err and time.monotonic() < deadline:
        time.sleep(2)
        code, _, err = run("--timeout", 60, *words)
    assert code == 0, err
    same_activations(undisturbed, tmp_path / "activations")


@pytest.mark.ndif
def test_the_servers_time_limit_ends_in_halves_or_a_line(ndif, tmp_path):
    folder = str(make_tiny(tmp_path / "limited"))
    name = json.dumps({"repo_id": folder, "revision": None, "task": "text-generation"})
    ndif.deploy(folder, f"nnsight.modeling.transformers.TransformersModel:{name}", limit=4)
    far = open_model(folder, remote=open_backend("remote", ndif.url, timeout=SECONDS, in_flight=1))
    network, batch = far.nnsight, {"input_ids": torch.ones(1, 2, dtype=torch.long)}

    def slowly(group: tuple[int, ...], each: float = 1.2) -> int:
        pause = each * len(group)
        with network.trace(batch, backend=far.backend.nnsight(network)) as tracer:
            time.sleep(pause)
            seen = nnsight.save(torch.ones(1))
            tracer.stop()
        return int(seen)

    journal = Journal(tmp_path / ".journal", {}, [[row] for row in range(6)])
    groups = [group for group, _ in far.backend.each(journal, slowly, 1)]
    assert sorted(row for group in groups for row in group) == list(range(6)) and max(map(len, groups)) == 3
    with pytest.raises(UserError, match=r"exceeded the execution timeout of 4.* --batch-tokens"):
        slowly((0,), 20)


@pytest.mark.ndif
def test_what_the_server_cannot_do_is_its_last_line(ndif, run, work, tiny_folder, tiny_tuned_folder, tmp_path):
    hollow = tmp_path / "hollow"
    hollow.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_folder / name, hollow)
    huge = json.loads((tiny_folder / "config.json").read_text()) | {
        "num_hidden_layers": 400,
        "vocab_size": 4_000_000,
        "hidden_size": 4096,
    }
    (hollow / "config.json").write_text(json.dumps(huge))
    one_line(
        run("--remote", "--host", ndif.url, "--run", tmp_path / "run", "--data", work[3], "--model", hollow, "extract"),
        "deploy",
    )
    far = open_model(str(tiny_tuned_folder), remote=open_backend("remote", ndif.url, timeout=SECONDS))
    with pytest.raises(UserError) as caught:
        read_residual(far, [pad_batch([[10**6] * 3], 0)], [0])
    assert "\n" not in str(caught.value) and "IndexError" in str(caught.value)


@pytest.mark.ndif
def test_a_server_that_checks_keys(breakable, run, work, tmp_path, monkeypatch):
    if binaries() is None:
        pytest.skip("needs Postgres")
    words = ["--remote", "--host", breakable.url, "--run", tmp_path, *work]
    with keys_database(CANARY, free_ports(1)[0]) as database:
        try:
            breakable.restart("api", NDIF_POSTGRES_URL=database)
            for key in ("", "no-uuid-canary", "11111111-2222-3333-4444-555555555555"):
                outcome = run(*words, NDIF_API_KEY=key)
                one_line(outcome, "NDIF_API_KEY")
                assert not key or key not in outcome[2]
            monkeypatch.setenv("NDIF_API_KEY", CANARY)
            code, out, err = run("--json", *words)
            assert code == 0, err
            code, told, _ = run("status", "--host", breakable.url)
            assert code == 0 and "key: trusted" in told  # as the database has it
            files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
            assert not [raw for raw in [*files, (out + err + told).encode()] if CANARY.encode() in raw]
        finally:
            breakable.restart("api")


# Servers that are none, or aren't there.


REFUSALS = [
    ({"/ping": (404, {"detail": "Not Found"})}, "NDIF"),
    ({"/request": (401, {"detail": "Missing or invalid API key."})}, "NDIF_API_KEY"),
    ({"/request": (400, {"detail": f"Invalid API key format: '{CANARY}'."})}, "NDIF_API_KEY"),
    ({"/request": (403, {"detail": "Invalid API key."})}, "NDIF_API_KEY"),
    ({"/connected": (503, {"detail": "Service temporarily unavailable: compute backend is reconnecting."})}, "compute"),
]


@pytest.mark.parametrize(("pages", "reason"), REFUSALS)
def test_refusals_are_one_line_without_the_key(run, tiny_folder, prompts_file, tmp_path, pages, reason):
    words = ["--run", tmp_path, "--model", tiny_folder, "--data", prompts_file, "extract"]
    with standing_in(pages=pages) as server:
        address = server.address.replace("//", f"//me:{CANARY}@")
        one_line(run("--remote", "--host", address, *words), reason)
        with pytest.raises(UserError) as caught:
            run("--remote", "--host", address, "--debug", *words)
        assert CANARY not in "".join(traceback.format_exception(caught.value))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]


def test_servers_that_are_not_there_are_one_line(run, tmp_path):
    words = ["--run", tmp_path, "trace", "--prompt", "tell me"]
    one_line(run("--remote", "--host", "http://127.0.0.1:9", *words), "no NDIF server")
    one_line(run("--remote", "--host", "http://no.such.host.invalid", *words), "no.such.host.invalid")
    one_line(run("--remote", "--host", "127.0.0.1:9", *words), "http://")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and stays silent
        start = time.monotonic()
        one_line(run("--remote", "--host", f"http://127.0.0.1:{silent.getsockname()[1]}", *words), "did not answer")
        assert time.monotonic() - start < 20


def test_without_a_model_a_far_server_is_asked_which_llama_is_up(run, tmp_path, monkeypatch):
    monkeypatch.setattr("interventions.backends.ndif.client.is_loopback", lambda _: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = ["--run", tmp_path, "trace", "--prompt", "tell me"]
    with standing_in() as server:
        words = ["--insecure", *words]
        code, _, err = run("--remote", "--host", server.address, *words)
        assert code == 1 and "meta-llama/Llama-3.3-70B-Instruct is up there" in err
        one_line(
            run("--remote", "--host", server.address, "--model", "smollm2", *words),
            "lives on this machine; pass --model with a hub id",
        )
        server.pages["/status"] = 200, {"deployments": {}}
        one_line(run("--remote", "--host", server.address, *words), "no Llama runs")


def test_status_of_what_is_not_there(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("status", "--host", "http://127.0.0.1:9")
    assert code == 0 and "nothing listens there" in out and "torch" in out
    one_line(run("status", "--remote", "--host", "http://127.0.0.1:9"), "nothing listens there")
    with standing_in() as server:
        code, out, _ = run("status", "--json", "--host", server.address)
        told = json.loads(out)
        assert code == 0 and told["ndif"]["default"] == "meta-llama/Llama-3.3-70B-Instruct"
        assert [one["state"] for one in told["ndif"]["models"]] == ["RUNNING"] * 3 + ["DEPLOYING"]
        assert {row["package"]: row["fits"] for row in told["ndif"]["versions"]}["torch"] is False
    assert not list(tmp_path.iterdir())


def test_what_comes_back_is_said_first_and_much_is_asked_for(tmp_path, capsys):
    journal = Journal(tmp_path / ".journal", {}, [[row] for row in range(20)])
    line = Backend("remote", Client("http://127.0.0.1:9", 1, Watch()), in_flight=4, most_bytes=2_000_000_000)
    line.announce("extract: 20 rows", journal, 90_000_000, 1_800_000_000)
    assert capsys.readouterr().err == "extract: 20 rows: 20 requests, 1,800.0 MB to come back\n"
    with pytest.raises(UserError, match=r"2,200\.0 MB.*--yes"):
        line.announce("extract: 20 rows", journal, 110_000_000, 2_200_000_000)
    replace(line, most_bytes=None).announce("extract: 20 rows", journal, 110_000_000, 2_200_000_000)
    line.announce("vectors: sums of 20 rows", journal, 0, job_bytes=3_000_000)
    assert "4 requests, 12.0 MB to come back" in capsys.readouterr().err


def test_status_lists_the_jobs_of_a_run(run, tmp_path):
    running = {"status": "RUNNING", "description": "on its way", "data": None}
    journal = Journal(tmp_path / "activations/.prompts.journal", {}, [[0], [1], [2], [3]])
    with standing_in(on_poll=lambda job, _: (200, running | {"id": job})) as server:
        for name, mark, job in (
            ("0,1#0", Client(server.address, 1).mark, "mine"),
            ("2#0", "0", "theirs"),
            ("3#0", "0", "done"),
        ):
            journal.note_job(name, {"server": mark, "id": job, "sent": 1e9, "again": 0})
        journal.finish({3: None})
        words = ["status", "--jobs", "--run", tmp_path, "--host", server.address]
        code, out, _ = run("--json", *words)
        told = json.loads(out)["jobs"]
        assert code == 0 and [(one["id"], one["batches"], one["state"]) for one in told] == [
            ("mine", "0-1", "RUNNING"), ("theirs", "2", "elsewhere")]  # fmt: skip
        assert {one["artefact"] for one in told} == {"activations/prompts"} and told[0]["sent"].startswith("2001-09-09")
        assert "mine" in run(*words)[1]
    journal.remove()
    assert "under way" in run("status", "--jobs", "--run", tmp_path, "--host", "http://127.0.0.1:9")[1]


def test_a_simulation_is_local_and_takes_nothing_from_outside(tiny, tiny_folder, prompts_file, tmp_path):
    model = open_model(str(tiny_folder), remote="local")
    prompts = load_all([str(prompts_file)])
    for name, one in (("local", tiny), ("simulate", model)):
        extract(one, prompts, tmp_path / name, position="mean")
        tools = Tools(replace(vectors_of(tiny), metadata=vectors_of(one).metadata))
        generate(
            one,
            prompts,
            tools,
            tmp_path / f"{name}.parquet",
            arms=arms_of(["baseline", "fixed:category=weapons"]),
            max_new_tokens=3,
        )
    same_activations(tmp_path / "local", tmp_path / "simulate")
    same_answers(*(pl.read_parquet(tmp_path / f"{name}.parquet") for name in ("local", "simulate")))
    network, block, batch, outside = (
        model.nnsight,
        model.layers[1],
        {"input_ids": torch.ones(1, 3, dtype=torch.long)},
        [],
    )
    for turn in range(2):  # blocks of one file, with what a layout anew drops or moves
        with network.session(backend=model.backend.nnsight(network)):
            # a comment
            kept = nnsight.save([])

            for _ in range(2):
                # another
                with network.trace(batch) as tracer:
                    seen = block.output.sum()
                    tracer.stop()
                kept.append(seen)
                outside.append(seen)
        with network.session(backend=model.backend.nnsight(network)):
            other = nnsight.save([])
            with network.trace(batch) as tracer:
                other.append(block.output.mean())
                tracer.stop()
        assert len(kept) == 2 and kept[0] == kept[1] and len(other) == 1 and turn < 2
    assert outside == []
