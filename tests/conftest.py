"""Fixtures: made-up models, the embedded one, prompts for them, the command line, and one NDIF server for the whole run."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.made.models import CONTROL, make_tiny
from tests.made.prompts import mixed_prompts
from tests.ndif.server import CannotRunError, Server

# As the command line does, before anything imports the hub's client.
os.environ.setdefault("HF_HUB_VERBOSITY", "critical")
settings.register_profile("anywhere", deadline=None)  # a busy machine is no failure
settings.load_profile("anywhere")


def pytest_report_header() -> str:
    """Which families this run takes."""
    from tests.made.models_page import third

    return third()[0]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model without refusal tokens."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_tuned_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with refusal tokens for the two categories of `prompts_file`."""
    return make_tiny(tmp_path_factory.mktemp("tuned"), CONTROL)


@pytest.fixture(scope="session")
def tiny_base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `tiny_tuned` might have been tuned from: free slots where it has refusal tokens, other weights."""
    return make_tiny(tmp_path_factory.mktemp("base"), ("<slot0>", "<slot1>", "<slot2>"), seed=1)


@pytest.fixture(scope="session")
def tiny_tuned(tiny_tuned_folder: Path):
    from interventions import open_model

    return open_model(str(tiny_tuned_folder))


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path):
    from interventions import open_model

    return open_model(str(tiny_folder))


@pytest.fixture(scope="session")
def embedded():
    from interventions import open_model

    return open_model("smollm2")


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty prompts of mixed lengths in two categories and benign, without splits."""
    return mixed_prompts(tmp_path_factory.mktemp("data") / "mine.jsonl")


@pytest.fixture(scope="session")
def ndif() -> Iterator[Server]:
    """A real NDIF server on this machine: one for the whole run. Who breaks it takes `breakable`."""
    yield from _server(sandbox=False)


@pytest.fixture(scope="session")
def ndif_sandbox() -> Iterator[Server]:
    """Another, to which every key is an ordinary one."""
    yield from _server(sandbox=True)


def _server(*, sandbox: bool) -> Iterator[Server]:
    state = Path(tempfile.mkdtemp(prefix="nt-", dir="/tmp"))
    server = Server(state)
    try:
        server.up(sandbox=sandbox)
    except CannotRunError as reason:
        shutil.rmtree(state)
        pytest.skip(str(reason))
    yield server
    server.down()
    shutil.rmtree(state, ignore_errors=True)


@pytest.fixture
def breakable(ndif: Server) -> Iterator[Server]:
    """The same server, whole again afterwards, even if the test failed halfway."""
    yield ndif
    ndif.mend()


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process: (exit status, stdout, stderr)."""

    import cli

    def call(*words, **environment):
        monkeypatch.setattr(sys, "argv", ["cli.py", *map(str, words)])
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out = capsys.readouterr()
        for name in environment:
            monkeypatch.delenv(name)
        return stop.value.code, out.out, out.err

    return call
