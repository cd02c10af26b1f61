"""Fitting a method's own tensors to the activations of a run."""

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import polars as pl
import torch

from data import for_split
from data.contract import EDITS
from data.errors import UserError
from data.store.activations import Activations
from data.store.progress import progress
from interventions.methods.edits.fitted import FittedMethod
from interventions.methods.edits.rows import Rows

NEEDS_DECLINED = ("alphasteer", "false-refusal")


def fit_edit(path: Path, method: str, *, split: str = "train", declined: np.ndarray | None = None) -> FittedMethod:
    """A method's own tensors.

    Args:
        path: A `prompts` file of `extract`.
        method: A key of `EDITS`.
        split: Rows of this split, and those without any, are used.
        declined: (rows of the file,) bool, whether the model declines unsteered; for the methods of `NEEDS_DECLINED`.

    Raises:
        UserError: An unknown method, or rows that it needs are missing.
    """
    if method not in EDITS:
        raise UserError(f"unknown method {method!r}; there are {', '.join(EDITS)}")
    activations = Activations.open(path)
    groups = groups_of(activations.rows, split, declined)
    read = ("harmful", "benign", *(("declined", "harmless") if method in NEEDS_DECLINED else ()))
    for name in read:
        if not len(groups[name]):
            raise UserError(f"{method}: {MISSING[name]} in split {split!r}")
    fit = import_module(f"interventions.methods.edits.{method.replace('-', '_')}").fit
    found = fit(_layers(activations, groups, method))
    metadata = {
        **{key: activations.metadata[key] for key in ("model", "revision", "layers", "site", "position")},
        **{"method": method, "split": split, "data": ", ".join(sorted(activations.rows["dataset"].unique()))},
        "counts": json.dumps({name: len(groups[name]) for name in read}),
    }
    return FittedMethod({name: torch.from_numpy(value).float() for name, value in found.items()}, metadata)


MISSING = {
    "harmful": "no harmful row: pass other --data",
    "benign": "no benign row: `extract --benign NAME_OR_FILE` adds some",
    "declined": "no benign row that the model declines: `extract` prompts that it should answer and does not, by --data or --benign",
    "harmless": "no benign row that the model answers: `extract --benign NAME_OR_FILE` adds some",
}


def groups_of(table: pl.DataFrame, split: str, declined: np.ndarray | None) -> dict[str, np.ndarray]:
    """Row numbers of each group of `Rows`."""
    no = np.zeros(table.height, bool)
    marked = table.with_row_index("row").with_columns(declined=pl.Series(no if declined is None else declined))
    rows = for_split(marked, split)
    benign = pl.col("label") == "benign"
    answered = rows.filter(benign & ~pl.col("declined"))
    plain = answered.filter(pl.col("category").is_null())
    found = {
        "harmful": rows.filter(label="harmful"),
        "benign": rows.filter(benign),
        "declined": rows.filter(benign & pl.col("declined")),
        "harmless": answered if plain.is_empty() else plain,
    }
    return {name: part["row"].to_numpy() for name, part in found.items()}


def _layers(activations: Activations, groups: dict[str, np.ndarray], method: str) -> Iterator[Rows]:
    """One layer in memory at a time."""
    with progress(len(activations.layers), 0, f"vectors ({method})", unit="layer") as bar:
        for layer in activations.layers:
            yield Rows(
                layer, **{name: activations.layer(layer, rows).astype(np.float64) for name, rows in groups.items()}
            )
            bar.update(1)
