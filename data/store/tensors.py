"""Small safetensors artefacts (vectors, probe, low-rank map): writing and reading them, and whose model they fit."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from data.errors import UserError
from data.store.digests import making

logger = logging.getLogger(__name__)


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and their metadata; the file appears whole."""
    with making(path) as unfinished:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished, dict(metadata))


def load_tensors(
    path: Path, what: str, form: str | Sequence[str], needed: Iterable[str] = ()
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read every tensor, as float32, and the metadata.

    Args:
        path: A safetensors file; others are never unpickled.
        what: What it should be, for a message.
        form: What its metadata's `format` must say, or one of several.
        needed: Metadata keys that it must have.

    Raises:
        UserError: The file is missing, is no such file, lacks what the format asks for, or holds what is no number.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable {what} file ({error})") from None
    missing = [name for name in ("format", *needed) if name not in metadata]
    forms = [form] if isinstance(form, str) else form
    if missing or metadata["format"] not in forms or not tensors:
        raise UserError(f"{path}: not a {what} file of this tool (lacks {', '.join(missing) or ' or '.join(forms)})")
    odd = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if odd:
        raise UserError(f"{path}: {odd[0]!r} holds values that are no numbers")
    return tensors, metadata


def check_shapes(path: Path, tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Are these exactly the wanted tensors?

    Raises:
        UserError: One is missing, is too many, or has another shape.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != dict(wanted):
        raise UserError(f"{path}: tensors {_listed(shapes)}, where {_listed(wanted)} belong")


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shapes[name]}" for name in sorted(shapes)) or "none"


@contextmanager
def whole_pair(path: Path, what: str, command: str) -> Iterator[None]:
    """Where a safetensors file and the row table beside it are read: whatever is damaged in either is one line.

    Raises:
        UserError: One of the two can't be read.
    """
    try:
        yield
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError, pl.exceptions.PolarsError) as error:  # fmt: skip
        raise UserError(f"{path}: not a readable {what}; run {command} again ({error})") from None
