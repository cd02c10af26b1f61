"""What people and scripts see: a table, one line, or one JSON object for each command."""

import shutil
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import click

from data.errors import UserError
from data.store.files import is_full, no_room
from data.visible import visible, visible_json

if TYPE_CHECKING:
    import polars as pl

GAP, FOLDED, LONGEST = 2, 24, 240  # blanks between columns; where long words break; characters of a text that are shown
P_VALUES = ("p", "p_holm")
_SAID_BEFORE: ContextVar[bool] = ContextVar("said before", default=False)
Summary = dict[str, Any]  # what a command says of what it did; a `table`, and where it `wrote`, are shown apart


def emit(name: str, summary: Summary, as_json: bool) -> None:
    """A command's summary on stdout, for people or as one JSON object."""
    if as_json:
        plain = {k: v.to_dicts() if hasattr(v, "to_dicts") else v for k, v in summary.items()}
        click.echo(visible_json({"command": name, **plain}))
        return
    remote = summary.pop("remote", {})
    for key in [key for key, value in summary.items() if hasattr(value, "to_dicts")]:
        table = summary.pop(key)
        click.echo(as_text(table) if key == "table" else f"\n{key}\n{as_text(table)}")
    wrote = f" -> {summary.pop('wrote')}" if "wrote" in summary else ""
    words = [*(f"{key} {_shown(value)}" for key, value in summary.items()), *_traffic(remote)]
    if words:
        click.echo(visible(f"{name}: {', '.join(words)}{wrote}"))


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


def as_text(table: "pl.DataFrame", width: int | None = None) -> str:
    """A table that fits a terminal; control characters of generated text are shown, not sent.

    Nothing is shown for what is missing. Where the columns do not fit, texts are folded between words; where that is not
    enough, the last columns are left out and named.

    Args:
        table: What to show.
        width: Columns of the terminal; default this one's.
    """
    width = width or shutil.get_terminal_size((120, 24)).columns
    table = table.rename(_headings(table.columns))
    cells = {name: [_cell(name, value) for value in table[name]] for name in table.columns}
    right = {name for name in table.columns if table.schema[name].is_numeric()}
    shown = list(cells)
    while True:
        widths = _widths({name: cells[name] for name in shown}, width)
        if widths is not None or len(shown) == 1:
            break
        shown.pop()
    widths = widths or {shown[0]: width}
    lines = [_line([_folded(name, size) for name, size in widths.items()], widths, set())]
    lines.append(["─" * min(width, sum(widths.values()) + GAP * (len(widths) - 1))])
    for row in range(table.height):
        lines.append(_line([_folded(cells[name][row], size) for name, size in widths.items()], widths, right))
    left = [name for name in cells if name not in shown]
    return "\n".join(
        [line.rstrip() for block in lines for line in block]
        + ([f"not shown: {', '.join(left)} (--json has all)"] if left else [])
    )


def _headings(columns: list[str]) -> dict[str, str]:
    """Names of columns, which may be categories of anybody's data, as they are shown."""
    shown = {name: visible(name) for name in columns}
    return shown if len(set(shown.values())) == len(columns) else {name: ascii(name) for name in columns}


def _cell(name: str, value: Any) -> str:
    """A value as people read it."""
    if value is None:
        return ""
    if isinstance(value, float):
        if name in P_VALUES:
            return "< 0.001" if value < 0.001 else f"{value:.3f}"
        return f"{value:.3f}" if abs(value) < 1000 else f"{value:.0f}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return visible(str(value)[:LONGEST])


def _widths(cells: dict[str, list[str]], width: int) -> dict[str, int] | None:
    """How wide each column is, none narrower than a word of its heading or a figure in it; None if they can't fit."""
    least = {
        name: max([_longest_word(name), *(min(_longest_word(text), FOLDED) for text in column)])
        for name, column in cells.items()
    }
    wanted = {name: max([len(name), *map(len, column)]) for name, column in cells.items()}
    room = width - GAP * (len(cells) - 1)
    if sum(least.values()) > room:
        return None
    widths = dict(least)
    while sum(widths.values()) < room and (narrow := [name for name in cells if widths[name] < wanted[name]]):
        widths[min(narrow, key=lambda name: widths[name] / wanted[name])] += 1
    return widths


def _longest_word(text: str) -> int:
    return max(map(len, text.split()), default=0)


def _folded(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width) or [""]


def _line(blocks: list[list[str]], widths: dict[str, int], right: set[str]) -> list[str]:
    """Lines of one row, each cell in its column."""
    found = []
    for at in range(max(map(len, blocks))):
        parts = [block[at] if at < len(block) else "" for block in blocks]
        found.append((" " * GAP).join(part.rjust(size) if name in right else part.ljust(size)
                                      for part, (name, size) in zip(parts, widths.items(), strict=True)))  # fmt: skip
    return found


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def direction(strength: float) -> str:
    """What the sign of a strength means."""
    return "away from refusal" if strength < 0 else "towards refusal"


def warn(message: str) -> None:
    """One line on stderr."""
    if not _SAID_BEFORE.get():
        click.echo(visible(message), err=True)


@contextmanager
def said_before() -> Iterator[None]:
    """What is done again in here warns of nothing: it did when it was done first."""
    token = _SAID_BEFORE.set(True)
    try:
        yield
    finally:
        _SAID_BEFORE.reset(token)


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


def span(seconds: float) -> str:
    """A span of time: `2 h 5 min`, `12 min`, `40 s`."""
    hours, minutes = int(seconds) // 3600, int(seconds) // 60 % 60
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{int(seconds)} s"
