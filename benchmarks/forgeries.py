"""Which forged figures of a real run `verify` finds: a table, one line a forgery.

A small run of the embedded model with an artefact of every kind that `verify` computes again is made in a temporary folder, or is the RUN
that is named, which is left as it is; it has to pass first. Then each forgery of tests/made/forgeries.py is done to a copy, its record and
ledger forged along: first `verify --share 0`, which needs no model, looks for it, then, if need be, the model. Exit 1 if one was missed.
Run: .venv/bin/python benchmarks/forgeries.py [RUN] [--only PATTERN]; under an hour on two busy cores.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from click.testing import CliRunner

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from data.errors import UserError  # noqa: E402
from tests.made.forgeries import FORGERIES, artefact_of, checks_of  # noqa: E402

CHAIN = (
    "--limit 60 extract vectors --method contrastive probe --fit mass-mean trace --limit 8 --max-new-tokens 16",
    "--limit 400 probe --gate ridge --data embedded:traffic",
    "probe --gate network generate --data embedded:traffic --limit 60 --max-new-tokens 16 --arm baseline --arm chosen --arm fixed "
    "evaluate --lengths 8,16 --coherence judges",
    "sweep --limit 40 --arm fixed --layers 17 --strengths=-0.2,-0.3 --best 1 --max-new-tokens 8 --refusal-loss 1",
    "effects --limit 12 --max-new-tokens 8 --arm baseline --arm fixed report",
)
LEFT_OUT = ("category",)  # takes the embedded model long; tests/commands/test_verify.py forges a tiny one's


def made(folder):
    """The run."""
    for words in CHAIN:
        line = [sys.executable, "cli.py", "--run", str(folder), *words.split()]
        done = subprocess.run(line, cwd=HERE.parent, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
    return folder


def differing(run, *words):
    """The exit status of `verify`, and what it found to differ: artefact -> what it says."""
    from cli import cli

    told = CliRunner().invoke(cli, ["--run", str(run), "--json", "verify", "--seed", "1", *words])
    if not told.stdout:
        sys.exit(f"verify ended with {told.exception!r}")
    rows = json.loads(told.stdout.splitlines()[0])["table"]
    odd = {row["artefact"]: f"{row['check']}: {row['found']}" for row in rows if row["outcome"] == "differs"}
    assert bool(odd) == isinstance(told.exception, UserError) == bool(told.exit_code)
    return odd


def looks(name):
    """The ways to look for a forgery, the quickest first: words of `verify`, and what to call them."""
    only = [word for one in checks_of(name) for word in ("--only", one)]
    yield "no model", ("--share", "0", *only)
    share = "0.99" if "gates" in only else "1"  # at 1 the gate that comes with the tool would be fitted again
    yield "the model", ("--share", share, *only)


def main():
    """Make, forge, look, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="the run directory; without one it is made")
    parser.add_argument("--only", default="", help="a pattern of forgeries' names")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = asked.run or made(Path(scratch) / "run")
        if odd := differing(run, "--share", "0.99"):
            sys.exit(f"the run as it is does not pass: {odd}")
        print("| forged | found by | s | what it says |\n|---|---|---|---|", flush=True)
        missed = []
        for name in (name for name in FORGERIES if re.search(asked.only, name) and artefact_of(name) not in LEFT_OUT):
            copy = Path(shutil.copytree(run, Path(scratch) / "forged"))
            FORGERIES[name](copy)
            start, found, says = time.monotonic(), "**nobody**", ""
            for by, words in looks(name):
                odd = differing(copy, *words)
                if artefact_of(name) in odd:
                    found, says = by, odd[artefact_of(name)]
                    break
            else:
                missed.append(name)
            print(f"| {name} | {found} | {time.monotonic() - start:.0f} | {says} |", flush=True)
            shutil.rmtree(copy)
    print(f"\n{len(missed)} missed" + (f": {', '.join(missed)}" if missed else ""))
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
