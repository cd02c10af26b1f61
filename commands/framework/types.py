"""How option values are read: layers, numbers, rows a batch."""

import os
from collections.abc import Callable
from datetime import date
from math import isfinite
from pathlib import Path
from typing import Any

import click

from data import contract as c
from data.contract import ALL_SERVE, LABELLED_GATE, gate_members, read_layers


class File(click.Path):
    """click's path of a file that is no device, which may have no end, such as /dev/zero."""

    def __init__(self, *, exists: bool = False) -> None:
        """As click's; with `exists` it has to be there."""
        super().__init__(exists=exists, dir_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check, or fail as a usage error."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if path.is_char_device() or path.is_block_device():
            self.fail(f"{str(path)!r} is a device and no file", param, ctx)
        return path


FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = File()
MOST = 10**9  # of anything that is counted
COUNT, ANY_COUNT, LAYER = click.IntRange(1, MOST), click.IntRange(0, MOST), click.IntRange(0, 99_999)
SEED = click.IntRange(0, c.MOST_SEED)


class Read(click.ParamType):
    """A value that a function reads; what it raises as a `ValueError` is a usage error."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        """Read with `read`; `name` is what help calls such values."""
        self.name, self.read = name, read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse, or fail as a usage error."""
        if isinstance(value, tuple):
            return value
        try:
            return self.read(str(value))
        except ValueError as error:
            return self.fail(str(error), param, ctx)


class Numbers(click.FloatRange):
    """click's range of numbers, in which `nan` would lie, which is neither smaller nor larger than any; nor `inf`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse, or fail as a usage error."""
        number = super().convert(value, param, ctx)
        if not isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


def _date(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise ValueError(f"{text!r} is no date such as 2024-07-26") from None


def _layer_or_auto(text: str) -> int | str:
    if text != "auto" and not text.isdecimal():
        raise ValueError(f"{text!r} is neither a layer such as 17 nor auto")
    if len(text) > 5:
        raise ValueError(f"{text!r}: no model has so many layers")
    return text if text == "auto" else int(text)


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if not isfinite(number):
        raise ValueError(f"{text!r} is not a finite number")
    return number


def _rows(text: str) -> int | str:
    """A number of rows, or lm-eval's `auto` or `auto:N`."""
    number = text.removeprefix("auto:")
    if text != "auto" and not (number.isdecimal() and int(number) > 0):
        raise ValueError(f"{text!r} is neither a number of rows nor auto")
    return int(text) if text.isdecimal() else text


def _share_or_none(text: str) -> float | str:
    if text == ALL_SERVE:
        return text
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise ValueError(f"{text!r} is neither a share between 0 and 1, such as 0.5, nor {ALL_SERVE}")
    return share


def _counts(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    odd = next((part for part in parts if not (part.isdecimal() and 0 < int(part[:10]) <= MOST)), None)
    if odd is not None:
        raise ValueError(f"{odd!r} is no number of tokens, as in 16,32,64")
    return tuple(sorted(set(map(int, parts))))


def _gate(text: str) -> str:
    """The name of a gate that is fitted, or of several joined."""
    if text == LABELLED_GATE:
        raise ValueError(f"{LABELLED_GATE} reads labels, and there is nothing to fit")
    gate_members(text)
    return text


HOLDOUT = Read("share", _share_or_none)
LAYERS, LAYER_OR_AUTO, FINITE = Read("layers", read_layers), Read("layer", _layer_or_auto), Read("number", _finite)
NUMBERS = Read("numbers", lambda text: tuple(map(_finite, text.split(","))))
ROWS, GATE = Read("rows", _rows), Read("gate", _gate)
DATE, COUNTS = Read("date", _date), Read("counts", _counts)
