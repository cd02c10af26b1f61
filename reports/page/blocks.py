"""What a report is made of: sections of prose, tables, charts and answers, before anything is HTML or a file.

Sections are plain values: the page renders them, `assets` writes the same ones as pictures and tables. All text in
them is plain text, so that only the renderer has to know how to escape.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl


@dataclass(frozen=True)
class Prose:
    """A paragraph. `role`: `lead` (the answer), `body`, `note` (small print) or `warning`."""

    text: str
    role: str = "body"


@dataclass(frozen=True)
class Code:
    """Lines to copy, such as the commands that make a run again."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table, as numbers and as people read it.

    Attributes:
        name: A file name without its ending, unique on a page.
        frame: The numbers; written to files as they are.
        shown: What stands on the page; `frame` itself if None.
        caption: One line above it.
        text: Columns of free text, which wrap.
        group: A column whose values stand as headings over the rows that share them, in place of a column.
        folded: Behind a summary to open, where a chart says the same.
    """

    name: str
    frame: pl.DataFrame
    shown: pl.DataFrame | None = None
    caption: str = ""
    text: Sequence[str] = ()
    group: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart with a sentence that says what is to be seen, and how many rows it rests on.

    Attributes:
        name: A file name without its ending, unique on a page.
        chart: An Altair chart of width `container`, without a configuration of its own.
        caption: The sentence; it is also the chart's text for those who don't see it.
        title: A short heading.
        narrow: Not as wide as the page, where a square shape reads better.
    """

    name: str
    chart: Any
    caption: str = ""
    title: str = ""
    narrow: bool = False


@dataclass(frozen=True)
class Row:
    """Charts side by side where there is room."""

    charts: Sequence[Chart]
    caption: str = ""


@dataclass(frozen=True)
class Samples:
    """Every answer, to search and to read side by side; `data` is what `samples.js` reads."""

    data: dict[str, Any]


Block = Prose | Code | Table | Chart | Row | Samples


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it; `name` is its anchor."""

    name: str
    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)

    def charts(self) -> list[Chart]:
        """All charts, those of rows included."""
        found: list[Chart] = []
        for block in self.blocks:
            found += [block] if isinstance(block, Chart) else block.charts if isinstance(block, Row) else []
        return found

    def tables(self) -> list[Table]:
        """All tables."""
        return [block for block in self.blocks if isinstance(block, Table)]
