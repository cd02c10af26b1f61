"""Sums of the residual stream over groups of rows, added up in float64 there where the model is.

What comes back of a job is (groups + 1, layers, d_model) in float32, however many prompts it read: for a 70B model in 80 layers and
six groups 18 MB, where the activations of 12,000 prompts take 15.7 GB.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from data.store.sums import NAME, save_sums
from data.store.tables import write_table
from interventions.model.model import Model
from interventions.reading.batches import plan_batches
from interventions.reading.budget import default_batch_tokens
from interventions.reading.extract import checked_layers, key_of, metadata_of, row_table
from interventions.reading.parts import Parts
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
    parts, shape = Parts(folder, NAME, key, plan), (count, len(layers), model.d_model + 1)

    def work(plan: list[list[int]], most: int) -> np.ndarray:
        return source.sums(model, plan, layers, most, member.tolist(), count).numpy()

    parts.read(model, source, NAME, tokens, work, job_bytes=4 * (count + 1) * shape[1] * shape[2])
    sums = np.zeros(shape)
    for _, part in parts:
        sums += part
    path = folder / f"{NAME}.safetensors"
    counted = pl.Series("group", member, pl.Int64).replace(-1, None)
    write_table(path.with_suffix(".parquet"), rows.with_columns(counted))
    save_sums(path, sums, metadata_of(model, layers, position))
    parts.remove()
    return path
