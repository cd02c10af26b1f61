"""Reading an activations file in slices: some rows at every layer, or one layer of some rows, never all of it."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from sys import float_info
from typing import Any

import numpy as np
import polars as pl
from safetensors import SafetensorError, safe_open

from data.errors import UserError
from data.store.tables import read_parquet

SLICE_BYTES = 64 << 20


@dataclass(frozen=True)
class Activations:
    """An activations file of `extract` and its row table; values stay on disk until they are asked for.

    Values are read, not mapped: pages of a mapped file count as the process's own memory, so that a pass over a
    large file would look (and, in a container, be limited) as if it held all of it.

    Attributes:
        path: The safetensors file.
        metadata: What `extract` noted: model, revision, layers, site, position, backend.
        rows: One row an activation, in the file's order: prompt columns, `n_tokens`, `suffix`.
        shape: (rows, layers, d_model).
    """

    path: Path
    metadata: dict[str, str]
    rows: pl.DataFrame
    shape: tuple[int, int, int]

    @classmethod
    def open(cls, path: Path) -> "Activations":
        """Read the header and the row table.

        Raises:
            UserError: The pair of files is not whole.
        """
        try:
            with safe_open(path, "np") as file:
                view = file.get_slice("activations")
                metadata, shape, kind, names = file.metadata() or {}, view.get_shape(), view.get_dtype(), file.keys()
            layers = json.loads(metadata["layers"])
            rows = read_parquet(path.with_suffix(".parquet"))
        except (SafetensorError, OSError, KeyError, ValueError, RecursionError, pl.exceptions.PolarsError) as error:
            raise UserError(f"{path}: not a readable activations file; run extract again ({error})") from None
        if not are_layers(layers):
            raise UserError(
                f"{path}: the layers in its metadata are not ascending numbers from 0 on; run extract again"
            )
        if kind != "F32" or len(names) != 1 or len(shape) != 3 or shape[1] != len(layers):
            raise UserError(f"{path}: not float32 (rows, layers, d_model) as its metadata says; run extract again")
        if shape[0] != rows.height:
            raise UserError(f"{path}: {shape[0]} rows beside {rows.height} in its table; run extract again")
        return cls(path, metadata, rows, (shape[0], shape[1], shape[2]))

    @property
    def layers(self) -> list[int]:
        """Block numbers along the second axis."""
        return json.loads(self.metadata["layers"])

    def slices(self, most_bytes: int = SLICE_BYTES) -> Iterator[tuple[int, np.ndarray]]:
        """Every row in slices of at most `most_bytes`: (first row, float32 (rows, layers, d_model))."""
        height, depth, width = self.shape
        step = max(1, most_bytes // max(1, depth * width * 4))
        with self.path.open("rb") as file:
            file.seek(self._start())
            for start in range(0, height, step):
                count = min(step, height - start)
                values = np.fromfile(file, "<f4", count * depth * width)
                if values.size < count * depth * width:
                    raise UserError(f"{self.path} is shorter than it says; run extract again")
                yield start, values.reshape(count, depth, width)

    def index(self, layer: int) -> int:
        """Where a block's output stands along the second axis.

        Raises:
            UserError: The file does not hold that layer.
        """
        if layer not in self.layers:
            raise UserError(f"no activations at layer {layer}; they are at {spans(self.layers)}")
        return self.layers.index(layer)

    def layer(self, number: int, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """One layer of some rows, in the order given: float32 (rows, d_model).

        Raises:
            UserError: The file does not hold that layer, or is cut short.
        """
        height, depth, width = self.shape
        chosen = range(height) if rows is None else rows
        values = np.empty((len(chosen), width), "<f4")
        first = self._start() + self.index(number) * width * 4
        with self.path.open("rb") as file:
            for at, row in enumerate(chosen):
                read = os.preadv(file.fileno(), [values[at].data], first + int(row) * depth * width * 4)
                if read < width * 4:
                    raise UserError(f"{self.path} is shorter than it says; run extract again")
        return values

    def _start(self) -> int:
        """Where the values begin: they are the file's only tensor, and so its tail."""
        height, depth, width = self.shape
        return self.path.stat().st_size - height * depth * width * 4


@dataclass(frozen=True)
class Position:
    """One position of a file that holds several of each prompt, their rows adjacent.

    Attributes:
        file: The file.
        at: Which of them.
        each: How many there are.
        layers: The blocks that are meant of those which the file holds.
    """

    file: Activations
    at: int
    each: int
    layers: list[int]

    def layer(self, number: int, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """One layer of some prompts, in the order given: float32 (prompts, d_model).

        Raises:
            UserError: As `Activations.layer`.
        """
        return self.file.layer(number, np.asarray(rows) * self.each + self.at)


def are_layers(value: Any) -> bool:
    """Whether what came out of a file's JSON is a list of block numbers: ascending, each once, at least one."""
    whole = isinstance(value, list) and all(type(one) is int for one in value)
    return whole and bool(value) and value[0] >= 0 and all(a < b for a, b in pairwise(value))


def are_numbers(value: Any) -> bool:
    """Whether what came out of a file's JSON is a list of finite numbers."""
    return isinstance(value, list) and all(type(one) in (int, float) and abs(one) <= float_info.max for one in value)


def spans(layers: Sequence[int]) -> str:
    """Layer numbers for a person: `0 to 29`, or a list."""
    whole = list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]} to {layers[-1]}" if whole and len(layers) > 2 else ", ".join(map(str, layers))
