"""This tool and its peers, side by side on the same work: `make bench`.

Each tool is a worker process in its own environment that stays alive between turns. In every turn all ways of doing a
job run one after the other, in another order each time; a ratio is of two ways in one turn, and the figure is the median
over turns: this holds on a noisy machine. Before the first turn each way runs once on a few prompts.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from environments import PEERS, ROOT, UnavailableError, Worker
from rows import NAMES, ROWS, Row, agreement, jobs
from tables import chart_page, markdown
from transformers import AutoTokenizer

from data import load_all
from interventions.model.control_tokens import control_tokens
from interventions.model.embedded import BASE, TUNED, embedded_folder
from interventions.model.prompt_format import render
from interventions.steering.plans import RESPOND

RESULTS = ROOT / "benchmarks" / "results"
LAYER = 17
FEW = 8


def main() -> None:
    options = parsed()
    chosen = [row for row in ROWS if not options.only or row.group in options.only]
    with tempfile.TemporaryDirectory() as folder:
        work = described(options, Path(folder))
        seconds, results, missing = timed(chosen, work, options, Path(folder))
        rows = [line(row, seconds, results, missing) for row in chosen]
    rows += [] if options.only else [memory(options), cold_start(options)]
    found = {
        "when": datetime.now(UTC).date().isoformat(),
        "machine": machine(options),
        "options": said(options),
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "peers.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "peers.md").write_text(markdown(found))
    (options.out / "peers.html").write_text(chart_page(found))
    print(markdown(found))
    print(f"wrote {options.out}/peers.json, .md and .html")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=96, help="of extraction; default 96")
    parser.add_argument("--answers", type=int, default=96, help="prompts of generation; default 96")
    parser.add_argument("--tokens", type=int, default=24, help="new tokens of generation; default 24")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--model", choices=(BASE, TUNED), default=BASE, help=f"of extraction; default {BASE}")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of every worker; default all cores")
    parser.add_argument("--data", default="embedded", help="prompts, by the tool's own names; default embedded")
    parser.add_argument("--data-mirror", type=Path, help="folder with hub data sets under their own names")
    parser.add_argument("--memory-prompts", type=int, default=10_000)
    parser.add_argument(
        "--only", action="append", help=f"a group of rows: {', '.join(dict.fromkeys(r.group for r in ROWS))}"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--cpu-time", action="store_true", help="ratios of processor time: for a machine that is busy")
    return parser.parse_args()


def said(options: argparse.Namespace) -> dict[str, Any]:
    """The options that figures depend on."""
    kept = ("model", "prompts", "answers", "tokens", "turns", "threads", "data", "memory_prompts", "cpu_time")
    return {name: getattr(options, name) for name in kept}


def described(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """The job of each group, for all workers."""
    table = load_all([options.data], options.data_mirror)
    prompts = table.sample(min(options.prompts, table.height), seed=0)["prompt"].to_list()
    models = {"extraction": embedded_folder(options.model), "generation": embedded_folder(TUNED)}
    texts = {}
    for name, many in (("extraction", len(prompts)), ("generation", options.answers)):
        tokenizer = AutoTokenizer.from_pretrained(models[name])
        mine = prompts[:many]
        texts[name] = {"prompts": mine, "rendered": [render(tokenizer, prompt) for prompt in mine]}
    names = [name for name in control_tokens(AutoTokenizer.from_pretrained(models["generation"])) if name != RESPOND]
    extraction = {
        "model": str(models["extraction"]),
        "layer": LAYER,
        "tags": [f"[{name}]" for name in [*names, RESPOND]],
    }
    generation = {
        "model": str(models["generation"]),
        "layer": LAYER,
        "tools": str(folder / "tools.safetensors"),
        "tokens": options.tokens,
        "benign": -30.0,
        "harmful": 20.0,
        "strengths": [-40.0, -30.0, -20.0, -10.0, 10.0, 20.0, 30.0, 40.0],
    }
    return jobs(texts, extraction, generation)


def timed(
    rows: list[Row], work: dict[str, dict[str, Any]], options: argparse.Namespace, folder: Path
) -> tuple[dict[tuple[str, str], list[float]], dict[tuple[str, str], np.ndarray], dict[str, str]]:
    """Seconds of every way in every turn, its results, and why those that are missing are."""
    ways = {
        group: list(dict.fromkeys(w for row in rows if row.group == group for w in (row.mine, row.other)))
        for group in work
    }
    ways = {group: some for group, some in ways.items() if some}
    workers: dict[str, Worker] = {}
    missing: dict[str, str] = {}
    seconds: dict[tuple[str, str], list[float]] = {}
    results: dict[tuple[str, str], np.ndarray] = {}

    def ask(way: str, job: dict[str, Any], save: Path | None = None) -> float | None:
        name, task = way.split(".")
        if way in missing:
            return None
        try:
            if name not in workers:
                workers[name] = Worker(name, options.threads)
            answer = workers[name].ask(task, job, save)
        except UnavailableError as error:
            missing[way] = str(error)
            print(f"{way}: {error}", file=sys.stderr)
            return None
        return answer["cpu" if options.cpu_time else "seconds"]

    if {"gated", "batch", "sweep"} & set(ways):
        ask("ours.making_tools", work["gated"])
    for group, some in ways.items():
        for way in some:
            ask(way, work[group] | {name: work[group][name][:FEW] for name in ("prompts", "rendered")})
    for turn in range(options.turns):
        for group, some in ways.items():
            order = some[turn % len(some) :] + some[: turn % len(some)]
            for way in order if turn % 2 else order[::-1]:
                save = folder / f"{group}.{way}.npy" if turn == 0 else None
                took = ask(way, work[group], save)
                if took is None:
                    continue
                seconds.setdefault((group, way), []).append(took)
                if save is not None:
                    results[group, way] = np.load(save)
                print(f"turn {turn + 1} of {options.turns}: {group}, {way}: {took:.2f} s", file=sys.stderr)
    for worker in workers.values():
        worker.close()
    return seconds, results, missing


def line(
    row: Row,
    seconds: dict[tuple[str, str], list[float]],
    results: dict[tuple[str, str], np.ndarray],
    missing: dict[str, str],
) -> dict[str, Any]:
    """What is written of a row."""
    mine, other = (row.group, row.mine), (row.group, row.other)
    noted = {"work": row.work, "peer": NAMES[row.other], "bound": row.bound, "cost": row.cost}
    for way in (row.mine, row.other):
        if way in missing:
            return noted | {"missing": missing[way]}
    turns = zip(seconds[mine], seconds[other], strict=True)
    ratios = [row.ratio({row.mine: a, row.other: b}) for a, b in turns]
    median = statistics.median(ratios)
    holds = None if row.bound is None else (median <= row.bound if row.cost else median >= row.bound)
    return noted | {
        "seconds": [round(statistics.median(seconds[way]), 3) for way in (mine, other)],
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ratio": round(median, 3),
        "holds": holds,
        "results": agreement(row, results[mine], results[other]) if row.same else "",
    }


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peak resident memory of extracting one layer of many prompts, over that of the bare model's one forward pass."""
    peaks = {}
    for what in ("bare", "ours"):
        words = [sys.executable, Path(__file__).parent / "memory.py", what, str(options.memory_prompts)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(options.threads)}
        done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
        peaks[what] = int(done.stdout)
    over = peaks["ours"] - peaks["bare"]
    return {
        "work": f"peak memory, {options.memory_prompts:,} prompts, one layer",
        "peer": "the bare model's, in MB over it",
        "bound": 300,
        "cost": True,
        "ratio": over,
        "ratios": [over],
        "seconds": None,
        "holds": over <= 300,
        "results": f"{peaks['ours']} MB, bare {peaks['bare']} MB",
        "unit": "MB",
    }


def cold_start(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of `cli.py --help`."""
    took = []
    for _ in range(max(options.turns, 5)):
        start = time.perf_counter()
        subprocess.run([sys.executable, ROOT / "cli.py", "--help"], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        took.append(round(time.perf_counter() - start, 3))
    median = statistics.median(took)
    return {
        "work": "`python cli.py --help`",
        "peer": "in seconds",
        "bound": 0.4,
        "cost": True,
        "ratio": median,
        "ratios": took,
        "seconds": None,
        "holds": median <= 0.4,
        "results": "",
        "unit": "s",
    }


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures were measured on."""
    names = [row.split(":", 1)[1].strip() for row in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in row] \
        if Path("/proc/cpuinfo").exists() else [platform.processor()]  # fmt: skip
    ours = {name: version(name) for name in ("torch", "transformers", "nnsight")}
    return {
        "cpu": names[0] if names else "",
        "cores": os.cpu_count(),
        "threads": options.threads,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": ours | dict(need.split("==") for peer in PEERS.values() for need in peer.needs),
        "load": [round(load, 1) for load in os.getloadavg()],
    }


if __name__ == "__main__":
    main()
