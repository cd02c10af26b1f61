"""What people and scripts see: a table, one line, or one JSON object for each command."""

import json
from typing import TYPE_CHECKING, Any

import click

from data.errors import UserError
from data.store.files import is_full, no_room

if TYPE_CHECKING:
    import polars as pl

Summary = dict[str, Any]  # what a command says of what it did; a `table`, and where it `wrote`, are shown apart


def emit(name: str, summary: Summary, as_json: bool) -> None:
    """A command's summary on stdout, for people or as one JSON object."""
    if as_json:
        plain = {k: v.to_dicts() if hasattr(v, "to_dicts") else v for k, v in summary.items()}
        click.echo(json.dumps({"command": name, **plain}, ensure_ascii=False, default=str))
        return
    table, remote = summary.pop("table", None), summary.pop("remote", {})
    if table is not None:
        click.echo(as_text(table))
    wrote = f" -> {summary.pop('wrote')}" if "wrote" in summary else ""
    words = [*(f"{key} {_shown(value)}" for key, value in summary.items()), *_traffic(remote)]
    if words:
        click.echo(f"{name}: {', '.join(words)}{wrote}")


def _traffic(counts: dict[str, int]) -> list[str]:
    """What a server had to do with it, for people: `jobs 3 (1 collected), 0.1 MB sent, 4.4 MB received`."""
    if not counts:
        return []
    also = [f"{counts[name]} {name}" for name in ("collected", "retried") if counts[name]]
    jobs = f"jobs {counts['jobs']}" + (f" ({', '.join(also)})" if also else "")
    return [jobs, *(f"{counts[name] / 1e6:.1f} MB {name}" for name in ("sent", "received"))]


def emit_progress(summary: Summary) -> None:
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
    if is_full(error):
        return no_room()
    if isinstance(error, OSError):
        return f"{text}; check the path, its permissions and the free space"
    return f"{type(error).__name__}: {text[:300]} (--debug shows where)"
