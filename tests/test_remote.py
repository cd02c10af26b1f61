"""A real NDIF server on this machine: what runs there is what runs here, and nothing that breaks it hangs or loses."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from data import load_all
from interventions import open_model
from interventions.arms import Arm, parse_arms
from interventions.backends import open_door
from interventions.extraction import extract
from interventions.generation import generate
from interventions.routes import Tools
from tests.ndif.server import CannotRunError, Server
from tests.test_routes import WORDS, arms_of, probe_of
from tests.test_steering import vectors_of

ROOT = Path(__file__).parents[1]
CANARY = "deadbeef-canary-key"


@pytest.fixture(scope="module")
def ndif():
    server = Server(Path(tempfile.mkdtemp(prefix="nt-", dir="/tmp")))
    try:
        server.up()
    except CannotRunError as reason:
        pytest.skip(str(reason))
    yield server
    server.down()


def command(*words, host="", **environment):
    host = ["--remote", "--host", host] if host else []
    return [sys.executable, str(ROOT / "cli.py"), *host, *map(str, words)], {
        **os.environ,
        "NDIF_API_KEY": CANARY,
        **environment,
    }


def cli(*words, host="", seconds=120.0, **environment):
    """Run the command line: exit status, lines on stderr that are no progress, seconds."""
    argv, environment = command(*words, host=host, **environment)
    start = time.monotonic()
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=seconds, cwd=ROOT)
    assert CANARY not in done.stdout + done.stderr
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.startswith("error")]
    return done.returncode, lines, time.monotonic() - start


def one_line(outcome, reason):
    code, lines, _ = outcome
    assert code == 1 and len(lines) == 1 and reason in lines[0], outcome


def metadata(path):
    with safe_open(path, "pt") as file:
        return {key: value for key, value in (file.metadata() or {}).items() if key != "backend"}


def same_activations(one: Path, two: Path):
    a, b = (load_file(folder / "prompts.safetensors")["activations"] for folder in (one, two))
    assert torch.equal(a, b) and metadata(one / "prompts.safetensors") == metadata(two / "prompts.safetensors")
    assert pl.read_parquet(one / "prompts.parquet").equals(pl.read_parquet(two / "prompts.parquet"))


@pytest.mark.ndif
def test_remote_is_local_on_the_embedded_model(ndif, embedded, tmp_path):
    """64 prompts: activations to the bit; answers with a vector and a strength a row."""
    far = open_model("smollm2", remote=open_door("remote", ndif.url, timeout=120))
    assert far.dtype == embedded.dtype and next(far.module.parameters()).device.type == "meta"
    prompts = load_all(["embedded/test"]).head(64)
    for name, model in (("here", embedded), ("there", far)):
        extract(model, prompts, tmp_path / name, layers=[0, 17, 29])
    same_activations(tmp_path / "here", tmp_path / "there")
    tools = Tools(vectors_of(embedded, categories=prompts["category"].drop_nulls().unique().sort().to_list()))
    words = ["baseline", "fixed", "oracle:benign=-40,harmful=30", "ablate:scope=all"]
    arms = parse_arms(words, Arm("x", "fixed", 17, strength=-30.0, unit="unit"))
    tables = [
        generate(model, prompts, tools, tmp_path / f"{name}.parquet", arms=arms, max_new_tokens=8)
        for name, model in (("here", embedded), ("there", far))
    ]
    assert tables[0].drop("backend").equals(tables[1].drop("backend"))
    assert set(tables[1]["backend"]) == {"remote"} and tables[1]["strength"].n_unique() > 2


@pytest.mark.ndif
def test_every_route_and_suffix_is_local(ndif, tiny_tuned, tiny_tuned_folder, prompts_file, tmp_path):
    far = open_model(str(tiny_tuned_folder), remote=open_door("remote", ndif.url, timeout=120))
    prompts = load_all([str(prompts_file)])
    tools = Tools(replace_name(vectors_of(tiny_tuned), far), probe_of(far))
    near_tools = Tools(vectors_of(tiny_tuned), probe_of(tiny_tuned))
    here = generate(tiny_tuned, prompts, near_tools, tmp_path / "a.parquet", arms=arms_of(WORDS), max_new_tokens=6)
    there = generate(far, prompts, tools, tmp_path / "b.parquet", arms=arms_of(WORDS), max_new_tokens=6)
    assert here.drop("backend").equals(there.drop("backend"))
    suffixes = ["[weapons]", "[respond]", "tell me"]
    for name, model in (("here", tiny_tuned), ("there", far)):
        extract(model, prompts, tmp_path / name, position="suffix", suffixes=suffixes)
    a, b = (load_file(tmp_path / name / "pairs.safetensors")["activations"] for name in ("here", "there"))
    assert torch.equal(a, b)


def replace_name(vectors, model):
    return replace(vectors, metadata=vectors.metadata | {"model": model.name})


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    """An undisturbed local run of what the faults disturb."""
    run = tmp_path_factory.mktemp("wanted")
    code, lines, _ = cli("--run", run, *SLOW)
    assert code == 0, lines
    return run / "activations"


SLOW = ("--limit", "120", "--batch-tokens", "150", "--in-flight", "3", "extract", "--layers", "3,17")


def begun(run: Path, argv, environment):
    """A remote run with its first job sent."""
    process = subprocess.Popen(
        argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    journal = run / "activations" / ".prompts.journal"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and '"id": "' in journal.read_text():
            return process
        time.sleep(0.05)
    raise AssertionError(process.communicate(timeout=5)[1])


@pytest.mark.ndif
def test_a_killed_client_collects_and_ends_the_same(ndif, wanted, tmp_path):
    kills = int(os.environ.get("REFUSAL_TEST_KILLS", "3"))
    ids: dict[str, set[str]] = {}
    journal = tmp_path / "activations" / ".prompts.journal"
    argv, environment = command("--run", tmp_path, *SLOW, host=ndif.url)
    for at in range(kills):
        process = begun(tmp_path, argv, environment)
        time.sleep((0.1, 0.7, 1.5, 0.3, 2.2, 0.9, 0.05, 1.1, 0.5, 1.8)[at % 10])
        process.kill()
        process.wait()
        if not journal.exists():
            break
        for line in journal.read_text().splitlines()[1:]:
            entry = json.loads(line) if line.endswith("}") else {}
            if entry.get("job") and (entry["noted"] or {}).get("id"):
                ids.setdefault(entry["job"], set()).add(entry["noted"]["id"])
        assert CANARY not in journal.read_text()
    assert cli("--run", tmp_path, *SLOW, host=ndif.url)[0] == 0
    same_activations(wanted, tmp_path / "activations")
    assert ids and all(len(found) == 1 for found in ids.values())
    assert CANARY not in (tmp_path / "run.json").read_text()


@pytest.mark.ndif
@pytest.mark.parametrize("victim", ["actor", "worker"])
def test_what_dies_and_comes_back_is_outlived(ndif, wanted, tmp_path, victim):
    argv, environment = command("--run", tmp_path, "--timeout", 100, *SLOW, host=ndif.url)
    process = begun(tmp_path, argv, environment)
    os.kill(ndif.find(victim), signal.SIGKILL)
    _, err = process.communicate(timeout=130)
    if process.returncode == 0:
        same_activations(wanted, tmp_path / "activations")
    else:
        assert process.returncode == 1 and len([line for line in err.splitlines() if line.startswith("error")]) == 1


@pytest.mark.ndif
def test_a_frozen_api_ends_in_a_line(ndif, tmp_path):
    argv, environment = command("--run", tmp_path, "--timeout", 12, *SLOW, host=ndif.url)
    process = begun(tmp_path, argv, environment)
    frozen = ndif.find("worker")
    os.kill(frozen, signal.SIGSTOP)
    try:
        start = time.monotonic()
        _, err = process.communicate(timeout=40)
        errors = [line for line in err.splitlines() if line.startswith("error")]
        assert process.returncode == 1 and len(errors) == 1 and "--timeout" in errors[0], err
        assert time.monotonic() - start < 25
        one_line(cli("--run", tmp_path, *SLOW, host=ndif.url), "did not answer")
    finally:
        os.kill(frozen, signal.SIGCONT)
    assert cli("--run", tmp_path, *SLOW, host=ndif.url)[0] == 0


@pytest.mark.ndif
@pytest.mark.parametrize("victim", ["redis", "dispatcher"])
def test_what_dies_for_good_ends_in_a_line_within_the_deadline(ndif, tmp_path, victim):
    argv, environment = command("--run", tmp_path, "--timeout", 15, *SLOW, host=ndif.url)
    process = begun(tmp_path, argv, environment)
    os.kill(ndif.find(victim), signal.SIGKILL)
    try:
        _, err = process.communicate(timeout=60)
        errors = [line for line in err.splitlines() if line.startswith("error")]
        assert process.returncode in (0, 1) and len(errors) == process.returncode, err
    finally:
        if victim == "redis":
            ndif.restart("redis")
        ndif.restart("api")
    assert cli("--run", tmp_path, "--timeout", 100, *SLOW, host=ndif.url, seconds=150)[0] == 0


@pytest.mark.ndif
def test_a_model_that_cannot_be_deployed_is_the_servers_last_line(ndif, tiny_folder, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_folder / name).read_bytes())
    one_line(cli("--run", tmp_path / "run", "--model", folder, *SLOW, host=ndif.url), "")


@pytest.mark.ndif
def test_an_exception_in_the_block_is_its_last_line_and_not_tried_again(ndif, tiny_folder, prompts_file, tmp_path):
    far = open_model(str(tiny_folder), remote=open_door("remote", ndif.url, timeout=60))
    from data import UserError
    from interventions.extraction import read_residual

    with pytest.raises(UserError) as caught:
        read_residual(far, [{"input_ids": torch.full((1, 3), 10**6), "attention_mask": torch.ones(1, 3)}], [0])
    assert "\n" not in str(caught.value) and "index" in str(caught.value).lower()


class Answers(BaseHTTPRequestHandler):
    """A web server that is no NDIF, or refuses a key in NDIF's own words."""

    status, detail = 404, "Not Found"

    def _answer(self):
        ndif = type(self).status != 404
        body, status = {"/ping": '"pong"', "/connected": '{"status": "connected"}', "/env": "{}",
                        "/status": '{"deployments": {}}'}.get(self.path), 200  # fmt: skip
        if not ndif or body is None:
            status, body = self.status, json.dumps({"detail": self.detail})
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    do_GET = do_POST = _answer

    def log_message(self, format, *args):
        pass


@pytest.fixture
def stand_in():
    def start(status, detail):
        handler = type("Handler", (Answers,), {"status": status, "detail": detail})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    started: list[ThreadingHTTPServer] = []
    yield start
    for server in started:
        server.shutdown()
        server.server_close()


TRACE = ("trace", "--prompt", "tell me")


@pytest.mark.parametrize(
    ("status", "detail", "reason"),
    [
        (404, "Not Found", "NDIF"),
        (401, "Missing or invalid API key.", "key"),
        (400, f"Invalid API key format: '{CANARY}'.", "key"),
        (403, "Invalid API key.", "key"),
    ],
)
def test_refusals_are_one_line_without_the_key(stand_in, tiny_folder, prompts_file, tmp_path, status, detail, reason):
    words = ("--run", tmp_path, "--model", tiny_folder, "--data", prompts_file, "extract")
    one_line(cli(*words, host=stand_in(status, detail)), reason)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]


def test_servers_that_are_not_there_are_one_line(tmp_path):
    import socket

    one_line(cli("--run", tmp_path, *TRACE, host="http://127.0.0.1:9"), "no NDIF server")
    one_line(cli("--run", tmp_path, *TRACE, host="http://no.such.host.invalid"), "no.such.host.invalid")
    one_line(cli("--run", tmp_path, *TRACE, host="127.0.0.1:9"), "http://")
    with socket.socket() as silent:  # accepts, and stays silent
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        outcome = cli("--run", tmp_path, *TRACE, host=f"http://127.0.0.1:{silent.getsockname()[1]}")
    one_line(outcome, "did not answer")
    assert outcome[2] < 20
