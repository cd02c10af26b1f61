"""Finished batches on disk: what a killed run has done, and the plan it goes on with."""

import json
from pathlib import Path
from typing import Any


class Journal:
    """A file of one line for the key and the plan, then one line for each finished batch.

    A restart with the same key goes on with the stored plan; with another key it begins anew. A line that was
    torn by a kill is cut off.

    Attributes:
        plan: The batches, lists of row numbers, as they were planned first.
        done: Batch number -> what was noted when it finished.
        resumed: Whether an earlier run's plan was taken up.
    """

    def __init__(self, path: Path, key: dict[str, Any], plan: list[list[int]]) -> None:
        """Open or begin the journal; `key` must be JSON."""
        self._path = path
        self.plan = plan
        self.done: dict[int, Any] = {}
        lines = self._whole_lines()
        self.resumed = bool(lines) and lines[0].get("key") == json.loads(json.dumps(key))
        if self.resumed:
            self.plan = lines[0]["plan"]
            self.done = {line["batch"]: line["noted"] for line in lines[1:]}
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"key": key, "plan": plan}) + "\n")

    def _whole_lines(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        raw = self._path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            with self._path.open("r+b") as file:
                file.truncate(len(whole))
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError:
            return []

    def todo(self) -> list[tuple[int, list[int]]]:
        """Batches that are not done yet: number and rows."""
        return [(number, rows) for number, rows in enumerate(self.plan) if number not in self.done]

    def finish(self, batch: int, noted: Any = None) -> None:
        """Note that a batch is done."""
        self.done[batch] = noted
        with self._path.open("a") as file:
            file.write(json.dumps({"batch": batch, "noted": noted}, ensure_ascii=False) + "\n")

    def remove(self) -> None:
        """Delete the journal once its result stands."""
        self._path.unlink(missing_ok=True)
