"""HTML of a report's blocks. The one place where text becomes markup, and so the one that escapes it.

Text of prompts, models and files is hostile: it stands only between tags or in quoted attributes, escaped, or in JSON
that no browser runs; scripts put it on the page through `textContent` alone.
"""

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from reports.page import charts
from reports.page.blocks import Block, Chart, Code, Prose, Row, Samples, Section, Table
from reports.page.wording import number, visible

LONGEST = 2000  # characters of a cell
NUMBERS = (
    r"^[−+<]? ?[\d.,]+(e[−+]?\d+)?([ \u00a0]%)?( to [−+]?[\d.,]+)?(\u00a0\([\d.]+–[\d.]+\))?(\u00a0/\u00a0[\d.]+)*$"
)
NEVER_BREAKS = "\u00a0=\u00a0"  # n = 20 stays on one line
MOST_ROWS = 400  # rows of a table that stand on the page


def escape(value: Any) -> str:
    """HTML text of anything: None is a dash, long text is cut, characters that show nothing are written out."""
    if value is None:
        return "–"
    text = str(value)
    if len(text) > LONGEST:
        text = text[:LONGEST] + f" … ({len(text) - LONGEST:,} more characters)"
    return html.escape(visible(text), quote=True)


def as_json(value: Any) -> str:
    """JSON that can stand in a script element: no character that could end it.

    Raises:
        ValueError: A number that JSON does not have.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def section(part: Section) -> str:
    """A section with its heading."""
    body = "".join(block(inner) for inner in part.blocks)
    return f'<section id="{part.name}"><h2>{escape(part.title)}</h2>{body}</section>'


def block(part: Block) -> str:
    """Any block."""
    return RENDERERS[type(part)](part)


def prose(part: Prose) -> str:
    """A paragraph."""
    role = ' role="note"' if part.role == "warning" else ""
    return f'<p class="{part.role}"{role}>{escape(part.text)}</p>'


def code(part: Code) -> str:
    """Lines to copy."""
    return f'<pre tabindex="0"><code>{escape(part.text)}</code></pre>'


def chart(part: Chart, level: str = "") -> str:
    """A place for a chart, its data beside it, and its caption."""
    spec = part.chart.to_dict() | {"config": charts.PAGE, "autosize": {"type": "fit-x", "contains": "padding"}}
    heading = f'<h3 id="{part.name}-title">{escape(part.title)}</h3>' if part.title else ""
    label = (
        f'aria-labelledby="{part.name}-title {part.name}-text"' if part.title else f'aria-labelledby="{part.name}-text"'
    )
    return (
        f'<figure class="chart{level}{" narrow" if part.narrow else ""}">{heading}'
        f'<div class="plot" id="{part.name}" role="img" {label}></div>'
        f'<script type="application/json" data-chart="{part.name}">{as_json(spec)}</script>'
        f'<figcaption id="{part.name}-text">{escape(part.caption.replace(" = ", NEVER_BREAKS))}</figcaption></figure>'
    )


def row(part: Row) -> str:
    """Charts side by side."""
    caption = f'<p class="note">{escape(part.caption)}</p>' if part.caption else ""
    return f'{caption}<div class="row">{"".join(chart(inner, " panel") for inner in part.charts)}</div>'


def table(part: Table) -> str:
    """A table in a box of its own, which scrolls sideways on a phone; folded ones open by their summary."""
    shown = part.shown if part.shown is not None else part.frame
    groups = shown[part.group].to_list() if part.group else []
    shown = shown.drop(part.group) if part.group else shown
    kinds = ["text" if name in part.text else "number" if _numeric(shown[name]) else "" for name in shown.columns]
    head = "".join(
        f'<th scope="col" class="{kind}">{escape(name)}</th>' for name, kind in zip(shown.columns, kinds, strict=True)
    )
    body = "".join(
        _heading(groups, at, shown.width)
        + f"<tr>{''.join(_cell(value, kind) for value, kind in zip(values, kinds, strict=True))}</tr>"
        for at, values in enumerate(shown.head(MOST_ROWS).iter_rows())
    )
    more = f'<p class="note">{MOST_ROWS} of {shown.height:,} rows.</p>' if shown.height > MOST_ROWS else ""
    label = escape(part.caption or part.name)
    inner = (
        f'<div class="wide" tabindex="0" role="region" aria-label="{label}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{more}"
    )
    if part.folded:
        return f"<details><summary>{label}</summary>{inner}</details>"
    return (f"<h3>{label}</h3>" if part.caption else "") + inner


def samples(part: Samples) -> str:
    """The controls, an empty table that `samples.js` fills, and the answers as JSON."""
    form = (Path(__file__).parent / "static" / "samples.html").read_text(encoding="utf-8")
    return form + f'<script type="application/json" id="samples-data">{as_json(part.data)}</script>'


def _heading(groups: list[Any], at: int, width: int) -> str:
    """A line over the first row of each group."""
    if not groups or (at and groups[at] == groups[at - 1]):
        return ""
    text = f'<span dir="auto">{escape(groups[at])}</span>'
    return f'<tr class="group"><th scope="rowgroup" colspan="{width}">{text}</th></tr>'


def _cell(value: Any, kind: str) -> str:
    shown = number(value) if isinstance(value, float | bool) else value
    if kind == "text":
        return f'<td class="text"><div dir="auto">{escape(shown)}</div></td>'
    return f'<td class="{kind}" dir="auto">{escape(shown)}</td>' if kind else f'<td dir="auto">{escape(shown)}</td>'


def _numeric(column: pl.Series) -> bool:
    """Numbers, or text that is nothing but numbers: these stand at the right."""
    if column.dtype.is_numeric():
        return True
    if column.dtype != pl.String:
        return False
    told = column.filter(~column.is_in(["", "–"])).drop_nulls()
    return bool(told.len()) and bool(told.str.contains(NUMBERS).all())


RENDERERS: dict[type, Callable[[Any], str]] = {
    Prose: prose,
    Code: code,
    Chart: chart,
    Row: row,
    Table: table,
    Samples: samples,
}
