"""Groups of batches as jobs: several under way at once, one tracing at a time."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from data.store.journal import Journal

if TYPE_CHECKING:
    from interventions.backends.ndif.client import Client


T = TypeVar("T")
Group = tuple[int, ...]
_task = threading.local()  # `now`: the group of batches that this thread works on


@dataclass
class _Task:
    """A group of batches in work: its jobs are told apart by their order."""

    group: Group
    journal: Journal
    stop: threading.Event
    result_bytes: int
    jobs: int = 0

    def job(self, model: Any, client: "Client") -> Any:
        from interventions.backends.ndif.request import Request

        name = f"{','.join(map(str, self.group))}#{self.jobs}"
        label = f"{'batch' if len(self.group) == 1 else 'batches'} {ranges(self.group)}"
        if self.jobs:
            label += f", part {self.jobs + 1}"
        self.jobs += 1
        known = self.journal.jobs.get(name)
        return Request(model, client, label, known, lambda noted: self.journal.note_job(name, noted), self.stop,
                       2 * self.result_bytes)  # fmt: skip


class _Pool(Generic[T]):
    """Groups of batches done by daemon threads: one that is stuck can't keep the process."""

    def __init__(self, journal: Journal, work: Callable[[Group], T], result_bytes: Callable[[Group], int]) -> None:
        self._journal, self._work, self._result_bytes = journal, work, result_bytes
        self._todo: queue.SimpleQueue[Group] = queue.SimpleQueue()
        self._done: queue.Queue[tuple[Group, T | None, BaseException | None]] = queue.Queue(maxsize=1)
        self._stop = threading.Event()

    def run(self, groups: list[Group], workers: int) -> Iterator[tuple[Group, T]]:
        from interventions.backends.ndif.request import TooBigError

        for group in groups:
            self._todo.put(group)
        for _ in range(min(workers, len(groups))):
            self._hire()
        left = len(groups)
        try:
            while left:
                group, value, error = self._done.get()
                if isinstance(error, TooBigError) and len(group) > 1:
                    self._todo.put(group[: len(group) // 2])
                    self._todo.put(group[len(group) // 2 :])
                    left += 1
                    self._hire()  # whoever failed has left
                elif error is not None:
                    raise error
                else:
                    left -= 1
                    yield group, value  # type: ignore[misc]  # no error: the work's own value
        finally:
            self._stop.set()

    def _hire(self) -> None:
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        from interventions.backends.tracing_lock import tracing

        while not self._stop.is_set():
            try:
                group = self._todo.get_nowait()
            except queue.Empty:
                break
            _task.now = _Task(group, self._journal, self._stop, self._result_bytes(group))
            try:
                with tracing():
                    value = self._work(group)
            except BaseException as error:
                self._deliver(group, None, error)
                break
            self._deliver(group, value, None)
            del value  # or it would stay while the next job is under way

    def _deliver(self, group: Group, value: T | None, error: BaseException | None) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._done.put((group, value, error), timeout=0.5)
                break


def ranges(numbers: Group) -> str:
    """`0-3,5` for (0, 1, 2, 3, 5)."""
    runs = [list(run) for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ",".join(str(run[0][1]) if len(run) == 1 else f"{run[0][1]}-{run[-1][1]}" for run in runs)
