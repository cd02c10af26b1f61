"""Servers that are none or aren't there, and what is said of servers and of jobs."""

import json
import socket
import time
import traceback
from dataclasses import replace

import pytest

from data import UserError
from data.store.journal import Journal
from data.store.progress import Watch
from interventions.backends.backend import Backend
from interventions.backends.ndif.client import Client
from tests.faults.ndif import standing_in
from tests.ndif.client import CANARY, one_line

pytestmark = pytest.mark.usefixtures("canary")


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
