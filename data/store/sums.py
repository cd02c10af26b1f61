"""Sums of activations: what is left of them where they were added up by the server that computed them."""

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

NAME = "sums"


@dataclass(frozen=True)
class Sums:
    """A file of sums and its row table, which tells what was added to which.

    Attributes:
        path: The safetensors file.
        metadata: What an activations file of the same rows would have.
        rows: One row an activation: prompt columns, `n_tokens`, `suffix`, `group` (the sum that it counts to, or null).
        totals: float64 (groups, layers, d_model).
        norms: float64 (groups, layers), of each group's rows the sum of norms.
    """

    path: Path
    metadata: dict[str, str]
    rows: pl.DataFrame
    totals: np.ndarray
    norms: np.ndarray

    @classmethod
    def open(cls, path: Path) -> "Sums":
        """Read it.

        Raises:
            UserError: The pair of files is not whole.
        """
        with whole_pair(path, "file of sums", "vectors"):
            with safe_open(path, "np") as file:
                metadata, totals, norms = file.metadata() or {}, file.get_tensor("sums"), file.get_tensor("norms")
            layers, rows = json.loads(metadata["layers"]), read_parquet(path.with_suffix(".parquet"))
            count = 1 + max(rows["group"].drop_nulls(), default=-1)
        good = are_layers(layers) and totals.ndim == 3 and totals.shape[:2] == norms.shape == (count, len(layers))
        if not good or not (np.isfinite(totals).all() and np.isfinite(norms).all()):
            raise UserError(f"{path}: its sums are not those of its row table; remove it and run vectors again")
        return cls(path, metadata, rows, totals, norms)

    @property
    def layers(self) -> list[int]:
        """Block numbers along the second axis."""
        return json.loads(self.metadata["layers"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, layers and d_model of the activations that were added up."""
        return self.rows.height, *self.totals.shape[1:]

    def of(self, member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The sums of groups of rows (groups, layers, d_model), and of all their norms (layers,).

        Args:
            member: For each row its group, or -1.

        Raises:
            UserError: Other groups were added up.
        """
        if not np.array_equal(member, self.rows["group"].fill_null(-1).to_numpy()):
            raise UserError(f"{self.path} holds sums over other rows; run vectors again, or extract the activations")
        return self.totals, self.norms.sum(0)


def save_sums(path: Path, sums: np.ndarray, metadata: dict[str, str]) -> None:
    """Write (groups, layers, d_model + 1) sums whose last column is that of norms; the row table goes beside it."""
    tensors = {"sums": torch.from_numpy(sums[..., :-1].copy()), "norms": torch.from_numpy(sums[..., -1].copy())}
    save_tensors(path, tensors, metadata)
