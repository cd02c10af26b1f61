"""A report's tables as files for papers: LaTeX (booktabs), Markdown, CSV and parquet, with the page's own numbers to the digit."""

import re
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from data.contract import TABLE_FORMATS
from data.store.rundir import replacing
from reports.page.assets import FORMULA, file_name
from reports.page.blocks import Section, Table
from reports.page.wording import visible

SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "Δ": r"$\Delta$", "\u00a0": "~",
           "–": "--", "‖": r"$\|$", "×": r"$\times$", "✕": r"$\times$", "·": r"$\cdot$", "<": "$<$", ">": "$>$", "…": r"\dots{}", "‘": "`", "’": "'",
           "␣": r"\textvisiblespace{}", "≥": r"$\geq$", "≤": r"$\leq$", **{c: f"\\{c}" for c in "&%$#_{}"}}  # fmt: skip
NUMERIC = re.compile(r"[−+<\s]*\d[\d.,\s%−+to–-]*|[–-]|see Δ")  # what a right-aligned column holds


def write_tables(sections: Sequence[Section], folder: Path, forms: Sequence[str]) -> list[Path]:
    """Write every table of some sections in every form; returns the files.

    Args:
        sections: As they stand on a page.
        folder: Where; files with these names are replaced, others are left alone.
        forms: Keys of `TABLE_FORMATS`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for table in [table for section in sections for table in section.tables()]:
        for form in forms:
            path = folder / f"{file_name(table.name)}{TABLE_FORMATS[form]}"
            with replacing(path) as unfinished:
                if form == "parquet":
                    shown(table).write_parquet(unfinished)
                else:
                    unfinished.write_text(
                        {"latex": latex, "markdown": markdown, "csv": csv}[form](table), encoding="utf-8"
                    )
            written.append(path)
    return written


def shown(table: Table) -> pl.DataFrame:
    """A table as it stands on the page, all of it text."""
    frame = table.frame if table.shown is None else table.shown
    return frame.select(
        pl.Series(name, ["" if value is None else str(value) for value in frame[name]], pl.String)
        for name in frame.columns
    )


def csv(table: Table) -> str:
    """Comma-separated, in which no text can be taken for a formula; a number's minus sign stays, as it is no hyphen."""
    frame = shown(table)
    risky = [pl.col(name).str.contains(FORMULA) & ~pl.col(name).str.contains(r"^\+[\d.]+$") for name in frame.columns]
    kept = [
        pl.when(odd).then("'" + pl.col(name)).otherwise(name).alias(name)
        for name, odd in zip(frame.columns, risky, strict=True)
    ]
    return frame.select(kept).write_csv()


def markdown(table: Table) -> str:
    """A pipe table, its caption above it."""
    frame = shown(table)
    right = _right(frame)
    lines = [f"**{_piped(table.caption)}**", ""] if table.caption else []
    lines.append("| " + " | ".join(map(_piped, _headings(frame, table))) + " |")
    lines.append("|" + "|".join("--:" if name in right else "---" for name in frame.columns) + "|")
    lines += ["| " + " | ".join(map(_piped, row)) + " |" for row in frame.iter_rows()]
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    r"""A `table` with booktabs' rules (`\usepackage{booktabs}`); what groups rows on the page stands over them here too."""
    frame = shown(table)
    groups = frame[table.group].to_list() if table.group else None
    body = frame.drop(table.group) if table.group else frame
    right = _right(body)
    columns = "".join("r" if name in right else "l" for name in body.columns)
    lines = [r"\begin{table}", r"  \centering", *([f"  \\caption{{{escaped(table.caption)}}}"] if table.caption else []),
             f"  \\label{{tab:{file_name(table.name)}}}", f"  \\begin{{tabular}}{{{columns}}}", r"    \toprule",
             "    " + " & ".join(map(escaped, body.columns)) + r" \\", r"    \midrule"]  # fmt: skip
    before = None
    for at, row in enumerate(body.iter_rows()):
        if groups is not None and groups[at] != before:
            lines += [r"    \addlinespace"] if before is not None else []
            lines.append(f"    \\multicolumn{{{body.width}}}{{l}}{{\\emph{{{escaped(groups[at])}}}}} \\\\")
            before = groups[at]
        lines.append("    " + " & ".join(map(escaped, row)) + r" \\")
    return "\n".join([*lines, r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]) + "\n"


def escaped(text: str) -> str:
    """Text as LaTeX prints it: nothing in it is a command, and no line of it ends the table."""
    return "".join(SPECIAL.get(c, c) for c in _line(text))


def _piped(text: str) -> str:
    """Text within a cell of Markdown."""
    return re.sub(r"([\\|`*_\[\]<>])", r"\\\1", _line(text))


def _line(text: str) -> str:
    """Text on one line, with all that can't be seen written out."""
    return visible(re.sub(r"[ \t\r\n]+", " ", text))


def _headings(frame: pl.DataFrame, table: Table) -> list[str]:
    return ["" if name == table.group else name for name in frame.columns]


def _right(frame: pl.DataFrame) -> set[str]:
    """Columns that hold numbers and nothing else."""
    return {
        name
        for name in frame.columns
        if frame.height and all(NUMERIC.fullmatch(value) or not value for value in frame[name])
    }
