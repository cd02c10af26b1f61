"""Finished batches on disk, and jobs under way: what a killed run has done, and the plan it goes on with."""

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.store.files import open_own, room_for

Object = dict[str, Any]  # of JSON


def jobs_under_way(path: Path) -> dict[str, Object]:
    """What a journal says of the jobs whose results are not here yet: name -> what was last noted; the file stays as it is.

    Empty where it can't be read.
    """
    try:
        raw = path.read_bytes()
        lines = [json.loads(line) for line in raw[: raw.rfind(b"\n") + 1].splitlines()]
        jobs = {line["job"]: line["noted"] for line in lines if "job" in line}
        done = {int(number) for line in lines for number in line.get("done", ())}
        return {name: noted for name, noted in jobs.items() if noted.get("id") and not done >= set(batches_of(name))}
    except (OSError, ValueError, RecursionError, AttributeError, TypeError):
        return {}


def batches_of(job: str) -> tuple[int, ...]:
    """The numbers of the batches in a job's name."""
    return tuple(map(int, job.partition("#")[0].split(",")))


class Journal:
    """A file of one line for the key and the plan, then one line for each thing that happened.

    A restart with the same key goes on with the stored plan; with another key it begins anew. A line that was
    torn by a kill is cut off.

    Attributes:
        plan: The batches, lists of row numbers, as they were planned first.
        done: Batch number -> what was noted when it finished.
        jobs: Name of a job on a server -> what was last noted of it; gone once its batches are done.
        resumed: Whether an earlier run's plan was taken up.
    """

    def __init__(self, path: Path, key: Object, plan: list[list[int]], results: Path | None = None) -> None:
        """Open or begin the journal; `key` must be JSON.

        `results` is the file that batches are written into: one that stands there goes before a new journal comes, so
        that no kill in between leaves it to the wrong one.
        """
        self._path = path
        self._lock = threading.Lock()
        self.plan = plan
        self.done: dict[int, Any] = {}
        self.jobs: dict[str, Object] = {}
        lines = self._whole_lines()
        self.resumed = bool(lines) and lines[0].get("key") == json.loads(json.dumps(key))
        if self.resumed:
            self.plan = lines[0]["plan"]
            for line in lines[1:]:
                if "job" in line:
                    self.jobs[line["job"]] = line["noted"]
                else:
                    self.done |= {int(batch): noted for batch, noted in line["done"].items()}
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            if results is not None:
                results.unlink(missing_ok=True)
            self._append({"key": key, "plan": plan}, "w")

    def _whole_lines(self) -> list[Object]:
        if not self._path.exists():
            return []
        raw = self._path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            with open_own(self._path, "r+b") as file:
                file.truncate(len(whole))
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except (ValueError, RecursionError):
            return []

    def todo(self) -> list[tuple[int, list[int]]]:
        """Batches that are not done yet: number and rows."""
        return [(number, rows) for number, rows in enumerate(self.plan) if number not in self.done]

    def groups(self, most: int) -> list[tuple[int, ...]]:
        """Batches that are not done yet, in groups that travel together, of at most `most`.

        Those that an earlier run sent away together stay together, so that their job can be collected.
        """
        left = [number for number, _ in self.todo()]
        sent = dict.fromkeys(batches_of(name) for name, noted in self.jobs.items() if not noted.get("failed"))
        kept = [group for group in sent if set(group) <= set(left)]
        rest = [number for number in left if not any(number in group for group in kept)]
        return kept + [tuple(rest[at : at + most]) for at in range(0, len(rest), most)]

    def finish(self, noted: Mapping[int, Any]) -> None:
        """Note that batches are done, all of them or, if the process dies here, none: batch number -> what to note."""
        self.done |= noted
        self._append({"done": noted})

    def note_job(self, name: str, noted: Object) -> None:
        """Note what is known of a job on a server; `name` is the group's batch numbers, `#`, its number in there."""
        self.jobs[name] = noted
        self._append({"job": name, "noted": noted})

    def _append(self, line: Object, mode: str = "a") -> None:
        """Write a line, all of it or, where the disk is full, nothing: what follows must not stand behind half a line."""
        content = (json.dumps(line, ensure_ascii=False) + "\n").encode()
        with self._lock, room_for(self._path), open_own(self._path, mode + "b", buffering=0) as file:
            start = file.seek(0, os.SEEK_END)
            try:
                left = memoryview(content)
                while left:
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(start)
                raise

    def remove(self) -> None:
        """Delete the journal once its result stands."""
        self._path.unlink(missing_ok=True)
