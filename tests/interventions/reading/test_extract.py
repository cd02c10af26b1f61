"""Activations are those that a plain hook reads, however they are batched, wherever a run was killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from data import load_all
from data.store.activations import Activations, Position
from interventions import extract
from interventions.model.prompt_format import encode
from interventions.reading.batches import pad_batch, plan_batches
from tests.made.models import make_windowed
from tests.oracles import close, hooked


@pytest.mark.parametrize("batch_tokens", [1, 40, 100_000])
def test_last_token_equals_a_plain_hook(tiny, prompts_file, tmp_path, batch_tokens):
    prompts = load_all([str(prompts_file)])
    path = extract(tiny, prompts, tmp_path, batch_tokens=batch_tokens)
    got = load_file(path)["activations"]
    encoded = encode(tiny.tokenizer, prompts["prompt"].to_list())
    assert got.shape == (40, 4, 32) and got.dtype == torch.float32
    for row, ids in enumerate(encoded.ids):
        assert close(got[row], hooked(tiny, ids, range(4))[:, -1])


def test_mean_equals_a_plain_mean_over_the_users_tokens(tiny, prompts_file, tmp_path):
    prompts = load_all([str(prompts_file)])
    got = load_file(extract(tiny, prompts, tmp_path, position="mean", layers=[1, 3]))["activations"]
    for row, text in enumerate(prompts["prompt"]):
        ids = tiny.tokenizer(f"<bos><user>{text}<bot>", add_special_tokens=False)["input_ids"]
        assert close(got[row], hooked(tiny, ids, [1, 3])[:, 2:-1].mean(1))


def test_several_positions_are_read_in_one_pass_a_row_each(tiny, prompts_file, tmp_path):
    prompts = load_all([str(prompts_file)])
    path = extract(tiny, prompts, tmp_path, position="mean+last+instruction", layers=[1, 3], batch_tokens=60)
    rows, got = pl.read_parquet(path.with_suffix(".parquet")), load_file(path)["activations"]
    assert rows["position"].to_list() == ["mean", "last", "instruction"] * prompts.height
    of = {
        name: Position(Activations.open(path), at, 3, [1, 3]) for at, name in enumerate(("mean", "last", "instruction"))
    }
    for row, text in enumerate(prompts["prompt"]):
        ids = tiny.tokenizer(f"<bos><user>{text}<bot>", add_special_tokens=False)["input_ids"]
        stream = hooked(tiny, ids, [1, 3])
        wanted = {"mean": stream[:, 2:-1].mean(1), "last": stream[:, -1], "instruction": stream[:, -2]}
        for at, (name, value) in enumerate(wanted.items()):
            assert close(got[3 * row + at], value) and rows["n_tokens"][3 * row + at] == len(ids)
            assert close(torch.from_numpy(of[name].layer(3, [row])[0]), value[1])


def test_suffixes_give_adjacent_rows_read_at_the_suffix(tiny, prompts_file, tmp_path):
    prompts = load_all([str(prompts_file)]).head(5)
    path = extract(tiny, prompts, tmp_path, position="suffix", suffixes=["poem", "the friend"])
    rows, got = pl.read_parquet(path.with_suffix(".parquet")), load_file(path)["activations"]
    assert path.name == "pairs.safetensors" and rows["suffix"].to_list() == ["poem", "the friend"] * 5
    for row, (text, suffix) in enumerate(zip(rows["prompt"], rows["suffix"], strict=True)):
        ids = tiny.tokenizer(f"<bos><user>{text}<bot>{suffix}", add_special_tokens=False)["input_ids"]
        assert rows["n_tokens"][row] == len(ids)
        assert close(got[row], hooked(tiny, ids, range(4))[:, -1])


@pytest.fixture(scope="module")
def windowed(tiny_folder, tmp_path_factory):
    from interventions import open_model

    return open_model(str(make_windowed(tiny_folder, tmp_path_factory.mktemp("mistral"))))


@pytest.mark.parametrize("batch_tokens", [1, 100_000])
def test_suffixes_of_a_model_that_sees_a_window_are_rows_of_their_own(windowed, prompts_file, tmp_path, batch_tokens):
    assert not windowed.takes_masks
    prompts, suffixes = load_all([str(prompts_file)]).head(6), ["poem", "the friend", "me"]
    path = extract(windowed, prompts, tmp_path, position="suffix", suffixes=suffixes, batch_tokens=batch_tokens)
    rows, got = pl.read_parquet(path.with_suffix(".parquet")), load_file(path)["activations"]
    assert got.shape == (18, 4, 32) and rows.height == 18
    for row, (text, suffix) in enumerate(zip(rows["prompt"], rows["suffix"], strict=True)):
        ids = windowed.tokenizer(f"<bos><user>{text}<bot>{suffix}", add_special_tokens=False)["input_ids"]
        assert close(got[row], hooked(windowed, ids, range(4))[:, -1])


def test_embedded_model_equals_a_plain_hook_and_hidden_states(embedded, tmp_path):
    prompts = load_all(["embedded"]).head(24)
    got = load_file(extract(embedded, prompts, tmp_path, layers=[0, 17, 29], batch_tokens=400))["activations"]
    for row, ids in enumerate(encode(embedded.tokenizer, prompts["prompt"].to_list()).ids):
        assert close(got[row], hooked(embedded, ids, [0, 17, 29])[:, -1])
        with torch.no_grad():
            states = embedded.module(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        assert close(got[row, 1], states[18][0, -1])


def test_a_template_gives_exactly_one_bos(tiny):
    (ids,) = encode(tiny.tokenizer, ["tell me"]).ids
    assert ids.count(tiny.tokenizer.bos_token_id) == 1 and ids[0] == tiny.tokenizer.bos_token_id


@given(st.lists(st.integers(1, 50), min_size=1, max_size=80), st.integers(1, 300))
def test_a_plan_holds_every_row_once_within_its_budget(lengths, budget):
    plan = plan_batches(lengths, budget)
    assert sorted(row for batch in plan for row in batch) == list(range(len(lengths)))
    for batch in plan:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget


@given(st.lists(st.lists(st.integers(3, 9), min_size=1, max_size=9), min_size=1, max_size=6))
def test_padding_stands_left_and_positions_count_real_tokens(rows):
    batch = pad_batch(rows, 0)
    for at, row in enumerate(rows):
        real = batch["attention_mask"][at].bool()
        assert batch["input_ids"][at][real].tolist() == row
        assert batch["position_ids"][at][real].tolist() == list(range(len(row)))
        assert bool(real[-1])


def start(tiny_folder: Path, prompts_file: Path, run: Path) -> subprocess.Popen:
    command = [sys.executable, "cli.py", "--run", str(run), "--model", str(tiny_folder), "--batch-tokens", "1"]
    command += ["extract", "--data", str(prompts_file)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def same(a: Path, b: Path) -> bool:
    with safe_open(a, "pt") as one, safe_open(b, "pt") as other:
        equal = torch.equal(one.get_tensor("activations"), other.get_tensor("activations"))
        return equal and one.metadata() == other.metadata()


def test_a_killed_run_goes_on_and_ends_the_same(tiny_folder, tmp_path):
    rows = [{"prompt": "how do i kill " * (at % 7 + 1), "label": "benign"} for at in range(400)]
    many = tmp_path / "many.jsonl"
    many.write_text("\n".join(map(json.dumps, rows)))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(tiny_folder, many, whole).wait(120) == 0
    journal = killed / "activations" / ".prompts.journal"
    final = killed / "activations" / "prompts.safetensors"
    deaths = 0
    while not final.exists():
        process = start(tiny_folder, many, killed)
        before = len(journal.read_bytes().splitlines()) if journal.exists() else 0
        while process.poll() is None and deaths < 3:
            if journal.exists() and len(journal.read_bytes().splitlines()) >= before + 30:
                os.kill(process.pid, signal.SIGKILL)
                deaths += 1
                break
            time.sleep(0.01)
        process.communicate(timeout=120)
    assert deaths == 3
    assert same(whole / "activations" / "prompts.safetensors", final)
    assert not journal.exists()


def test_a_file_of_other_values_is_never_taken_up(tiny, prompts_file, tmp_path, monkeypatch):
    """Killed half way at one position; then killed again, at another, before that one's file is begun."""
    from data.store.journal import Journal
    from interventions.reading import extract as extraction

    prompts, finish = load_all([str(prompts_file)]), Journal.finish

    def dies(*_args):
        raise KeyboardInterrupt

    def dies_late(journal, noted):
        finish(journal, noted)
        if len(journal.done) > 5:
            raise KeyboardInterrupt

    for target, name, death, position in (
        (Journal, "finish", dies_late, "mean"),
        (extraction, "_begin", dies, "last"),
    ):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(target, name, death)
            extract(tiny, prompts, tmp_path / "killed", position=position, batch_tokens=1)
    paths = [extract(tiny, prompts, tmp_path / name, batch_tokens=1) for name in ("killed", "whole")]
    assert same(*paths)
    with safe_open(paths[0], "pt") as file:
        assert file.metadata()["position"] == "last"


def test_control_c_says_how_to_go_on(tiny_folder, tmp_path):
    many = tmp_path / "many.jsonl"
    many.write_text("\n".join(json.dumps({"prompt": "tell me " * 9, "label": "benign"}) for _ in range(3000)))
    process = start(tiny_folder, many, tmp_path / "run")
    journal = tmp_path / "run" / "activations" / ".prompts.journal"
    while not journal.exists():
        time.sleep(0.02)
        assert process.poll() is None
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "run the same command again" in errors.splitlines()[-1]


def test_a_second_writer_is_told_who_writes(tiny_folder, prompts_file, tmp_path):
    from data.store.rundir import writing

    with writing(tmp_path):
        process = start(tiny_folder, prompts_file, tmp_path)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and f"pid {os.getpid()}" in errors
