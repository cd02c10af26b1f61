"""Activation files written by hand, so that tests of what is computed from them need no model."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors.numpy import save_file

from data import PROMPT_COLUMNS

CATEGORIES = ("feelings", "weapons")


def prompt_rows(n: int, split: str | None = None, categories: tuple[str, ...] = CATEGORIES) -> list[dict[str, Any]]:
    """n rows in turn: each category harmful, plain benign, near-miss benign."""
    kinds = [(name, "harmful") for name in categories] + [(None, "benign"), (categories[0], "benign")]
    return [
        {
            "id": f"{split}-{at}",
            "prompt": f"prompt {split} {at}",
            "category": kinds[at % len(kinds)][0],
            "label": kinds[at % len(kinds)][1],
            "dataset": "made",
            "split": split,
        }
        for at in range(n)
    ]


def write(
    folder: Path,
    values: np.ndarray,
    rows: Sequence[Mapping[str, Any]],
    *,
    suffixes: tuple[str, ...] = (),
    layers: list[int] | None = None,
    **metadata: str,
) -> Path:
    """values (rows, layers, d_model), or (rows × suffixes, …) with the suffixes of a row adjacent."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("pairs.safetensors" if suffixes else "prompts.safetensors")
    noted = {
        "model": "made",
        "revision": "1",
        "layers": json.dumps(layers or list(range(values.shape[1]))),
        "site": "resid_post",
        "position": "suffix" if suffixes else "last",
        "backend": "local",
    }
    save_file({"activations": np.ascontiguousarray(values, np.float32)}, path, noted | metadata)
    table = [{**row, "n_tokens": 7, "suffix": suffix} for row in rows for suffix in (suffixes or (None,))]
    schema = dict.fromkeys(PROMPT_COLUMNS, pl.String) | {"n_tokens": pl.Int64, "suffix": pl.String}
    pl.DataFrame(table, schema).write_parquet(path.with_suffix(".parquet"))
    return path


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of two vectors."""
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
