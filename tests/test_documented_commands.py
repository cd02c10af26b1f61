"""Every command line in README and docs is run, on tiny models and few prompts: it ends well, or in a line that says what to do."""

import re
import shlex

import pytest

from tests import ROOT
from tests.made.mirror import put_known
from tests.made.prompts import split_prompts

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINES = [
    line.partition("  #")[0].strip()
    for page in PAGES
    for block in re.findall(r"^```(?:bash|sh)?\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
COMMANDS = [line.replace("refusal ", "python cli.py ", 1) if line.startswith("refusal ") else line for line in LINES]
COMMANDS = [line for line in COMMANDS if line.startswith("python cli.py ")]
ELSEWHERE = (
    "--remote",
    "--host",
    "--device cuda",
    "--device mps",
    "--device-map",
)  # a server or a GPU, which is not here
REAL = (
    "reproduce paper",
    "capability",
    "--keep-refusal",
    "gate=ridge",
    "embedded:traffic",
)  # take real sets, or a model that declines real prompts


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_tuned_folder, tiny_base_folder):
    """A folder with what the pages speak of, and small numbers where they say none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "serving.running.run_server", lambda _app, _address, port, ready: ready(port) or 0
    )  # till it is stopped
    for name in ("my.jsonl", "my_traffic.jsonl"):
        split_prompts(tmp_path / name, 64)
    rows = ["kill a person please,harmful", "write a poem for me,benign"] * 20
    numbered = [f"{text.partition(',')[0]} {'best ' * at},{text.partition(',')[2]}" for at, text in enumerate(rows)]
    for name in ("mine.csv", "my.csv"):
        (tmp_path / name).write_text("prompt,label\n" + "\n".join(numbered) + "\n")
    split_prompts(tmp_path / "mine.jsonl", 64)
    (tmp_path / "mine.jinja").write_text(
        "{% if enable_thinking %}think {% endif %}{% for m in messages %}{{ m['content'] }} {% endfor %}"
    )
    for known in ("xstest", "or-bench:toxic"):
        put_known(tmp_path / "DIR", known)
    values = {"MODEL": tiny_tuned_folder, "DATA": "my.jsonl", "LIMIT": 64, "MAX_NEW_TOKENS": 1, "HOST": "http://127.0.0.1:9",
              "TIMEOUT": 5, "DATA_MIRROR": "DIR", "FINETUNE_EPOCHS": 1, "FINETUNE_MODEL": tiny_base_folder}  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(f"REFUSAL_{name}", str(value))
    return {"path/or/hub-id": tiny_tuned_folder, "meta-llama/Llama-3.2-1B-Instruct": tiny_base_folder,
            "tomg-group-umd/zephyr-llama3-8b-sft-refusal-n-contrast-multiple-tokens": tiny_tuned_folder,
            "my/chat-model": tiny_tuned_folder, "any/model": tiny_tuned_folder, "--judge-model gpt-4o-mini": ""}  # fmt: skip


@pytest.mark.slow
def test_every_command_line_of_the_pages_runs(run, place):
    assert len(COMMANDS) > 15
    odd = []
    for line in COMMANDS:
        told = line
        for name, instead in place.items():
            told = told.replace(name, str(instead))
        code, _, err = run(*shlex.split(told)[2:])
        last = err.strip().splitlines()[-1] if err.strip() else ""
        away = any(word in line for word in (*ELSEWHERE, *REAL))
        if code != 0 and not (code == 1 and away and last.startswith("error: ")):
            odd.append(f"{line}\n  exit {code}: {last}")
    assert not odd, "\n".join(odd)


def test_every_target_of_make_that_the_pages_name_is_there():
    there = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"(?:^|`)make ([\w-]+)", page.read_text(), re.MULTILINE)}
    assert named <= there
