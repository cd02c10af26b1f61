"""The one door: where a trace runs — here, shipped and rebuilt in this process, or on an NDIF server.

Every function that traces takes `backend=model.door.backend(model.nnsight)` and is the same wherever it runs. What
comes in batches goes through `Door.each`, which keeps several jobs under way where that is of use.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from data.errors import UserError
from interventions.journal import Journal
from interventions.progress import Watch

T = TypeVar("T")
Group = tuple[int, ...]

TIMEOUT = 600.0
IN_FLIGHT = 4
BATCHES_A_JOB, JOB_BYTES = 8, 32 << 20  # batches travel together up to these
OVERTIME = 5.0  # seconds after its deadline that a job's thread may take to say so itself
_task = threading.local()  # the group of batches that this thread works on


@dataclass(frozen=True)
class Door:
    """Where traces run.

    Attributes:
        kind: `local`, `simulate` or `remote`; the `backend` of artefacts.
        line: How to reach the server, for `remote`.
        in_flight: How many jobs are under way at once.
    """

    kind: str = "local"
    line: Any = None
    in_flight: int = 1

    @property
    def is_far(self) -> bool:
        """Whether traces run on another machine: no weights are loaded here."""
        return self.kind == "remote"

    @property
    def is_loopback(self) -> bool:
        """Whether that other machine is this one."""
        from interventions.server import is_loopback

        return self.is_far and is_loopback(self.line.address)

    @property
    def watch(self) -> Watch | None:
        """Follows the jobs under way; None where traces run here."""
        return self.line.watch if self.is_far else None

    def backend(self, model: Any) -> Any:
        """What nnsight's `trace`, `generate` or `session` of this model is given as `backend=`."""
        if self.kind == "local":
            return None
        if self.kind == "simulate":
            from nnsight.intervention.backends.local import LocalSimulationBackend

            return LocalSimulationBackend(model)
        from interventions.jobs import Job

        task: _Task | None = getattr(_task, "now", None)
        if task is None:
            return Job(model, self.line, "alone")
        name = f"{','.join(map(str, task.group))}#{task.jobs}"
        task.jobs += 1
        job = Job(model, self.line, name, task.journal.jobs.get(name), lambda noted: task.journal.note_job(name, noted))
        task.deadline = job.deadline
        return job

    def each(self, journal: Journal, work: Callable[[Group], T], batch_bytes: int) -> Iterator[tuple[Group, T]]:
        """Do the work of every group of batches that the journal has not seen done; in any order.

        Work that an earlier process sent away is collected, not done again.

        Args:
            journal: The plan and what is done; the caller notes what it has got.
            work: Traces one group; called in several threads at once if the door is far.
            batch_bytes: What comes back of one batch, at most: batches travel together up to `JOB_BYTES`.

        Raises:
            UserError: A job failed for good, or a deadline passed.
        """
        if not self.is_far:
            for number, _ in journal.todo():
                yield (number,), work((number,))
            return
        share = -(-len(journal.todo()) // self.in_flight)  # few batches: rather every request under way than long ones
        groups = journal.groups(max(1, min(BATCHES_A_JOB, JOB_BYTES // max(batch_bytes, 1), share)))
        yield from _in_threads(groups, work, journal, self.in_flight)


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

    from interventions.jobs import Line
    from interventions.server import address_of, preflight

    CONFIG.APP.REMOTE_LOGGING = False  # its spinner would stand in the way of our own progress
    address = address_of(host)
    preflight(address)
    return Door(kind, Line(address, timeout, watch=watch or Watch()), in_flight)


@dataclass
class _Task:
    group: Group
    journal: Journal
    jobs: int = 0
    deadline: float = float("inf")


def _in_threads(
    groups: list[Group], work: Callable[[Group], T], journal: Journal, in_flight: int
) -> Iterator[tuple[Group, T]]:
    """Daemon threads, so that a call which never returns can't keep the process: this loop watches the deadlines."""
    from interventions.jobs import tracing

    todo: queue.SimpleQueue[Group] = queue.SimpleQueue()
    done: queue.Queue[tuple[_Task, T | None, BaseException | None]] = queue.Queue(maxsize=in_flight)
    running: dict[int, _Task] = {}
    for group in groups:
        todo.put(group)
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            try:
                group = todo.get_nowait()
            except queue.Empty:
                return
            task = _task.now = _Task(group, journal)
            running[id(task)] = task
            try:
                with tracing():
                    outcome: tuple[_Task, T | None, BaseException | None] = (task, work(group), None)
            except BaseException as error:
                outcome = (task, None, error)
            running.pop(id(task))
            done.put(outcome)

    for _ in range(min(in_flight, len(groups))):
        threading.Thread(target=serve, daemon=True).start()
    try:
        for _ in groups:
            while True:
                try:
                    task, value, error = done.get(timeout=0.5)
                    break
                except queue.Empty:
                    late = [task for task in list(running.values()) if time.monotonic() > task.deadline + OVERTIME]
                    if late:
                        raise UserError(
                            f"job {late[0].group} got no answer by its deadline (--timeout); run the same command again to go on"
                        ) from None
            if error is not None:
                raise error
            yield task.group, value  # type: ignore[misc]  # no error: the work's value
    finally:
        stop.set()
