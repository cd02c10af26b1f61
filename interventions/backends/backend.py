"""The one door: where a trace runs — here, shipped and rebuilt in this process, or on an NDIF server.

Every function that traces takes `backend=model.door.backend(model.nnsight)` and is the same wherever it runs. What
comes in batches goes through `Door.each`, which keeps several jobs under way where that is of use.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from data.store.journal import Journal
from data.store.progress import Watch

if TYPE_CHECKING:
    from interventions.backends.ndif.client import Line

T = TypeVar("T")
Group = tuple[int, ...]

TIMEOUT = 600.0
IN_FLIGHT = 4
BATCHES_A_JOB, JOB_BYTES = 8, 32 << 20  # batches travel together up to these
LINE_BYTES = 128 << 20  # of results that may come in at once, whatever the model
_task = threading.local()  # `now`: the group of batches that this thread works on


@dataclass(frozen=True)
class Door:
    """Where traces run.

    Attributes:
        kind: `local`, `simulate` or `remote`; the `backend` of artefacts.
        line: How to reach the server, for `remote`.
        in_flight: How many jobs are under way at once.
    """

    kind: str = "local"
    line: "Line | None" = None
    in_flight: int = 1

    @property
    def is_far(self) -> bool:
        """Whether traces run on a server: no weights are loaded here."""
        return self.line is not None

    @property
    def address(self) -> str:
        """The server's address; empty where traces run here."""
        return self.line.address if self.line is not None else ""

    @property
    def is_loopback(self) -> bool:
        """Whether that server is on this machine, and sees its files."""
        from interventions.backends.ndif.client import is_loopback

        return is_loopback(self.address)

    @property
    def watch(self) -> Watch | None:
        """Follows the jobs under way; None where traces run here."""
        return self.line.watch if self.line is not None and isinstance(self.line.watch, Watch) else None

    @property
    def traffic(self) -> dict[str, int]:
        """What went over the line so far; empty where traces run here."""
        return self.line.traffic.counts() if self.line is not None else {}

    def backend(self, model: Any) -> Any:
        """What nnsight's `trace`, `generate` or `session` of this model is given as `backend=`."""
        if self.kind == "simulate":
            from interventions.backends.simulated import Simulation

            return Simulation(model)
        if self.line is None:
            return None
        from interventions.backends.ndif.request import Job

        task: _Task | None = getattr(_task, "now", None)
        return Job(model, self.line, "the request") if task is None else task.job(model, self.line)

    def each(self, journal: Journal, work: Callable[[Group], T], batch_bytes: int) -> Iterator[tuple[Group, T]]:
        """Do the work of every group of batches that the journal has not seen done; in any order.

        Work that an earlier process sent away is collected, not done again. A group that is too much for the server
        is done in halves.

        Args:
            journal: The plan and what is done; the caller notes what it has got.
            work: Traces one group; called in several threads, one tracing at a time, if the door is far.
            batch_bytes: What comes back of one batch, at most: batches travel together up to `JOB_BYTES`.

        Raises:
            UserError: A job failed for good, or a deadline passed.
        """
        todo = [number for number, _ in journal.todo()]
        if not self.is_far:
            for number in todo:
                yield (number,), work((number,))
            return
        batch_bytes = max(batch_bytes, 1)
        share = -(-len(todo) // self.in_flight)  # few batches: rather every request under way than long ones
        most = max(1, min(BATCHES_A_JOB, JOB_BYTES // batch_bytes, share))
        workers = max(1, min(self.in_flight, LINE_BYTES // (most * batch_bytes)))
        yield from _Pool(journal, work).run(journal.groups(most), workers)


HERE = Door()


def open_door(
    kind: str,
    host: str | None = None,
    *,
    timeout: float = TIMEOUT,
    in_flight: int = IN_FLIGHT,
    watch: Watch | None = None,
) -> Door:
    """The door to `local`, `simulate` or `remote`; a server is asked whether it is there.

    Args:
        kind: Where traces run.
        host: The server's address; default `NDIF_HOST`, then nnsight's configuration.
        timeout: Seconds that a job may take, all its tries included.
        in_flight: How many jobs are under way at once.
        watch: Told what the server says of jobs.

    Raises:
        UserError: No server, or none that understands us.
    """
    if kind != "remote":
        return HERE if kind == "local" else Door(kind)
    from nnsight.schema.config import CONFIG

    from interventions.backends.ndif.client import Line, address_of
    from interventions.backends.ndif.server import preflight

    CONFIG.APP.REMOTE_LOGGING = False  # its spinner would stand in the way of our own progress
    address = address_of(host)
    preflight(address)
    return Door(kind, Line(address, timeout, watch or Watch()), in_flight)


@dataclass
class _Task:
    """A group of batches in work: its jobs are told apart by their order."""

    group: Group
    journal: Journal
    stop: threading.Event
    jobs: int = 0

    def job(self, model: Any, line: "Line") -> Any:
        from interventions.backends.ndif.request import Job

        name = f"{','.join(map(str, self.group))}#{self.jobs}"
        label = f"{'batch' if len(self.group) == 1 else 'batches'} {ranges(self.group)}"
        if self.jobs:
            label += f", part {self.jobs + 1}"
        self.jobs += 1
        known = self.journal.jobs.get(name)
        return Job(model, line, label, known, lambda noted: self.journal.note_job(name, noted), self.stop)


class _Pool(Generic[T]):
    """Groups of batches done by daemon threads: one that is stuck can't keep the process."""

    def __init__(self, journal: Journal, work: Callable[[Group], T]) -> None:
        self._journal, self._work = journal, work
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
        from interventions.backends.ndif.request import tracing

        while not self._stop.is_set():
            try:
                group = self._todo.get_nowait()
            except queue.Empty:
                break
            _task.now = _Task(group, self._journal, self._stop)
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
