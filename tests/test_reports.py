"""The page."""

import json
import re

import polars as pl
import pytest

from interventions.generation import SCHEMA as GENERATIONS
from reports.page import as_json, escape, write_report
from reports.scoring import score
from reports.statistics import summarise


def answers(text_by_arm, rows=20):
    table = [
        {
            "dataset": "d", "id": str(at), "category": "c", "label": "harmful" if at % 2 else "benign", "prompt": f"prompt {at}",
            "arm": arm, "kind": arm, "response": texts[at % len(texts)], "new_tokens": 3, "finish": "stop",
            "model": "m", "backend": "local", "seed": 0,
        }
        for arm, texts in text_by_arm.items()
        for at in range(rows)
    ]  # fmt: skip
    return pl.DataFrame(table, schema=GENERATIONS)


HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\u202e\u0000&amp;\u2028"


def test_nothing_that_text_holds_becomes_markup():
    shown = escape(HOSTILE)
    assert "<" not in shown and "'" not in shown and "\u202e" not in shown and "\x00" not in shown
    assert len(escape("x" * 1_000_000)) < 3000
    packed = as_json({"a": HOSTILE})
    assert "<" not in packed and "\u2028" not in packed and json.loads(packed) == {"a": HOSTILE}


def hostile_run(folder):
    table = answers({"baseline": [HOSTILE], "fixed": [HOSTILE]}).with_columns(
        pl.lit(HOSTILE).alias("prompt"), pl.lit(HOSTILE).alias("dataset"), pl.lit(HOSTILE).alias("category")
    )
    table.write_parquet(folder / "generations.parquet")
    scores = score(table, set())
    scores.write_parquet(folder / "scores.parquet")
    summarise(scores).write_parquet(folder / "summary.parquet")


def test_the_page_is_one_file_with_no_foreign_markup(tmp_path):
    hostile_run(tmp_path)
    write_report(tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<img" not in without_scripts(page) and "window.hacked=1</script>" not in page
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=", without_scripts(page))
    assert "<script src" not in page


def without_scripts(page):
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def chromium(page):
    import shutil
    import subprocess
    import tempfile

    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if binary is None:
        pytest.skip("no Chromium on this machine")
    with tempfile.TemporaryDirectory() as profile:
        command = [binary, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        command += [f"--user-data-dir={profile}", "--virtual-time-budget=15000", "--dump-dom", page.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.browser
def test_charts_are_drawn_and_hostile_text_runs_nothing(tmp_path):
    hostile_run(tmp_path)
    write_report(tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    probe = "<script>document.title = 'hacked ' + (window.hacked === 1)</script>"
    assert "script-src" in page and probe not in page
    dom = chromium(tmp_path / "report.html")
    figures = re.findall(r"<figure[^>]*>(.*?)</figure>", dom, flags=re.DOTALL)
    assert figures and all("<svg" in figure for figure in figures), dom[-2000:]
    assert "could not be drawn" not in without_scripts(dom) and "<img" not in without_scripts(dom)
