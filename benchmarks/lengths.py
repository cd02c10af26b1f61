"""Refusal against answer length, on a random draw of the embedded test split; and what scoring five lengths costs beside one.

All by the command line, of one generation: `generate --max-new-tokens 256 evaluate --lengths 16,32,64,128,256 report`. `--limit` would
take the first prompts, so the draw is a file of its own beside RUN. What scoring takes is timed in copies of the run, in turns.
Run: .venv/bin/python benchmarks/lengths.py RUN [--prompts N] [--seed N]
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import polars as pl

from data.prompts.sample import read

LENGTHS = (16, 32, 64, 128, 256)
ARMS = ("baseline", "fixed", "gated", "routed")
TURNS = 3


def draw(path: Path, prompts: int, seed: int) -> None:
    """Prompts of the embedded test split, with their themes; no answers that the model was taught."""
    rows = read("embedded").filter(split="test").drop("response", "dataset", strict=False)
    rows.sample(prompts, seed=seed).write_ndjson(path)


def seconds(run: Path, *words: str) -> float:
    """Processor time that a command takes, its start included: other work beside it changes little of that."""
    before = os.times()
    subprocess.run([sys.executable, "cli.py", "--run", str(run), *words], check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def scoring(run: Path, *lengths: str) -> float:
    """What `evaluate` takes in a copy of a run."""
    with tempfile.TemporaryDirectory() as folder:
        return seconds(Path(shutil.copytree(run, Path(folder, "run"))), "evaluate", *lengths)


def main() -> None:
    parser = argparse.ArgumentParser(description="Refusal against answer length.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    drawn, lengths = asked.run.with_suffix(".jsonl"), ("--lengths", ",".join(map(str, LENGTHS)))
    drawn.parent.mkdir(parents=True, exist_ok=True)
    draw(drawn, asked.prompts, asked.seed)
    made = seconds(asked.run, "extract", "--limit", "300", "vectors", "probe")
    arms = [word for arm in ARMS for word in ("--arm", arm)]
    answered = seconds(
        asked.run,
        "--batch-tokens",
        "8192",
        "generate",
        "--data",
        str(drawn),
        "--max-new-tokens",
        str(max(LENGTHS)),
        *arms,
    )
    taken = [(scoring(asked.run), scoring(asked.run, *lengths)) for _ in range(TURNS)]
    one, five = (statistics.median(times) for times in zip(*taken, strict=True))
    seconds(asked.run, "evaluate", *lengths, "report")
    table = pl.read_parquet(asked.run / "lengths.parquet").filter(
        ~pl.col("dataset").str.starts_with("(")
    )  # of sets, not of all together
    share = [pl.col(name) * 100 for name in ("rate", "low", "high", "step", "step_low", "step_high")]
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=200, float_precision=1):
        print(table.select("scorer", "label", "arm", "tokens", "n", "n_cut", "broken", *share))
    print(f"processor time: vectors and probe {made:.0f} s, generate {answered:.0f} s; evaluate {one:.2f} s, with five lengths {five:.2f} s: "
          f"{100 * (five - one) / (answered + one):.1f} % of generate and evaluate")  # fmt: skip


if __name__ == "__main__":
    main()
