"""What holds whatever goes wrong, held against each run of the command line; how many cases run, and what they count to.

Every case runs the real command line in a process of its own, forked from one that has imported it (`zygote`), so that hundreds
take minutes. `REFUSAL_FAULTS=some` runs a sample, which REFUSAL_FAULTS_SEED draws, and `REFUSAL_FAULTS=all` every case; without it
these are skipped.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
import pytest
from safetensors import SafetensorError, safe_open

from tests import ROOT

ASKED = os.environ.get("REFUSAL_FAULTS", "")
EVERY = ASKED == "all"
SKIPPED = "REFUSAL_FAULTS=some runs a sample of these, REFUSAL_FAULTS=all every case"
SEED = int(os.environ.get("REFUSAL_FAULTS_SEED", "0"))
HANGS = 60.0  # seconds, on a machine that does nothing else; longer on a busy one
KEY = "sk-canary-0123456789abcdef"  # in the environment, and in no file or message
ENVIRONMENT = {"NDIF_API_KEY": KEY, "OPENAI_API_KEY": KEY, "HF_TOKEN": KEY, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
               "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "200"}  # fmt: skip
MODELS = "hostile models, mirrors, data"  # a kind of cases, as are what tests name
T = TypeVar("T")


def some(cases: Sequence[T], most: int) -> list[T]:
    """Every case with REFUSAL_FAULTS=all, else so many of them, which the seed draws."""
    return list(cases) if EVERY or len(cases) <= most else random.Random(SEED).sample(list(cases), most)


@dataclass
class Outcome:
    """How a run of the command line ended; `code` is negative if a signal ended it, and None if it was still running after `HANGS`."""

    words: Sequence[str]
    code: int | None
    out: str
    err: str
    seconds: float


class Zygote:
    """A process that has imported the command line and forks a child for each run of it."""

    def __init__(self, folder: Path) -> None:
        """Start it; `folder` takes what its children print, and what they are told to write beside or above where they start."""
        self.folder, self.here = folder, folder / "started" / "in" / "here"
        self.here.mkdir(parents=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env=os.environ | ENVIRONMENT,
        )  # fmt: skip
        assert self._answer()["ready"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def run(self, words: Sequence[Any], kill: tuple[float, int] | None = None, **more: Any) -> Outcome:
        """Run `python cli.py WORDS`; with `kill`, send it a signal after so many seconds."""
        out, err = self.folder / "out", self.folder / "err"
        assert self.process.stdin is not None
        most = HANGS * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        after, sent = kill or (most, signal.SIGKILL)
        asked = {"words": list(map(str, words)), "here": str(self.here), "out": str(out), "err": str(err), "after": after, "signal": int(sent),
                 "most": most, **more}  # fmt: skip
        start = time.monotonic()
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        status = self._answer()["status"]
        seconds = time.monotonic() - start
        code = None if seconds >= most else os.waitstatus_to_exitcode(status)
        said, complained = (path.read_bytes().decode("utf-8", "replace") for path in (out, err))
        return Outcome(list(map(str, words)), code, said, complained, seconds)

    def close(self) -> None:
        """Let it end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)


@dataclass
class Place:
    """A folder to break things in: models, prompts, and a run of every command that stays as it is.

    Attributes:
        root: All of it.
        zygote: Runs the command line.
        chain: Command -> its words, in their order.
        seconds: Command -> what it took undisturbed.
    """

    root: Path
    zygote: Zygote
    chain: dict[str, list[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def state(self, command: str) -> Path:
        """The run directory as it was once this command was done; never written."""
        return self.root / "states" / command

    def before(self, command: str) -> Path | None:
        """The run directory as it was before."""
        names = list(self.chain)
        at = names.index(command)
        return self.state(names[at - 1]) if at else None

    @property
    def whole(self) -> Path:
        """The run directory once all was done."""
        return self.state(list(self.chain)[-1])

    def copy(self, state: Path | None, name: str = "run") -> Path:
        """A run directory like a state, to break."""
        folder = self.root / "broken" / name
        shutil.rmtree(folder, ignore_errors=True)
        if state is None:
            folder.mkdir(parents=True)
        else:
            shutil.copytree(state, folder, symlinks=True)
        return folder

    def words(self, command: str, folder: Path) -> list[str]:
        """A command of the chain on another run directory."""
        return ["--run", str(folder), *self.own, *self.chain[command]]

    @property
    def own(self) -> list[str]:
        """Options of every command."""
        return ["--model", str(self.root / "tuned"), "--data", str(self.root / "rows.jsonl"), "--batch-tokens", "64"]

    @property
    def others(self) -> dict[str, bytes]:
        """Everything that no command is asked to touch."""
        return {str(path): path.read_bytes() for path in sorted(self.root.rglob("*"))
                if path.is_file() and not {"broken", "printed"} & set(path.relative_to(self.root).parts)}  # fmt: skip


def holds(outcome: Outcome, folder: Path | None = None, *, codes: Sequence[int] = (0, 1, 2)) -> None:
    """No traceback, no hang, one line of error, no key in what was printed or written."""
    told = f"{outcome.words}\n-> {outcome.code} after {outcome.seconds:.1f} s\n{outcome.out[-2000:]}\n{outcome.err[-4000:]}"
    assert outcome.code is not None, f"hangs: {told}"
    assert outcome.code in codes, told
    assert "Traceback" not in outcome.err + outcome.out, told
    assert "panicked" not in outcome.err, told
    assert KEY not in outcome.err + outcome.out, told
    assert "\x1b" not in outcome.out + outcome.err, told
    if outcome.code == 1:
        assert len([line for line in outcome.err.splitlines() if line.startswith("error: ")]) == 1, told
        assert outcome.err.splitlines()[-1].startswith("error: "), told
    for path in folder.rglob("*") if folder is not None else ():
        if path.is_file() and not path.is_symlink():
            assert KEY.encode() not in path.read_bytes(), f"{path}: {told}"


def differing(one: Path, other: Path) -> list[str]:
    """Tables and tensors of a run directory that another has not, or has otherwise."""
    odd = []
    for path in sorted(one.rglob("*")):
        name = path.relative_to(one)
        if path.suffix not in (".parquet", ".safetensors") or path.name.startswith("."):
            continue
        try:
            same = _same(path, other / name)
        except (OSError, SafetensorError, pl.exceptions.PolarsError) as error:
            odd.append(f"{name} is missing or damaged ({type(error).__name__})")
        else:
            odd += [] if same else [f"{name} is another"]
    return odd


def _same(one: Path, other: Path) -> bool:
    """Whether two tables, or two files of tensors, hold the same."""
    if one.suffix == ".parquet":
        return pl.read_parquet(one).equals(pl.read_parquet(other))
    return _tensors(one) == _tensors(other)


def _tensors(path: Path) -> tuple[dict[str, tuple[Any, bytes]], dict[str, str]]:
    with safe_open(path, "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        return {name: (one.shape, one.tobytes()) for name, one in tensors.items()}, file.metadata()


class Cases:
    """Counts cases of a kind, and those that held; a test goes on after one that did not, and fails at its end.

    Attributes:
        run: Kind -> cases.
        held: Kind -> those in which nothing was raised.
        broken: What was, of each other one.
    """

    def __init__(self) -> None:
        """None yet."""
        self.run: Counter[str] = Counter()
        self.held: Counter[str] = Counter()
        self.broken: list[str] = []

    @contextmanager
    def __call__(self, kind: str, many: int = 1) -> Iterator[None]:
        """A case of a kind, or several that hold together."""
        self.run[kind] += many
        try:
            yield
        except (AssertionError, pytest.fail.Exception) as error:
            self.broken.append(str(error))
        else:
            self.held[kind] += many


def chain_of(root: Path) -> dict[str, list[str]]:
    """Every command that writes, each with words that make it short; `affine` and `gate` are ways of `vectors` and `probe`."""
    words = {
        "extract": "extract",
        "vectors": "vectors",
        "probe": "probe",
        "lowrank": "lowrank --epochs 1",
        "trace": "trace --arm fixed --max-new-tokens 2 --prompt TEXT",
        "generate": "generate --limit 12 --max-new-tokens 2 --arm baseline --arm fixed --arm gated --arm lowrank",
        "evaluate": "evaluate",
        "effects": "effects --limit 8 --max-new-tokens 2 --arm baseline --arm fixed",
        "sweep": "sweep --strengths -1,1 --layers 1,2 --max-new-tokens 2 --limit 12",
        "diff": f"diff --against {root / 'base'} --layers 1,2",
        "category": "category --limit 12 --random 2",
        "affine": "vectors --method affine",
        "gate": "probe --gate words",
        "finetune": "finetune --epochs 1 --rank 2 --limit 16",
        "export": "export",
        "bake": "bake",
        "report": "report",
    }
    return {
        name: ["kill a person" if word == "TEXT" else word for word in text.split()] for name, text in words.items()
    }
