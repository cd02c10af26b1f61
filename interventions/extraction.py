"""Residual activations at chosen layers and positions: one pass, stopped after the deepest layer, streamed to disk."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nnsight
import polars as pl
import torch

from data import fingerprint
from data.errors import UserError
from interventions.activations import SITE
from interventions.encoding import (
    BATCH_TOKENS,
    Encoded,
    encode,
    pack_batch,
    pad_batch,
    pad_id,
    plan_batches,
    suffix_ids,
)
from interventions.journal import Journal
from interventions.models import Model
from interventions.progress import progress
from interventions.rundir import replacing

POSITIONS = ("last", "mean", "suffix")
RESULT_BYTES = 16 << 20  # of one batch: what a line, and this machine's memory, can take


def extract(
    model: Model,
    prompts: pl.DataFrame,
    folder: Path,
    *,
    layers: Sequence[int] | None = None,
    position: str = "last",
    suffixes: Sequence[str] = (),
    batch_tokens: int = BATCH_TOKENS,
) -> Path:
    """Write the residual stream of every prompt to `folder`, and go on where a killed run stopped.

    Args:
        model: An open model.
        prompts: Rows in the shape of `data.load_all`.
        folder: Gets NAME.safetensors, float32 `activations` (rows, layers, d_model), and NAME.parquet, its rows;
            NAME is `prompts`, or `pairs` with suffixes (one row for each prompt and suffix, adjacent).
        layers: Block numbers, default all.
        position: `last` token of the rendered prompt; `mean` over the user's tokens; `suffix`, its last token.
        suffixes: Texts to follow each rendered prompt, with position `suffix`.
        batch_tokens: Padded tokens a batch.

    Returns:
        Path of the safetensors file.

    Raises:
        UserError: A layer that the model does not have, or position and suffixes that don't go together.
    """
    layers = checked_layers(model, layers)
    if (position == "suffix") != bool(suffixes):
        raise UserError("--position suffix and --suffix TEXT go together: give both or neither")
    name = "pairs" if suffixes else "prompts"
    texts = prompts["prompt"].to_list()
    lengths = [len(row) for row in encode(model.tokenizer, texts, suffixes).ids]
    source = _Source.of(model, texts, suffixes, position)
    key = {
        "model": model.name,
        "revision": model.revision,
        "template": model.template_hash,
        "dtype": model.dtype,
        "data": fingerprint(prompts),
        "layers": layers,
        "position": position,
        "suffixes": list(suffixes),
    }
    shape = (len(lengths), len(layers), model.d_model)
    metadata = {
        "model": model.name,
        "revision": model.revision,
        "layers": json.dumps(layers),
        "site": SITE,
        "position": position,
        "backend": model.backend,
        "dtype": model.dtype,
        "template": model.template_hash,
    }
    journal_path, unfinished = folder / f".{name}.journal", folder / f".{name}.safetensors"
    if not unfinished.exists():
        journal_path.unlink(missing_ok=True)
    most_rows = max(1, RESULT_BYTES // (4 * shape[1] * shape[2] * source.rows_each))
    journal = Journal(journal_path, key, plan_batches(source.lengths, batch_tokens, most_rows))
    if not journal.resumed:
        _begin(unfinished, shape, metadata)
    _run(model, source, layers, journal, unfinished, shape)
    with replacing(folder / f"{name}.parquet") as path:
        _row_table(prompts, suffixes, lengths).write_parquet(path)
    unfinished.replace(folder / f"{name}.safetensors")
    journal.remove()
    return folder / f"{name}.safetensors"


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


def read_residual(
    model: Model,
    batches: Sequence[dict[str, torch.Tensor]],
    layers: Sequence[int],
    weights: Sequence[torch.Tensor] | None = None,
    ends: Sequence[Sequence[int]] | None = None,
) -> list[torch.Tensor]:
    """Forward passes, one a batch, each stopped after the deepest of `layers`; they travel together.

    Args:
        model: An open model.
        batches: Left-padded batches of `encoding.pad_batch`.
        layers: Ascending block numbers.
        weights: For each batch (rows, tokens), summing to 1 a row: the mean to take; None reads the last token.
        ends: For each batch, of `encoding.pack_batch`, the positions to read instead.

    Returns:
        For each batch float32 (rows, layers, d_model), on the CPU; with `ends` (rows · ends, layers, d_model), those
        of a row adjacent.
    """
    blocks = [model.layers[layer] for layer in layers]
    network = model.nnsight
    nothing = [None] * len(batches)
    parts = list(zip(batches, weights or nothing, ends or nothing, strict=True))
    with network.session(backend=model.door.backend(network)):
        kept = nnsight.save([])
        with torch.no_grad():
            for batch, mean, places in parts:
                with network.trace(batch) as tracer:
                    states = []
                    for block in blocks:
                        output = block.output
                        hidden = output[0] if isinstance(output, tuple) else output
                        if places is not None:
                            states.append(hidden[:, places, :].flatten(0, 1).cpu())
                        elif mean is None:
                            states.append(hidden[:, -1, :].cpu())
                        else:
                            mixed = torch.einsum("btd,bt->bd", hidden.float(), mean.to(hidden.device))
                            states.append(mixed.cpu())
                    kept.append(torch.stack(states, dim=1))
                    tracer.stop()
    return [states.float() for states in kept]


def mean_weights(encoded: Encoded, rows: Sequence[int]) -> torch.Tensor:
    """(rows, tokens) weights of a left-padded batch that average over each row's user tokens."""
    width = max(len(encoded.ids[row]) for row in rows)
    weights = torch.zeros(len(rows), width)
    for at, row in enumerate(rows):
        left = width - len(encoded.ids[row])
        start, stop = encoded.user[row]
        weights[at, left + start : left + stop] = 1 / (stop - start)
    return weights


@dataclass(frozen=True)
class _Source:
    """What is read, unit by unit: a row, or a prompt with all its suffixes behind it.

    Attributes:
        encoded: Token ids of each unit.
        endings: Token ids of the suffixes that share each unit's computation; none where units are rows.
        position: `last`, `mean` or `suffix`.
    """

    encoded: Encoded
    endings: list[list[int]]
    position: str

    @classmethod
    def of(cls, model: Model, texts: Sequence[str], suffixes: Sequence[str], position: str) -> "_Source":
        """Suffixes share their prompt's computation where the model takes a mask for it; elsewhere all is spelled out."""
        if suffixes and model.takes_masks:
            return cls(encode(model.tokenizer, texts), suffix_ids(model.tokenizer, suffixes), position)
        return cls(encode(model.tokenizer, texts, suffixes), [], position)

    @property
    def rows_each(self) -> int:
        """Rows of the artefact that come of one unit."""
        return max(1, len(self.endings))

    @property
    def lengths(self) -> list[int]:
        """Tokens of each unit."""
        tail = sum(map(len, self.endings))
        return [len(ids) + tail for ids in self.encoded.ids]

    def read(self, model: Model, plan: Sequence[Sequence[int]], layers: Sequence[int]) -> list[torch.Tensor]:
        """Residuals of batches of units: for each (rows, layers, d_model)."""
        padding = pad_id(model.tokenizer)
        rows = [[self.encoded.ids[unit] for unit in units] for units in plan]
        if self.endings:
            packed = [pack_batch(ids, self.endings, padding, model.device) for ids in rows]
            return read_residual(model, [batch for batch, _ in packed], layers, ends=[ends for _, ends in packed])
        weights = [mean_weights(self.encoded, units) for units in plan] if self.position == "mean" else None
        return read_residual(model, [pad_batch(ids, padding, model.device) for ids in rows], layers, weights)


def _run(
    model: Model, source: _Source, layers: list[int], journal: Journal, path: Path, shape: tuple[int, int, int]
) -> None:
    unit_bytes = source.rows_each * shape[1] * shape[2] * 4
    start = path.stat().st_size - shape[0] * shape[1] * shape[2] * 4
    left = sum(len(units) for _, units in journal.todo()) * source.rows_each

    def read(group: tuple[int, ...]) -> list[torch.Tensor]:
        return source.read(model, [journal.plan[number] for number in group], layers)

    with path.open("r+b") as file, progress(shape[0], shape[0] - left, "extract", model.door.watch) as bar:
        for group, results in model.door.each(journal, read, unit_bytes * max(map(len, journal.plan), default=1)):
            for number, result in zip(group, results, strict=True):
                values = result.numpy().astype("<f4")
                if not (values == values).all():
                    raise UserError(f"activations of {model.name!r} are not numbers; try --dtype float32")
                units = journal.plan[number]
                for unit, value in zip(units, values.reshape(len(units), -1), strict=True):
                    os.pwrite(file.fileno(), value.tobytes(), start + unit * unit_bytes)
                bar.update(len(values))
            journal.finish(dict.fromkeys(group))


def _begin(path: Path, shape: tuple[int, int, int], metadata: dict[str, str]) -> None:
    """A safetensors file of the final size; rows are written into their places as they come.

    The library writes only whole tensors, which would need prompts × layers of memory. Format: 8 bytes little-endian
    header length, JSON header padded with blanks to 8 bytes, data (https://github.com/huggingface/safetensors#format).
    """
    size = shape[0] * shape[1] * shape[2] * 4
    tensor = {"dtype": "F32", "shape": list(shape), "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": metadata, "activations": tensor}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)


def _row_table(prompts: pl.DataFrame, suffixes: Sequence[str], lengths: list[int]) -> pl.DataFrame:
    counted = pl.Series("n_tokens", lengths, pl.Int64)
    if not suffixes:
        return prompts.with_columns(counted, pl.lit(None, pl.String).alias("suffix"))
    repeated = prompts.with_columns(pl.lit(list(suffixes)).alias("suffix")).explode("suffix")
    return repeated.with_columns(counted).select(*prompts.columns, "n_tokens", "suffix")
