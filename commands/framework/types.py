"""How option values are read: layers, numbers, rows a batch."""

from collections.abc import Callable
from datetime import date
from math import isfinite
from pathlib import Path
from typing import Any

import click

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
COUNT = click.IntRange(min=1)


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


def _layers(text: str) -> tuple[int, ...]:
    """Of `5`, `0-9`, `3,5,10-12`."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        if not first.isdecimal() or (dash and not (last.isdecimal() and int(first) <= int(last))):
            raise ValueError(f"{text!r} is not a list of layers such as 5, 0-9 or 3,5,10-12")
        if len(last or first) > 5:
            raise ValueError(f"{text!r}: no model has so many layers")
        numbers.extend(range(int(first), int(last or first) + 1))
    return tuple(numbers)


def _date(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise ValueError(f"{text!r} is no date such as 2024-07-26") from None


def _layer_or_auto(text: str) -> int | str:
    if text != "auto" and not text.isdecimal():
        raise ValueError(f"{text!r} is neither a layer such as 17 nor auto")
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


LAYERS, LAYER_OR_AUTO, FINITE = Read("layers", _layers), Read("layer", _layer_or_auto), Read("number", _finite)
NUMBERS = Read("numbers", lambda text: tuple(map(_finite, text.split(","))))
ROWS = Read("rows", _rows)
DATE = Read("date", _date)
