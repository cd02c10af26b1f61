"""The resumable loop: batches of rows through a backend, each noted once it is done."""

from collections.abc import Callable
from typing import Any, TypeVar

from data.store.journal import Journal
from data.store.progress import progress
from interventions.backends.backend import JOB_BYTES, Backend

T = TypeVar("T")


def run_batches(
    backend: Backend, journal: Journal, work: Callable[[list[int]], list[T]], name: str, unit: str = "row"
) -> list[T]:
    """Do the work of every batch that the journal has not seen done, and give what is noted of each row, in order.

    Args:
        backend: Where the work's traces run, one batch a job.
        journal: The plan, whose rows count from 0, and what an earlier run has done.
        work: Rows of a batch -> what to note of each, as JSON.
        name: Beside the bar.
        unit: What is counted.

    Raises:
        UserError: A job failed for good, or a deadline passed.
    """
    total, left = sum(map(len, journal.plan)), sum(len(rows) for _, rows in journal.todo())
    with progress(total, total - left, name, backend.watch, unit) as bar:
        for (number,), noted in backend.each(journal, lambda group: work(journal.plan[group[0]]), JOB_BYTES):
            journal.finish({number: noted})
            bar.update(len(noted))
    found: list[Any] = [None] * total
    for number, rows in enumerate(journal.plan):
        for row, noted in zip(rows, journal.done[number], strict=True):
            found[row] = noted
    return found
