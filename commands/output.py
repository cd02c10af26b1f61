"""What people and scripts see: a table, one line, or one JSON object for each command."""

import json
from typing import TYPE_CHECKING, Any

import click

from data.errors import UserError

if TYPE_CHECKING:
    import polars as pl


def emit(name: str, summary: dict[str, Any], as_json: bool) -> None:
    """A command's summary on stdout, for people or as one JSON object."""
    if as_json:
        plain = {k: v.to_dicts() if hasattr(v, "to_dicts") else v for k, v in summary.items()}
        click.echo(json.dumps({"command": name, **plain}, ensure_ascii=False, default=str))
        return
    table = summary.pop("table", None)
    if table is not None:
        click.echo(as_text(table))
    wrote = f" -> {summary.pop('wrote')}" if "wrote" in summary else ""
    click.echo(f"{name}: {', '.join(f'{key} {_shown(value)}' for key, value in summary.items())}{wrote}")


def emit_progress(summary: dict[str, Any]) -> None:
    """A line on stderr for an input that was made on the way."""
    warn(f"made {summary['wrote']}")


def as_text(table: "pl.DataFrame") -> str:
    """A table for a terminal; control characters of generated text are shown, not sent."""
    import polars as pl

    safe = table.with_columns(
        pl.col(pl.String).map_elements(_printable, return_dtype=pl.String) if pl.String in table.dtypes else []
    )
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True,
                   fmt_str_lengths=60, tbl_width_chars=160, float_precision=3):  # fmt: skip
        return str(safe)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def warn(message: str) -> None:
    """One line on stderr."""
    click.echo(message, err=True)


def one_line(error: Exception) -> str:
    """What is wrong, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (UserError, click.ClickException)):
        return text
    if isinstance(error, OSError):
        return f"{text}; check the path, its permissions and the free space"
    return f"{type(error).__name__}: {text[:300]} (--debug shows where)"
