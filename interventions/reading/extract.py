"""Residual activations at chosen layers and positions: stopped after the deepest layer, streamed to disk.

What prompts begin with and what their suffixes share is computed once.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch

from data import fingerprint
from data.contract import SITE
from data.errors import UserError
from data.store.digests import enter
from data.store.files import check_replaceable, open_own, reserve, room_for, settle, write_all
from data.store.journal import Journal
from data.store.progress import progress
from data.store.rundir import replacing
from data.store.tables import write_table
from interventions.model.model import Model
from interventions.reading.batches import plan_batches
from interventions.reading.budget import Budget, default_batch_tokens
from interventions.reading.residual import WEIGHTS, Source

JOIN = "+"  # of positions that are read in one pass
RESULT_BYTES = 16 << 20  # of one batch: what a line, and this machine's memory, can take


def extract(
    model: Model,
    prompts: pl.DataFrame,
    folder: Path,
    *,
    layers: Sequence[int] | None = None,
    position: str = "last",
    suffixes: Sequence[str] = (),
    batch_tokens: int | None = None,
    name: str | None = None,
) -> Path:
    """Write the residual stream of every prompt to `folder`, and go on where a killed run stopped.

    Args:
        model: An open model.
        prompts: Rows in the shape of `data.load_all`.
        folder: Gets NAME.safetensors, float32 `activations` (rows, layers, d_model), and NAME.parquet, its rows;
            NAME is `prompts`, or `pairs` with suffixes (one row for each prompt and suffix, adjacent).
        layers: Block numbers, default all.
        position: `last` token of the rendered prompt; `mean` over the user's tokens; `instruction`, the last of these;
            `suffix`, its last token. Several of the first three joined by `+` are read in one pass, a row each.
        suffixes: Texts to follow each rendered prompt, with position `suffix`.
        batch_tokens: Padded tokens a batch, default 2048, on a GPU as many as its memory holds.
        name: NAME, for what gates read.

    Returns:
        Path of the safetensors file.

    Raises:
        UserError: A layer that the model does not have, or position and suffixes that don't go together.
    """
    layers = checked_layers(model, layers)
    if (position == "suffix") != bool(suffixes):
        raise UserError("--position suffix and --suffix TEXT go together: give both or neither")
    name = name or ("pairs" if suffixes else "prompts")
    texts = prompts["prompt"].to_list()
    source = Source.of(model, texts, suffixes, *position.split(JOIN))
    batch_tokens = batch_tokens or default_batch_tokens(model)
    key = key_of(model, prompts, layers, position, suffixes)
    shape = (len(source.encoded) * source.rows_each, len(layers), model.d_model)
    metadata = metadata_of(model, layers, position)
    journal_path, unfinished = folder / f".{name}.journal", folder / f".{name}.safetensors"
    if not unfinished.exists():
        journal_path.unlink(missing_ok=True)
    most_rows = max(1, RESULT_BYTES // (4 * shape[1] * shape[2] * source.rows_each))
    journal = Journal(journal_path, key, plan_batches(source.computed(model), batch_tokens, most_rows), unfinished)
    if not journal.resumed:
        _begin(unfinished, shape, metadata)
    _run(model, source, layers, journal, unfinished, shape, batch_tokens)
    write_table(folder / f"{name}.parquet", row_table(prompts, suffixes, source.row_lengths, source.positions))
    settle(unfinished)
    check_replaceable(folder / f"{name}.safetensors")
    enter(unfinished, folder / f"{name}.safetensors")
    unfinished.replace(folder / f"{name}.safetensors")
    settle(folder)
    journal.remove()
    return folder / f"{name}.safetensors"


def travelling_bytes(model: Model, positions: Sequence[str]) -> int:
    """Bytes of a number that comes back: the model's own type, but where a mean over tokens is taken, which is float32's."""
    return 4 if any(position in WEIGHTS for position in positions) else getattr(torch, model.dtype).itemsize


def key_of(
    model: Model, prompts: pl.DataFrame, layers: list[int], position: str, suffixes: Sequence[str]
) -> dict[str, Any]:
    """What reading goes on for: another key, another journal."""
    return {
        "model": model.name,
        "revision": model.revision,
        "template": model.template_hash,
        "dtype": model.dtype,
        **model.held,
        "data": fingerprint(prompts),
        "layers": layers,
        "position": position,
        "suffixes": list(suffixes),
    }


def metadata_of(model: Model, layers: list[int], position: str) -> dict[str, str]:
    """What a file says of where its values were read."""
    return {
        "model": model.name,
        "revision": model.revision,
        "layers": json.dumps(layers),
        "site": SITE,
        "position": position,
        "backend": model.backend.kind,
        "dtype": model.dtype,
        **model.held,
        "template": model.template_hash,
    }


def checked_layers(model: Model, layers: Sequence[int] | None) -> list[int]:
    """Layers in ascending order without repeats; all of them for None.

    Raises:
        UserError: The model has no such layer.
    """
    if layers is None:
        return list(range(model.n_layers))
    odd = [layer for layer in layers if not 0 <= layer < model.n_layers]
    if odd:
        raise UserError(f"layer {odd[0]}: model {model.name!r} has layers 0 to {model.n_layers - 1}")
    return sorted(set(layers))


def _run(
    model: Model,
    source: Source,
    layers: list[int],
    journal: Journal,
    path: Path,
    shape: tuple[int, int, int],
    tokens: int,
) -> None:
    unit_bytes = source.rows_each * shape[1] * shape[2] * 4
    travels = unit_bytes * travelling_bytes(model, source.positions) // 4
    batch_bytes = travels * max(map(len, journal.plan), default=1)
    start = path.stat().st_size - shape[0] * shape[1] * shape[2] * 4
    units_left = sum(len(units) for _, units in journal.todo())
    left = units_left * source.rows_each
    model.backend.announce(f"extract: {left:,} rows", journal, batch_bytes, travels * units_left)
    budget = Budget(tokens)

    def read(group: tuple[int, ...]) -> list[torch.Tensor]:
        plan = [journal.plan[number] for number in group]
        if len(group) > 1:  # too much for a server: the backend sends it in halves
            return source.read(model, plan, layers, tokens)
        smallest = min(source.computed(model, plan[0]))
        return budget.spend(lambda most: source.read(model, plan, layers, most), smallest, model.backend.is_remote)

    with (
        room_for(path),
        open_own(path, "r+b") as file,
        progress(shape[0], shape[0] - left, "extract", model.backend.watch) as bar,
    ):
        for group, results in model.backend.each(journal, read, batch_bytes):
            for number, result in zip(group, results, strict=True):
                values = result.numpy().astype("<f4")
                if not (values == values).all():
                    raise UserError(f"activations of {model.name!r} are not numbers; try --dtype float32")
                units = journal.plan[number]
                for unit, value in zip(units, values.reshape(len(units), -1), strict=True):
                    write_all(file.fileno(), value.tobytes(), start + unit * unit_bytes)
                bar.update(len(values))
            os.fsync(file.fileno())  # what the journal calls done must be there after a power cut too
            journal.finish(dict.fromkeys(group))


def _begin(path: Path, shape: tuple[int, int, int], metadata: dict[str, str]) -> None:
    """A safetensors file of the final size, with the room for it; rows are written into their places as they come.

    The library writes only whole tensors, which would need prompts × layers of memory. Format: 8 bytes little-endian
    header length, JSON header padded with blanks to 8 bytes, data (https://github.com/huggingface/safetensors#format).
    """
    size = shape[0] * shape[1] * shape[2] * 4
    tensor = {"dtype": "F32", "shape": list(shape), "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": metadata, "activations": tensor}).encode()
    header += b" " * (-len(header) % 8)
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        reserve(file.fileno(), 8 + len(header) + size)
        file.write(len(header).to_bytes(8, "little") + header)


def row_table(
    prompts: pl.DataFrame, suffixes: Sequence[str], lengths: list[int], positions: Sequence[str] = ()
) -> pl.DataFrame:
    """One row an activation: the prompts' columns, `n_tokens` and `suffix`, and of several positions `position`."""
    counted = pl.Series("n_tokens", lengths, pl.Int64)
    if len(positions) > 1:
        each = prompts.with_columns(pl.lit(list(positions)).alias("position")).explode("position")
        return each.with_columns(counted, pl.lit(None, pl.String).alias("suffix"))
    if not suffixes:
        return prompts.with_columns(counted, pl.lit(None, pl.String).alias("suffix"))
    repeated = prompts.with_columns(pl.lit(list(suffixes)).alias("suffix")).explode("suffix")
    return repeated.with_columns(counted).select(*prompts.columns, "n_tokens", "suffix")
