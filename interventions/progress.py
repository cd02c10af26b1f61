"""What is going on, on stderr: a bar, and what a server says of jobs under way."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

SLOW = ("PROVISIONING", "DEPLOYING")  # states worth a line of their own where there is no bar
QUEUED = ("RECEIVED", "QUEUED", "PROVISIONING", "DEPLOYING", "DISPATCHED")


@dataclass
class Watch:
    """Follows jobs: how many are queued, running and done, with the server's own words.

    Attributes:
        as_json: One JSON object a change on stderr, for scripts, in place of words for people.
    """

    as_json: bool = False
    _states: dict[str, str] = field(default_factory=dict)
    _bar: Any = None
    _said: str = ""

    def __call__(self, job: str, state: str, words: str) -> None:
        """A job's state changed."""
        self._states[job] = state
        if self.as_json:
            sys.stderr.write(json.dumps({"job": job, "state": state, "words": words}, ensure_ascii=False) + "\n")
        elif self._bar is not None:
            self._bar.set_postfix_str(f"{self.summary()}: {words}", refresh=sys.stderr.isatty())
        elif state in SLOW and words != self._said:
            sys.stderr.write(f"server: {words}\n")
            self._said = words

    def summary(self) -> str:
        """Counts, such as `2 queued, 1 running, 5 done`."""
        counts = Counter(
            "queued" if state in QUEUED else "done" if state == "COMPLETED" else "to try again" if state == "RETRY"
            else "running" for state in self._states.values()
        )  # fmt: skip
        return ", ".join(
            f"{counts[name]} {name}" for name in ("queued", "running", "to try again", "done") if counts[name]
        )


@contextmanager
def progress(total: int, done: int, name: str, watch: Watch | None = None, unit: str = "row") -> Iterator[Any]:
    """A bar on stderr; every ten seconds a line where stderr is no terminal.

    Args:
        total: How many in all.
        done: How many an earlier run did.
        name: What is done to them.
        watch: Jobs to show beside the bar; it starts to count anew.
        unit: What is counted.
    """
    terminal = sys.stderr.isatty()
    quiet = watch is not None and watch.as_json
    with tqdm(
        total=total,
        initial=done,
        desc=name,
        unit=unit,
        file=sys.stderr,
        mininterval=0.2 if terminal else 10,
        disable=quiet,
    ) as bar:
        if watch is not None:
            watch._states.clear()
            watch._bar = bar
        try:
            yield bar
        finally:
            if watch is not None:
                watch._bar = None
