"""Sums of the residual stream over groups of rows, added up in float64 there where the model is.

What comes back of a job is (groups + 1, layers, d_model) in float32, however many prompts it read: for a 70B model in 80 layers and
six groups 18 MB, where the activations of 12,000 prompts take 15.7 GB.
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from data.errors import UserError
from data.store.files import room_for
from data.store.journal import Journal
from data.store.progress import progress
from data.store.rundir import replacing
from data.store.sums import NAME, save_sums
from data.store.tables import write_table
from interventions.model.model import Model
from interventions.reading.batches import plan_batches
from interventions.reading.budget import Budget, default_batch_tokens
from interventions.reading.extract import checked_layers, key_of, metadata_of, row_table
from interventions.reading.residual import Source


def extract_sums(
    model: Model,
    prompts: pl.DataFrame,
    folder: Path,
    groups: Callable[[pl.DataFrame], np.ndarray],
    *,
    layers: Sequence[int] | None = None,
    position: str = "last",
    suffixes: Sequence[str] = (),
    batch_tokens: int | None = None,
) -> Path:
    """Write the sums of the residual stream over groups of rows to `folder`; a killed run goes on where it stopped.

    Rows of no group are not read. Each job's sums are on the disk before the journal calls its batches done.

    Args:
        model: An open model.
        prompts: Rows in the shape of `data.load_all`.
        folder: Gets sums.safetensors and sums.parquet (`data.store.sums`).
        groups: Row table, as an activations file of these prompts would have it -> for each row its group, or -1.
        layers: Block numbers, default all.
        position: As in `extract`.
        suffixes: As in `extract`.
        batch_tokens: Padded tokens a batch, default 2048.

    Returns:
        Path of the safetensors file.

    Raises:
        UserError: As `extract`, or sums that are not finite.
    """
    layers = checked_layers(model, layers)
    source = Source.of(model, prompts["prompt"].to_list(), suffixes, position)
    rows = row_table(prompts, suffixes, source.row_lengths)
    member = groups(rows)
    count = int(member.max(initial=-1)) + 1
    units = np.flatnonzero((member.reshape(-1, source.rows_each) >= 0).any(1)).tolist()
    key = key_of(model, prompts, layers, position, suffixes) | {"groups": hashlib.sha256(member.tobytes()).hexdigest()}
    tokens = batch_tokens or default_batch_tokens(model)
    plan = [[units[at] for at in batch] for batch in plan_batches(source.computed(model, units), tokens)]
    journal_path, parts = folder / f".{NAME}.journal", folder / f".{NAME}"
    if not parts.exists():
        journal_path.unlink(missing_ok=True)
        parts.mkdir(parents=True)
    journal = Journal(journal_path, key, plan)
    shape = (count, len(layers), model.d_model + 1)
    _run(model, source, layers, journal, parts, shape, tokens, member.tolist())
    sums = np.zeros(shape)
    for part in sorted(set(journal.done.values())):
        sums += np.load(parts / f"{part}.npy", allow_pickle=False)
    path = folder / f"{NAME}.safetensors"
    counted = pl.Series("group", member, pl.Int64).replace(-1, None)
    write_table(path.with_suffix(".parquet"), rows.with_columns(counted))
    save_sums(path, sums, metadata_of(model, layers, position))
    journal.remove()
    shutil.rmtree(parts, ignore_errors=True)
    return path


def _run(
    model: Model,
    source: Source,
    layers: list[int],
    journal: Journal,
    parts: Path,
    shape: tuple[int, int, int],
    tokens: int,
    member: list[int],
) -> None:
    budget = Budget(tokens)

    def read(group: tuple[int, ...]) -> np.ndarray:
        plan = [journal.plan[number] for number in group]
        if len(group) > 1:  # too much for a server: the backend sends it in halves
            return source.sums(model, plan, layers, tokens, member, shape[0]).numpy()
        smallest = min(source.computed(model, plan[0]))
        sums = budget.spend(lambda most: source.sums(model, plan, layers, most, member, shape[0]), smallest,
                            model.backend.is_remote)  # fmt: skip
        return sums.numpy()

    groups, *one = shape
    job_bytes = 4 * (groups + 1) * int(np.prod(one))
    total, left = sum(map(len, journal.plan)), sum(len(units) for _, units in journal.todo())
    model.backend.announce(f"sums of {left:,} rows", journal, 0, job_bytes=job_bytes)
    with progress(total, total - left, "sums", model.backend.watch) as bar:
        for group, sums in model.backend.each(journal, read, 0, job_bytes=job_bytes):
            if not np.isfinite(sums).all():
                raise UserError(f"activations of {model.name!r} are not numbers; try --dtype float32")
            part = min(group)
            with replacing(parts / f"{part}.npy") as unfinished, room_for(unfinished), unfinished.open("wb") as file:
                np.save(file, sums)
            journal.finish(dict.fromkeys(group, part))
            bar.update(sum(len(journal.plan[number]) for number in group))
