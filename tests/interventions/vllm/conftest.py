"""Engines of tiny models: one in this process, and what runs in processes of its own."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from interventions import open_model
from interventions.backends.backend import Backend, VLLMOptions
from tests.made.models import CONTROL, make_tiny

ROOT = Path(__file__).parents[3]
THERE = importlib.util.find_spec("vllm") is not None


def pytest_collection_modifyitems(items):
    """What needs vLLM is skipped where it isn't."""
    for item in items:
        if item.get_closest_marker("vllm") and not THERE:
            item.add_marker(pytest.mark.skip(reason="vLLM is not installed here: make vllm"))


@pytest.fixture(scope="session")
def tiny_tuned_folder(tmp_path_factory):
    """As everywhere, with heads that vLLM's attention on a CPU takes."""
    return make_tiny(tmp_path_factory.mktemp("tuned"), CONTROL, head=32)


@pytest.fixture(scope="session")
def tiny_tuned(tiny_tuned_folder):
    return open_model(str(tiny_tuned_folder))


@pytest.fixture(scope="session")
def in_vllm(tiny_tuned_folder):
    """The tiny tuned model in an engine of this process; there can be one."""
    return open_model(str(tiny_tuned_folder), remote=Backend(vllm=VLLMOptions(requests=32)))


@pytest.fixture
def command(tmp_path):
    """The tool, in a process of its own: (exit code, stdout, stderr)."""

    def run(*words, environment=None, seconds=300):
        import os

        done = subprocess.run(
            [sys.executable, str(ROOT / "cli.py"), *map(str, words)], capture_output=True, text=True, cwd=tmp_path, timeout=seconds, check=False,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | (environment or {}),
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    return run
