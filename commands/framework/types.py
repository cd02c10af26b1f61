"""How option values are read: layers, numbers, rows a batch."""

from pathlib import Path
from typing import Any

import click

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
COUNT = click.IntRange(min=1)


class Layers(click.ParamType):
    """Block numbers: `5`, `0-9`, `3,5,10-12`."""

    name = "layers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Parse, or fail as a usage error."""
        if isinstance(value, tuple):
            return value
        try:
            numbers: list[int] = []
            for part in str(value).split(","):
                first, dash, last = part.strip().partition("-")
                span = range(int(first), int(last) + 1) if dash else [int(first)]
                if not span:
                    raise ValueError
                numbers.extend(span)
        except ValueError:
            self.fail(f"{value!r} is not a list of layers such as 5, 0-9 or 3,5,10-12", param, ctx)
        return tuple(numbers)


class LayerOrAuto(click.ParamType):
    """A block number, or `auto`."""

    name = "layer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Parse, or fail as a usage error."""
        if value == "auto" or isinstance(value, int):
            return value
        if not str(value).isdecimal():
            self.fail(f"{value!r} is neither a layer such as 17 nor auto", param, ctx)
        return int(value)


class Finite(click.ParamType):
    """A number that is one."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse, or fail as a usage error."""
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number", param, ctx)
        if number != number or number in (float("inf"), float("-inf")):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class Numbers(click.ParamType):
    """Numbers with commas between them: `-0.1,-0.3`."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Parse, or fail as a usage error."""
        if isinstance(value, tuple):
            return value
        return tuple(Finite().convert(part, param, ctx) for part in str(value).split(","))


class Rows(click.ParamType):
    """A number of rows, or lm-eval's `auto` or `auto:N`."""

    name = "rows"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Parse, or fail as a usage error."""
        text = str(value)
        number = text.removeprefix("auto:") if text.startswith("auto:") else text
        if text != "auto" and not (number.isdecimal() and int(number) > 0):
            self.fail(f"{value!r} is neither a number of rows nor auto", param, ctx)
        return int(text) if text.isdecimal() else text
