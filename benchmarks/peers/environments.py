"""Where each worker lives: this project's own environment, or one made for it on first use."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from interventions.model.embedded import cache_folder

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@dataclass(frozen=True)
class Peer:
    """A worker script, and what it needs beside our own torch; nothing where our environment will do."""

    script: str
    needs: tuple[str, ...] = ()


PEERS = {
    "ours": Peer("ours.py"),
    "published": Peer("published.py"),
    "hooks": Peer("hooks.py"),
    "steering-vectors": Peer("by_steering_vectors.py", ("steering-vectors==0.12.2",)),
    "transformer-lens": Peer("by_transformer_lens.py", ("transformer-lens==4.3.0",)),
}


class UnavailableError(Exception):
    """A peer that can't take part, and why."""


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment, which has the same torch as ours, so that tools are compared.

    Raises:
        UnavailableError: It can't be made.
    """
    peer = PEERS[name]
    if not peer.needs:
        return Path(sys.executable)
    torch = f"torch=={version('torch').partition('+')[0]}"
    folder = cache_folder() / "bench" / "-".join((*peer.needs, torch)).replace("==", "-")
    if not (folder / "done").exists():
        print(f"making an environment for {name}, once: {folder}", file=sys.stderr)
        pip = folder / "bin" / "pip"
        for command in (
            [sys.executable, "-m", "venv", "--clear", folder],
            [pip, "install", "--quiet", "--disable-pip-version-check", torch, *peer.needs],
        ):
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
            if done.returncode:
                raise UnavailableError(f"not installed: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}")
        (folder / "done").touch()
    return folder / "bin" / "python"


class Worker:
    """A worker process that stays alive between turns."""

    def __init__(self, name: str, threads: int) -> None:
        """Start it.

        Raises:
            UnavailableError: Its environment can't be made.
        """
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "true",
        }
        python, peer = python_of(name), PEERS[name]
        environment.pop("PYTHONPATH", None)
        if not peer.needs:
            environment["PYTHONPATH"] = str(ROOT)  # this checkout's modules, whichever is installed
        self.name, self._log = name, (cache_folder() / f"bench-{name}.log").open("w")
        self._process = subprocess.Popen(
            [python, HERE / peer.script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            text=True,
        )

    def ask(self, task: str, job: dict[str, Any], save: Path | None = None) -> dict[str, float]:
        """Do a task once: seconds, by the clock and of the processor.

        Raises:
            UnavailableError: It failed; its last words.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {"task": task, "job": job, "save": None if save is None else str(save)}
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            last = Path(self._log.name).read_text().strip().splitlines()
            raise UnavailableError(last[-1] if last else "the worker died")
        answer = json.loads(line)
        if "error" in answer:
            raise UnavailableError(answer["error"])
        return answer

    def close(self) -> None:
        """Let it end."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        self._log.close()
