"""The example notebook runs from top to bottom, and keeps no large outputs."""

import ast
import importlib
import json
import os
import subprocess
import sys

import pytest

from tests import ROOT

NOTEBOOK = ROOT / "examples" / "steering.ipynb"


def cells():
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_small_and_shows_no_path_of_anybodys_machine():
    text = NOTEBOOK.read_text()
    assert len(text) < 120_000
    outputs = json.dumps([cell["outputs"] for cell in cells()])
    assert not any(place in outputs for place in ("/tmp/", "/home/", "/root/", str(ROOT)))


def test_what_the_notebook_imports_is_there():
    """Without running it: a name that moved shows at once, not in the slow suite."""
    nodes = [node for cell in cells() for node in ast.walk(ast.parse("".join(cell["source"])))]
    asked = [
        (node.module, alias.name)
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    ]
    assert asked
    assert [name for module, name in asked if not hasattr(importlib.import_module(module), name)] == []


def shown(source):
    """A cell as a script's lines: what a notebook would display is turned into text or a picture all the same."""
    body = ast.parse(source)
    last = body.body[-1] if body.body else None
    if isinstance(last, ast.Expr):
        body.body[-1] = ast.Expr(ast.Call(ast.Name("display", ast.Load()), [last.value], []))
    return ast.unparse(ast.fix_missing_locations(body))


DISPLAY = """
def display(value):
    bundle = getattr(value, "_repr_mimebundle_", None)
    print(*(bundle()[0] if bundle else [value]))
"""


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    script = tmp_path / "cells.py"  # a file: nnsight reads the source of what it traces
    script.write_text("\n\n".join([DISPLAY, *(shown("".join(cell["source"])) for cell in cells())]))
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "refusal-smollm2: 30 layers" in done.stdout and done.stdout.rstrip().endswith("image/png")
