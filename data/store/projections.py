"""Moments of activations, and rows' projections: what is left of activations that a mass-mean probe was fitted to on a server.

Each of some fits has rows that it is fitted on, of which there are moments, and so a direction; every row that was read has its
projection on each of these.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from safetensors import safe_open

from data.errors import UserError
from data.store.activations import are_layers
from data.store.tables import read_parquet
from data.store.tensors import save_tensors, whole_pair

NAME, CARRIED = "projections", "carried"
TENSORS = ("members", "counts", "means", "squares", "projections")


@dataclass(frozen=True)
class Projections:
    """A file of moments and projections, and its row table.

    Attributes:
        path: The safetensors file.
        metadata: What an activations file of the same rows would have.
        rows: One row an activation: prompt columns, `n_tokens`, `suffix`, `projected` (whether it was).
        members: bool (fits, rows), who is fitted on what.
        counts: float64 (fits, 2), harmful and benign rows of each.
        means: float64 (fits, 2, layers, d_model), their means.
        squares: float64 (fits, 2, layers, d_model), their squared deviations from these, added up.
        projections: float32 (rows, layers, fits), (h − mean) · weight of each fit, 0 where a row was not projected.
    """

    path: Path
    metadata: dict[str, str]
    rows: pl.DataFrame
    members: np.ndarray
    counts: np.ndarray
    means: np.ndarray
    squares: np.ndarray
    projections: np.ndarray

    @classmethod
    def open(cls, path: Path) -> "Projections":
        """Read it.

        Raises:
            UserError: The pair of files is not whole.
        """
        with whole_pair(path, "file of projections", "probe"):
            with safe_open(path, "np") as file:
                metadata, found = file.metadata() or {}, [file.get_tensor(name) for name in TENSORS]
            layers, rows = json.loads(metadata["layers"]), read_parquet(path.with_suffix(".parquet"))
            projected = rows["projected"].to_numpy().astype(bool)
        members, counts, means, squares, projections = found
        good = are_layers(layers) and members.ndim == 2 and means.ndim == 4
        if good:
            fits, (height, depth) = len(members), (rows.height, len(layers))
            good = (
                members.shape == (fits, height)
                and counts.shape == (fits, 2)
                and means.shape == squares.shape == (fits, 2, depth, means.shape[-1])
                and projections.shape == (height, depth, fits)
                and not members[:, ~projected].any()
            )
        if not good or not all(np.isfinite(part).all() for part in found):
            raise UserError(f"{path}: its projections are not those of its row table; remove it and run probe again")
        return cls(path, metadata, rows, members.astype(bool), counts, means, squares, projections)

    @property
    def layers(self) -> list[int]:
        """Block numbers."""
        return json.loads(self.metadata["layers"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, layers and d_model of the activations."""
        return self.rows.height, len(self.layers), self.means.shape[-1]

    def index(self, layer: int) -> int:
        """Where a block's output stands among the layers.

        Raises:
            UserError: It was not read.
        """
        if layer not in self.layers:
            raise UserError(f"no projections at layer {layer}; they are at {', '.join(map(str, self.layers))}")
        return self.layers.index(layer)

    def fit_on(self, rows: np.ndarray) -> int:
        """The fit on exactly these rows.

        Raises:
            UserError: There is none.
        """
        wanted = np.zeros(self.rows.height, bool)
        wanted[rows] = True
        found = np.flatnonzero((self.members == wanted).all(1))
        if not len(found):
            raise UserError(
                f"{self.path} holds projections of fits to other rows; run probe again, or extract the activations"
            )
        return int(found[0])

    def along(self, layer: int, fit: int, rows: np.ndarray) -> np.ndarray:
        """Projections of some rows, in the order given: float32 (rows,).

        Raises:
            UserError: One was not projected.
        """
        if not self.rows["projected"].to_numpy()[rows].all():
            raise UserError(f"{self.path} lacks rows; run probe again, or extract the activations")
        return self.projections[rows, self.index(layer), fit]


@dataclass(frozen=True)
class AtLayer:
    """One layer's projections where activations are asked for: a fit's number stands for a layer's, and a row is one number wide.

    Attributes:
        file: The file.
        number: The layer.
    """

    file: Projections
    number: int

    @property
    def layers(self) -> list[int]:
        """The fits."""
        return list(range(len(self.file.members)))

    def layer(self, number: int, rows: np.ndarray) -> np.ndarray:
        """Projections of some rows on a fit's direction: float32 (rows, 1).

        Raises:
            UserError: One was not projected.
        """
        return self.file.along(self.number, number, rows)[:, None]


def save_projections(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write the tensors of `TENSORS`, as `Projections` has them; the row table goes beside."""
    held = tensors | {"members": tensors["members"].astype(np.uint8)}
    save_tensors(path, {name: torch.from_numpy(np.ascontiguousarray(held[name])) for name in TENSORS}, metadata)
