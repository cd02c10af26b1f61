"""Candidates of a tiny model that are compared on a few prompts."""

import pytest

from data import load_all
from tests.made.tools import candidates_of


@pytest.fixture(scope="module")
def prompts(prompts_file):
    return load_all([str(prompts_file)])


@pytest.fixture(scope="module")
def tried(tiny_tuned):
    return candidates_of(tiny_tuned)
