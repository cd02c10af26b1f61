"""Tables for papers: LaTeX, Markdown, CSV and parquet say what the page says, to the digit, whatever stands in them."""

import csv
import html
import io
import re
import shutil
import subprocess

import polars as pl
import pytest

from data.contract import TABLE_FORMATS
from reports.page import blocks, tables
from reports.page.write import write_report
from tests.made.runs import synthetic_run

HOSTILE = r"\input{/etc/passwd} 50% & $x_1$ #1 {~^} | a*b `c` [d](e) <script>"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = synthetic_run(tmp_path_factory.mktemp("tables") / "run")
    write_report(folder, folder / "report.html", tables=(folder / "tables", tuple(TABLE_FORMATS)))
    return folder


def test_every_table_has_a_file_of_each_form(written):
    names = {
        form: {path.stem for path in (written / "tables").glob(f"*{ending}")} for form, ending in TABLE_FORMATS.items()
    }
    assert len(set(map(frozenset, names.values()))) == 1
    assert "at-a-glance" in names["latex"]


def test_the_numbers_are_the_pages_to_the_digit(written):
    page = html.unescape((written / "report.html").read_text())
    rows = list(csv.reader(io.StringIO((written / "tables" / "at-a-glance.csv").read_text())))
    frame = pl.read_parquet(written / "tables" / "at-a-glance.parquet")
    assert len(rows) == frame.height + 1 > 10
    cells = [cell for row in rows[1:] for cell in row if re.search(r"\d\.\d", cell)]
    assert cells and all(cell in page for cell in cells)
    latex = (written / "tables" / "at-a-glance.tex").read_text()
    markdown = (written / "tables" / "at-a-glance.md").read_text()
    for cell in cells:
        assert cell.replace("−", "$-$").replace("\u00a0", "~").replace("%", r"\%").replace("<", "$<$") in latex
        assert cell.replace("<", r"\<") in markdown


def test_latex_is_a_booktabs_table_with_groups_over_their_rows(written):
    lines = (written / "tables" / "at-a-glance.tex").read_text().splitlines()
    assert [line.strip() for line in lines if "rule" in line] == [r"\toprule", r"\midrule", r"\bottomrule"]
    assert sum(r"\multicolumn" in line for line in lines) == 2  # benign prompts, harmful prompts
    begin = next(line for line in lines if r"\begin{tabular}" in line)
    columns = len(begin.split("{")[-1].rstrip("}"))
    widths = {line.count("&") + 1 for line in lines if line.endswith(r"\\") and r"\multicolumn" not in line}
    assert widths == {columns}


def test_nothing_in_a_cell_is_a_command(tmp_path):
    frame = pl.DataFrame({"name": [HOSTILE, "=1+1"], "rate": ["12.5\u00a0%", "−3.0"]})
    table = blocks.Table("odd", frame, caption="A & B")
    latex = tables.latex(table)
    assert r"\textbackslash{}input\{/etc/passwd\} 50\% \& \$x\_1\$ \#1 \{\textasciitilde{}\textasciicircum{}\}" in latex
    assert r"12.5~\%" in latex and "$-$3.0" in latex and r"\begin{tabular}{lr}" in latex
    assert r"\<script\>" in tables.markdown(table) and r"\|" in tables.markdown(table)
    assert "'=1+1" in tables.csv(table)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(written, tmp_path):
    parts = "".join(path.read_text() for path in sorted((written / "tables").glob("*.tex")))
    (tmp_path / "all.tex").write_text(
        r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs}\begin{document}"
        + parts
        + r"\end{document}"
    )
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "all.tex"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
