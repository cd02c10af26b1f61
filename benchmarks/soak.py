"""Many prompts through extract, vectors, generate, evaluate and report, killed over and over: is the end the same, and the memory flat?

    python benchmarks/soak.py FOLDER [--rows 20000] [--few 2000] [--kills 20]

A tiny random model; FOLDER gets three run directories. Says whether the killed run equals the undisturbed one, and the peak memory
of each command with many prompts over that with few. Exit 1 if they differ or memory grew by more than a fifth.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.faults.suite import differing
from tests.made.models import CONTROL, make_tiny
from tests.made.prompts import split_prompts

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "extract": ["extract"],
    "vectors": ["vectors"],
    "generate": ["generate", "--max-new-tokens", "4", "--arm", "baseline", "--arm", "fixed"],
    "evaluate": ["evaluate"],
    "report": ["report"],
}
GROWN = 1.2


def begin(folder: Path, place: Path, rows: Path, words: list[str]) -> subprocess.Popen[bytes]:
    """A command under way."""
    own = ["--run", folder, "--model", place / "model", "--data", rows, "--no-auto"]
    return subprocess.Popen(
        [sys.executable, "cli.py", *map(str, own), *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def finished(process: subprocess.Popen[bytes]) -> int:
    """Wait for it; its peak memory in MB.

    Raises:
        SystemExit: It failed.
    """
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{process.args}: exit {process.returncode}")
    return usage.ru_maxrss >> 10


def undisturbed(folder: Path, place: Path, rows: Path) -> dict[str, tuple[int, float]]:
    """Peak memory in MB and seconds of every command."""
    found = {}
    for name, words in COMMANDS.items():
        start = time.monotonic()
        found[name] = finished(begin(folder, place, rows, words)), time.monotonic() - start
    return found


def killed(folder: Path, place: Path, rows: Path, seconds: dict[str, float], kills: int) -> int:
    """The same, killed so often at random moments; how often it was."""
    random_, count, total = random.Random(0), 0, sum(seconds.values())
    for name, words in COMMANDS.items():
        for _ in range(max(1, round(kills * seconds[name] / total))):
            process = begin(folder, place, rows, words)
            try:
                process.wait(random_.uniform(2.0, max(3.0, seconds[name] / 2)))
            except subprocess.TimeoutExpired:
                process.send_signal(random_.choice((signal.SIGKILL, signal.SIGTERM)))
                process.wait()
                count += 1
        finished(begin(folder, place, rows, words))
    return count


def main() -> int:
    """Make what is run on, run it three times, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, default in (("rows", 20_000), ("few", 2_000), ("kills", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    place = asked.folder
    place.mkdir(parents=True)
    make_tiny(place / "model", CONTROL)
    many, few = split_prompts(place / "many.jsonl", asked.rows), split_prompts(place / "few.jsonl", asked.few)
    small = undisturbed(place / "small", place, few)
    whole = undisturbed(place / "whole", place, many)
    count = killed(place / "killed", place, many, {name: seconds for name, (_, seconds) in whole.items()}, asked.kills)
    odd = differing(place / "whole", place / "killed")
    print(f"{asked.rows:,} prompts, killed {count} times:", "; ".join(odd) or "equal to the undisturbed run")
    print(f"{'':10}{asked.few:>10,}{asked.rows:>10,}  MB, at most")
    for name, (most, seconds) in whole.items():
        print(f"{name:10}{small[name][0]:>10}{most:>10}  × {most / small[name][0]:.2f}, {seconds:.0f} s")
    return 1 if odd or any(most > GROWN * small[name][0] for name, (most, _) in whole.items()) else 0


if __name__ == "__main__":
    sys.exit(main())
