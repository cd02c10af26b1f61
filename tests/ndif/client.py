"""Ways to an NDIF server, the command line in a process of its own, and what is held against its end."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nnsight
import torch

from interventions.backends.backend import Backend, open_backend
from interventions.backends.ndif.client import Client
from interventions.backends.ndif.request import Request
from tests import ROOT
from tests.ndif.server import Server

CANARY = "0f5c1d3e-4b7a-4e21-9c5a-ca4a57ca4a57"  # a key, which must show nowhere
SECONDS = 300  # for what should end well, on a machine that does other things too


def command(*words: object, host: str) -> list[str]:
    """The command line that runs on the server at `host`."""
    return [sys.executable, str(ROOT / "cli.py"), "--remote", "--host", host, *map(str, words)]


def doors(server: Server) -> dict[str, str | Backend]:
    """What `remote` may be to give the same as here: the server, and its simulation in this process."""
    return {"remote": open_backend("remote", server.url, timeout=SECONDS), "simulate": "local"}


def errors(text: str) -> list[str]:
    """Lines of stderr that are errors."""
    return [line for line in text.replace("\r", "\n").splitlines() if line.startswith("error")]


def one_line(outcome: tuple[int, str, str], reason: str) -> None:
    """The command failed, and said why in a line without the key."""
    code, out, err = outcome
    assert code == 1 and len(errors(err)) == 1 and reason in errors(err)[0], outcome
    assert CANARY not in out + err


def begun(words: list[str], run_dir: Path, ids: int = 1) -> subprocess.Popen[str]:
    """A run with so many jobs sent; a server too busy to answer a ping is asked again."""
    deadline = time.monotonic() + SECONDS
    while True:
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        while time.monotonic() < deadline and process.poll() is None:
            if sent(run_dir) >= ids:
                return process
            time.sleep(0.02)
        told = process.communicate(timeout=5)[1]
        if "did not answer" not in told or time.monotonic() > deadline:
            raise AssertionError(told)


def sent(run_dir: Path) -> int:
    """How often a job's id was journalled."""
    journals = list(run_dir.rglob(".*.journal"))
    return sum(journal.read_text().count('"id": "') for journal in journals if journal.exists())


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


def ask(model: Any, line: Client, known: Any = None, note: Callable[[Any], None] = lambda _: None) -> Any:
    """One trace as a job; what it saved."""
    network, block = model.nnsight, model.layers[0]
    with (
        torch.no_grad(),
        network.trace(
            {"input_ids": torch.ones(1, 2, dtype=torch.long)}, backend=Request(network, line, "it", known, note)
        ) as tracer,
    ):
        seen = nnsight.save(block.output.sum())
        tracer.stop()
    return seen
