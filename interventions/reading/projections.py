"""Moments of groups of rows, and each row's projections on the directions that follow from them, where the model is.

Two passes over the prompts. Of the first come back, a job, (1 + 4 · fits) × layers × d_model numbers: `traced.residual.add_moments`
says how no digit of the variances is lost. Of the second come back rows × layers × fits numbers, in float32 but added up in float64;
with it go the fits' directions, layers × fits × d_model numbers a job.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch

from data.store.projections import NAME, save_projections
from data.store.tables import write_table
from interventions.model.model import Model
from interventions.reading.batches import plan_batches
from interventions.reading.budget import default_batch_tokens
from interventions.reading.extract import checked_layers, key_of, metadata_of, row_table
from interventions.reading.parts import Parts
from interventions.reading.residual import Source
from interventions.traced.residual import Along


class Fits(NamedTuple):
    """What is fitted to which rows of a row table.

    Attributes:
        members: bool (fits, rows), who is fitted on what.
        scored: bool (rows,), who is projected beside these.
    """

    members: np.ndarray
    scored: np.ndarray


Moments = tuple[
    np.ndarray, np.ndarray, np.ndarray
]  # of groups: counts, means and squared deviations (groups, layers, d_model)
Join = Callable[[Iterable[Moments]], Moments]
Direct = Callable[
    [Moments], tuple[np.ndarray, np.ndarray]
]  # of harmful and benign rows -> direction, mean (layers, d_model)


def extract_projections(
    model: Model,
    prompts: pl.DataFrame,
    folder: Path,
    fits: Callable[[pl.DataFrame], Fits],
    join: Join,
    direct: Direct,
    *,
    layers: Sequence[int] | None = None,
    position: str = "last",
    batch_tokens: int | None = None,
    name: str = NAME,
) -> Path:
    """Write moments and projections to `folder`; a killed run goes on where it stopped.

    Rows that no fit has anything to do with are not read.

    Args:
        model: An open model.
        prompts: Rows in the shape of `data.load_all`, those of fits with a label.
        folder: Gets NAME.safetensors and NAME.parquet (`data.store.projections`).
        fits: Row table, as an activations file of these prompts would have it -> who is fitted on what.
        join: Moments of parts -> of all (`fitting.moments.together`).
        direct: A fit's moments -> its direction (`fitting.moments.mass_mean`).
        layers: Block numbers, default all.
        position: As in `extract`, one.
        batch_tokens: Padded tokens a batch, default 2048.
        name: NAME.

    Returns:
        Path of the safetensors file.

    Raises:
        UserError: As `extract`, or what comes back is no number.
    """
    layers = checked_layers(model, layers)
    source = Source.of(model, prompts["prompt"].to_list(), (), position)
    rows = row_table(prompts, (), source.row_lengths)
    members, scored = fits(rows)
    harmful = (rows["label"] == "harmful").fill_null(False).to_numpy()
    groups = np.stack([members & harmful, members & ~harmful], axis=1)  # (fits, 2, rows)
    key = key_of(model, prompts, layers, position, ()) | {"fits": hashlib.sha256(groups.tobytes()).hexdigest()}
    tokens = batch_tokens or default_batch_tokens(model)

    def parts_of(step: str, own: np.ndarray, more: dict[str, str]) -> Parts:
        units = np.flatnonzero(own).tolist()
        plan = [[units[at] for at in batch] for batch in plan_batches(source.computed(model, units), tokens)]
        return Parts(folder, f"{name}-{step}", key | more, plan)

    first = parts_of("moments", np.any(members, axis=0), {})
    counts, means, squares = _moments(model, source, layers, tokens, first, groups, join)
    pairs = [direct((counts[fit], means[fit], squares[fit])) for fit in range(len(members))]
    weights = np.stack([weight for weight, _ in pairs], axis=1).astype(np.float32)  # (layers, fits, d_model)
    offsets = np.einsum("lkd,kld->lk", weights.astype(np.float64), np.stack([mean for _, mean in pairs]))
    projected = np.any(members, axis=0) | scored
    second = parts_of("rows", projected, {"along": hashlib.sha256(weights.tobytes() + offsets.tobytes()).hexdigest()})
    along = Along(torch.from_numpy(weights), torch.from_numpy(offsets))

    def project(plan: list[list[int]], most: int) -> np.ndarray:
        return torch.cat(source.read(model, plan, layers, most, along)).numpy()

    second.read(model, source, "projections", tokens, project, unit_bytes=4 * len(layers) * len(members))
    values = np.zeros((rows.height, len(layers), len(members)), np.float32)
    for units, part in second:
        values[units] = part
    path = folder / f"{name}.safetensors"
    write_table(path.with_suffix(".parquet"), rows.with_columns(projected=pl.Series(projected)))
    found = {"members": members, "counts": counts, "means": means, "squares": squares, "projections": values}
    save_projections(path, found, metadata_of(model, layers, position))
    first.remove()
    second.remove()
    return path


def _moments(
    model: Model, source: Source, layers: list[int], tokens: int, parts: Parts, groups: np.ndarray, join: Join
) -> list[np.ndarray]:
    """Counts (fits, 2), means and squared deviations (fits, 2, layers, d_model) of every fit's harmful and benign rows."""
    flat = groups.reshape(-1, groups.shape[-1])
    mask = torch.from_numpy(flat)

    def work(plan: list[list[int]], most: int) -> np.ndarray:
        return source.moments(model, plan, layers, most, mask).numpy()

    each = 4 * len(layers) * model.d_model
    parts.read(model, source, "moments", tokens, work, job_bytes=(1 + 2 * len(flat)) * each)
    joined = join((flat[:, units].sum(1).astype(np.float64), *part) for units, part in parts)
    return [one.reshape(*groups.shape[:2], *one.shape[1:]) for one in joined]
