"""What is going on, on stderr: a bar, and what a server says of jobs under way."""

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from data.visible import visible, visible_json

KINDS = {
    **dict.fromkeys(("RECEIVED", "QUEUED", "PROVISIONING", "DEPLOYING", "DISPATCHED"), "queued"),
    "RUNNING": "running",
    "RETRY": "to try again",
    "COMPLETED": "done",
    "ERROR": "failed",
}
WORTH_SAYING = 90  # seconds that are left after what came first
SAID = ("PROVISIONING", "DEPLOYING", "RETRY")  # worth a line of their own where there is no terminal


@dataclass
class Watch:
    """Follows jobs: how many are queued, running and done, with the server's own words. Told from any thread.

    Attributes:
        as_json: One JSON object a change on stderr, for scripts, in place of words for people.
    """

    as_json: bool = False
    _states: dict[str, str] = field(default_factory=dict)
    _bar: Any = None
    _said: str = ""
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def __call__(self, job: str, state: str, words: str) -> None:
        """A job's state changed."""
        with self._lock:
            self._states[job] = state
            if self.as_json:
                event = {"job": job, "state": state, "words": words, **self._counts()}
                sys.stderr.write(visible_json(event) + "\n")
                return
            if self._bar is not None:
                self._bar.set_postfix_str(f"{self.summary()}: {words}", refresh=sys.stderr.isatty())
            if state in SAID and not (self._bar is not None and sys.stderr.isatty()) and words != self._said:
                self._said = words
                tqdm.write(visible(f"server: {job}: {words}"), file=sys.stderr)

    def say(self, words: str) -> None:
        """A line of its own."""
        with self._lock:
            text = visible_json({"said": words}) if self.as_json else visible(words)
            tqdm.write(text, file=sys.stderr)

    def begin(self, bar: Any) -> None:
        """Count anew, beside this bar."""
        with self._lock:
            self._states.clear()
            self._bar = bar

    def rows(self, name: str, done: int, total: int) -> None:
        """Rows were done."""
        if self.as_json:
            with self._lock:
                event = {"rows": done, "of": total, "what": name, **self._counts()}
                sys.stderr.write(visible_json(event) + "\n")

    def summary(self) -> str:
        """Counts, such as `2 queued, 1 running, 5 done`."""
        return ", ".join(f"{number} {name}" for name, number in self._counts().items() if number)

    def _counts(self) -> dict[str, int]:
        counts = Counter(KINDS.get(state, "running") for state in self._states.values())
        return {name: counts[name] for name in ("queued", "running", "to try again", "failed", "done")}


class Bar:
    """Rows done so far, shown."""

    def __init__(self, bar: Any, name: str, watch: Watch | None) -> None:
        """Wrap a tqdm bar."""
        self._bar, self._name, self._watch = bar, name, watch
        self._start, self._told = time.monotonic(), False

    def say(self, words: str) -> None:
        """Words to stand beside the bar."""
        self._bar.set_postfix_str(words)

    def update(self, rows: int = 1) -> None:
        """So many more rows are done."""
        self._bar.update(rows)
        if self._watch is None:
            return
        self._watch.rows(self._name, self._bar.n, self._bar.total)
        more = (time.monotonic() - self._start) / max(rows, 1) * (self._bar.total - self._bar.n)
        if not self._told and more > WORTH_SAYING:
            self._watch.say(f"{self._name}: about {more / 60:.0f} minutes more, as the first took")
        self._told = True


@contextmanager
def progress(total: int, done: int, name: str, watch: Watch | None = None, unit: str = "row") -> Iterator[Bar]:
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
        file=_Nowhere() if quiet else sys.stderr,
        mininterval=0.2 if terminal else 10,
    ) as bar:
        if watch is not None:
            watch.begin(bar)
        try:
            yield Bar(bar, name, watch)
        finally:
            if watch is not None:
                watch.begin(None)


class _Nowhere:
    """A stream that drops what it gets; a disabled bar would not count."""

    def write(self, _text: str) -> int:
        return 0

    def flush(self) -> None:
        pass
