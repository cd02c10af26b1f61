"""What came back of batches that were reduced where the model is: each job's part on the disk before the journal calls its batches
done, so that a killed run asks for nothing twice."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError
from data.store.files import room_for
from data.store.journal import Journal
from data.store.progress import progress
from data.store.rundir import replacing
from interventions.model.model import Model
from interventions.reading.budget import Budget
from interventions.reading.residual import Source

Read = Callable[[list[list[int]], int], np.ndarray]  # batches of units, tokens a pass -> what comes back of them


class Parts:
    """Parts of an artefact, one a job."""

    def __init__(self, folder: Path, name: str, key: dict[str, Any], plan: list[list[int]]) -> None:
        """Go on with those that lie in `folder` for this very key, or begin."""
        journal, self.folder = folder / f".{name}.journal", folder / f".{name}"
        if not self.folder.exists():
            journal.unlink(missing_ok=True)
            self.folder.mkdir(parents=True)
        self.journal = Journal(journal, key, plan)

    def __iter__(self) -> Iterator[tuple[list[int], np.ndarray]]:
        """Each part with its units, in the order in which they were read."""
        for part in sorted(set(self.journal.done.values())):
            batches = sorted(number for number, one in self.journal.done.items() if one == part)
            units = [unit for number in batches for unit in self.journal.plan[number]]
            yield units, np.load(self.folder / f"{part}.npy", allow_pickle=False)

    def read(
        self, model: Model, source: Source, what: str, tokens: int, work: Read, *, unit_bytes: int = 0, job_bytes: int | None = None
    ) -> None:  # fmt: skip
        """Do what is not done.

        Args:
            model: An open model.
            source: What the units are of.
            what: What comes back, for people.
            tokens: Padded tokens a batch.
            work: Reads batches.
            unit_bytes: What comes back of one unit.
            job_bytes: What comes back of a job in its place, where that is the same for any number of units.

        Raises:
            UserError: As the work; or what came back are no numbers.
        """
        journal, budget = self.journal, Budget(tokens)

        def read(group: tuple[int, ...]) -> np.ndarray:
            plan = [journal.plan[number] for number in sorted(group)]
            if len(group) > 1:  # too much for a server: the backend sends it in halves
                return work(plan, tokens)
            smallest = min(source.computed(model, plan[0]))
            return budget.spend(lambda most: work(plan, most), smallest, model.backend.is_remote)

        total, left = sum(map(len, journal.plan)), sum(len(units) for _, units in journal.todo())
        batch_bytes = unit_bytes * max(map(len, journal.plan), default=1)
        model.backend.announce(f"{what} of {left:,} rows", journal, batch_bytes, unit_bytes * left, job_bytes=job_bytes)
        with progress(total, total - left, what, model.backend.watch) as bar:
            for group, found in model.backend.each(journal, read, batch_bytes, job_bytes=job_bytes):
                if not np.isfinite(found).all():
                    raise UserError(f"activations of {model.name!r} are not numbers; try --dtype float32")
                part = min(group)
                with (
                    replacing(self.folder / f"{part}.npy") as unfinished,
                    room_for(unfinished),
                    unfinished.open("wb") as file,
                ):
                    np.save(file, found)
                journal.finish(dict.fromkeys(group, part))
                bar.update(sum(len(journal.plan[number]) for number in group))

    def remove(self) -> None:
        """Delete them once what they make up stands."""
        self.journal.remove()
        shutil.rmtree(self.folder, ignore_errors=True)
