"""The benchmark for a GPU, on a CPU: it measures, compares, and leaves out what can't be had; no speed is judged."""

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.device.engines import OUR_VLLM, OURS, PLAIN, PLAIN_VLLM
from benchmarks.device.figures import Line, parity, speeds
from benchmarks.device.processes import Took
from benchmarks.gpu import STATES, TOKENS, Bench
from data.errors import UserError
from tests import ROOT

ARMS = {"unsteered", "fixed", "gated, bias"}


def measured(tmp_path: Path, *words: str) -> tuple[dict[str, Any], str]:
    """What the tiny shape gives in float32, and what was printed."""
    out = tmp_path / "gpu.json"
    own = ["--shape", "tiny", "--device", "cpu", "--dtype", "float32", "--new-tokens", "5", "--out", str(out)]
    told = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", *own, *words], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert told.returncode == 0, told.stderr[-2000:]
    return json.loads(out.read_text()), told.stdout


def check(found: dict[str, Any], engines: set[str]) -> None:
    """Are these engines' rows all there, and do they say the same in float32?"""
    rows = {(row["engine"], row["work"], row["arm"]) for row in found["speed"]}
    for engine in engines - {PLAIN, PLAIN_VLLM}:
        assert {(engine, "tokens", arm) for arm in ARMS} | {(engine, "prompts read", "")} <= rows
    assert {engine for engine, _, _ in rows} == engines
    assert all(row["per_second"] > 0 and row["per_cpu_second"] > 0 and row["peak_gb"] > 0 for row in found["speed"])
    for row in found["parity"]:
        assert row["equal_tokens"] > 0.8, row
        assert row["residual"] is None or row["residual"] < 1e-5, row
        assert row["kl_max"] is None or row["kl_max"] < 1e-8, row
        assert row["arm"] == "unsteered" or row["steering_changed"] > 0, row
    with_states = [row for row in found["parity"] if row["residual"] is not None]
    assert all(len(row["residual_by_layer"]) == 4 for row in with_states)
    assert {row["engine"] for row in with_states} == engines - {PLAIN, PLAIN_VLLM}


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is here: the test below has more")
def test_without_vllm_its_rows_are_left_out(tmp_path: Path) -> None:
    found, told = measured(tmp_path, "--prompts", "5", "--rounds", "1")
    check(found, {PLAIN, OURS})
    (left,) = found["left_out"]
    assert left.startswith(f"{OUR_VLLM} and {PLAIN_VLLM}: ") and "make vllm" in left
    assert f"left out: {left}" in told and "tokens: plain transformers, unsteered" in told


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM here: make test-vllm")
def test_both_engines_say_the_same(tmp_path: Path) -> None:
    found, told = measured(tmp_path, "--prompts", "5", "--rounds", "1")
    assert found["left_out"] == []
    check(found, {PLAIN, OURS, PLAIN_VLLM, OUR_VLLM})
    assert {(row["engine"], row["beside"]) for row in found["parity"]} >= {(OUR_VLLM, OURS), (OUR_VLLM, PLAIN_VLLM)}
    assert "left out" not in told


class Fake:
    """An engine in no process: a turn of seconds that are said, or a failure."""

    def __init__(self, seconds: float, fails: str = "") -> None:
        self.seconds, self.fails, self.asked, self.process = seconds, fails, 0, self

    def ask(self, engine: str, work: str, words: Any, keep: bool = False) -> tuple[Took, None]:
        self.asked += 1
        if self.fails:
            raise UserError(self.fails)
        return Took(self.seconds, self.seconds, 1.0), None

    def is_alive(self) -> bool:
        return True

    def close(self) -> None:
        pass


def bench_of(engines: dict[str, Any], seconds: float = 1000.0) -> Bench:
    bench = Bench(time.monotonic() + seconds)
    bench.open |= engines
    bench.found |= dict.fromkeys([*STATES, *TOKENS], np.zeros(0))
    bench.arms |= dict.fromkeys(ARMS, "baseline")
    return bench


def test_ratios_are_of_turns_in_one_round() -> None:
    bench = bench_of({PLAIN: Fake(1.0), OURS: Fake(2.0), PLAIN_VLLM: Fake(0.25), OUR_VLLM: Fake(0.5)})
    bench.rounds(TOKENS, 3)
    rows = {(row["engine"], row["arm"]): row for row in speeds(bench.turns, 10, 4, "cpu")}
    assert rows[OURS, "fixed"]["of_plain"] == rows[OURS, "fixed"]["of_plain_transformers"] == 0.5
    assert (rows[OUR_VLLM, "gated, bias"]["of_plain"], rows[OUR_VLLM, "fixed"]["of_plain_transformers"]) == (0.5, 2.0)
    assert rows[PLAIN_VLLM, "unsteered"]["per_second"] == 160
    assert all(len(row["seconds"]) == 3 for row in rows.values()) and bench.left_out == []


def test_what_fails_is_left_out_and_the_rest_goes_on() -> None:
    bench = bench_of({PLAIN: Fake(1.0), OURS: Fake(1.0, fails="no room")})
    bench.rounds(STATES, 1)
    assert bench.left_out == [f"{OURS}, states: no room"]
    assert [line.engine for line in bench.turns] == [PLAIN]


def test_no_turn_begins_that_would_not_end_in_time() -> None:
    slow = Fake(2000.0)
    bench = bench_of({PLAIN: slow})
    bench.rounds(STATES, 3)
    assert slow.asked == 1
    assert bench.left_out == [f"round 2 of 3 from {PLAIN}, states on: the time is spent"]


def test_parity_is_over_the_prompts_that_both_had() -> None:
    tokens, states = np.array([[1, 2], [3, 4]]), np.ones((2, 3, 4), dtype=np.float32)
    found = {
        Line(PLAIN, "states"): states[:1],
        Line(OURS, "states"): np.concatenate([states[:1] * np.array([1, 1.5, 1])[:, None], states[1:] * 9]),
        Line(PLAIN, "tokens", "unsteered"): tokens[:1],
        Line(OURS, "tokens", "unsteered"): np.array([[1, 5], [9, 9]]),
    }
    (row,) = parity(found, "float32")
    assert (row["equal_tokens"], row["equal_first"], row["residual_by_layer"]) == (0.5, 1.0, [0.0, 0.5, 0.0])
