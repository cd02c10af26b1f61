"""Runs long enough to be broken off, and the key that must not show."""

import pytest
from nnsight.modeling.huggingface import _ID_CACHE

from data import load_all
from interventions.backends.ndif import request as jobs
from interventions.reading.extract import extract
from tests.made.prompts import benign_prompts
from tests.ndif.client import CANARY


@pytest.fixture
def canary(monkeypatch):
    """A key that is recognised wherever it shows."""
    monkeypatch.setenv("NDIF_API_KEY", CANARY)
    monkeypatch.setenv("REFUSAL_HOLDOUT", "none")  # as the library's extract, which is compared with, has no splits


@pytest.fixture(scope="session")
def many(tmp_path_factory):
    """Prompts that a tiny model needs a few hundred batches for."""
    return benign_prompts(tmp_path_factory.mktemp("many") / "many.jsonl", 700)


@pytest.fixture(scope="session")
def work(many, tiny_tuned_folder):
    """A run of some hundred batches, in tens of jobs."""
    return ["--model", tiny_tuned_folder, "--data", many, "--batch-tokens", 24, "--in-flight", 3, "extract"]


@pytest.fixture(scope="session")
def undisturbed(many, tiny_tuned, tmp_path_factory):
    """What `work` makes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    extract(tiny_tuned, load_all([str(many)]), folder, batch_tokens=24)
    return folder


@pytest.fixture
def fast(monkeypatch, tiny_folder, canary):
    """Waits between tries that a test can take."""
    monkeypatch.setitem(_ID_CACHE, str(tiny_folder), str(tiny_folder))
    monkeypatch.setattr(jobs, "RETRY_WAIT", 0.01)
    monkeypatch.setattr(jobs, "FIRST_WAIT", 0.01)
