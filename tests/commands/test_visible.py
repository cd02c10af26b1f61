"""Nothing that data, a model or a server says steers the terminal that it is shown on."""

import json
import logging

import polars as pl
import pytest

from commands.framework.output import as_text, emit, warn
from data.store.progress import Watch
from data.visible import VisibleFormatter, visible, visible_json
from tests.made.prompts import split_prompts

ESCAPES = "w\x1b]0;pwned\x07\x9b31m\u202e"
STEERING = set("\x1b\x07\x9b\u202e")


def as_written(text: str) -> bool:
    return not STEERING & set(text) and "pwned" in text


@pytest.fixture
def rows(tmp_path):
    """Prompts with a category that sets a terminal's title, and prompts that do."""
    path = split_prompts(tmp_path / "rows.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["category"] = {"weapons": ESCAPES}.get(line["category"], line["category"])
        line["prompt"] += ESCAPES
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["people", "scripts"])
def test_a_category_and_a_prompt_with_escapes(run, rows, tiny_folder, tmp_path, form, monkeypatch):
    monkeypatch.setattr("click._compat.should_strip_ansi", lambda *_: False)  # as on a terminal
    words = ["--run", tmp_path / "run", "--model", tiny_folder, "--data", rows, *form]
    steps = ["extract", "--show-prompt", "vectors", "probe", "trace", "--limit", 4, "--max-new-tokens", 2]
    code, out, err = run(*words, *steps, "generate", "--max-new-tokens", 2, "evaluate", "report", "--no-auto")
    assert code == 0, err
    assert as_written(out) and not STEERING & set(err)
    if form:
        assert any(ESCAPES in row["category"] for line in out.splitlines() for row in json.loads(line).get("table", ())
                   if "category" in row)  # fmt: skip


def test_errors_and_refusals_with_escapes(run, rows, tiny_folder, tmp_path):
    words = ["--run", tmp_path / "run", "--model", tiny_folder, "--data", rows, "extract", "vectors"]
    code, _, err = run(*words, "trace", "--category", "none", "--prompt", "tell me")
    assert code == 1 and as_written(err) and "no vector for category" in err


def test_everything_that_writes_shows(capsys):
    table = pl.DataFrame({ESCAPES: [ESCAPES], visible(ESCAPES): ["another"]})
    emit("vectors", {"table": table, "categories": [ESCAPES], "wrote": ESCAPES}, as_json=False)
    warn(ESCAPES)
    for watch in (Watch(), Watch(as_json=True)):
        watch.say(ESCAPES)
        watch("a job", "RETRY", ESCAPES)
    record = logging.LogRecord("data", logging.WARNING, "", 1, "%s", (ESCAPES,), None)
    shown = [*capsys.readouterr(), VisibleFormatter().format(record), as_text(table)]
    assert all(map(as_written, shown))


def test_json_reads_back_as_it_was():
    value = {"text": "".join(map(chr, range(0x2100))), "odd": "\U000e0041"}
    assert json.loads(visible_json(value)) == value
