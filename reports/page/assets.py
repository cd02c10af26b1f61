"""A report's charts as PNG and SVG, its tables as CSV and parquet: for papers, slides and spreadsheets."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from data.store.rundir import replacing
from reports.page import charts
from reports.page.blocks import Chart, Row, Section, Table

LONGEST = 60  # characters of a file name
WIDTH, PANEL_WIDTH, SCALE = 720, 360, 2.0
# What a spreadsheet takes for the beginning of a formula (OWASP, "CSV injection").
FORMULA = r"^[=+\-@\t\r]"


def write_assets(sections: Sequence[Section], folder: Path) -> list[Path]:
    """Write every chart and table of some sections; returns the files.

    Files with these names are replaced, others are left alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for section in sections:
        for block in section.blocks:
            if isinstance(block, Chart):
                written += write_chart(block, folder, WIDTH)
            if isinstance(block, Row):
                for panel in block.charts:
                    written += write_chart(panel, folder, PANEL_WIDTH)
        for table in section.tables():
            written += write_table(table, folder)
    return written


def write_chart(chart: Chart, folder: Path, width: int) -> list[Path]:
    """NAME.svg and NAME.png (twice the size), in dark ink on white, with the chart's heading."""
    import vl_convert

    spec = on_paper(chart, width)
    name = file_name(chart.name)
    paths = [folder / f"{name}.svg", folder / f"{name}.png"]
    with replacing(paths[0]) as svg, replacing(paths[1]) as png:
        svg.write_text(vl_convert.vegalite_to_svg(spec, allowed_base_urls=[]), encoding="utf-8")
        png.write_bytes(vl_convert.vegalite_to_png(spec, scale=SCALE, allowed_base_urls=[]))
    return paths


def on_paper(chart: Chart, width: int) -> charts.Spec:
    """A chart's specification with a width and colours of its own."""
    spec: charts.Spec = json.loads(json.dumps(chart.chart.to_dict()))
    room = spec.pop("usermeta", {}).get("legend", WIDTH)
    title = {"title": {"text": chart.title, "anchor": "start"}} if chart.title else {}
    spec = charts.on_paper(spec | title | {"width": width})
    spec["config"]["legend"]["columns"] = max(1, width // room)
    return spec


def write_table(table: Table, folder: Path) -> list[Path]:
    """NAME.parquet, as it is, and NAME.csv, in which no text can be taken for a formula."""
    name = file_name(table.name)
    paths = [folder / f"{name}.parquet", folder / f"{name}.csv"]
    flat = [_flat(column) for column in table.frame.get_columns()]
    with replacing(paths[0]) as parquet, replacing(paths[1]) as csv:
        table.frame.write_parquet(parquet)
        pl.DataFrame(flat).write_csv(csv)
    return paths


def file_name(name: str) -> str:
    """A name as that of a file, without an ending: parts of it may come out of data, and lead anywhere.

    One that had to change gets a piece of its hash, so that no two become one.
    """
    plain = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:LONGEST].strip("-")
    return (
        name
        if name and name == plain
        else f"{plain or 'x'}-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:8]}"
    )


def _flat(column: pl.Series) -> pl.Series:
    """A column that a spreadsheet can hold."""
    if isinstance(column.dtype, pl.List):
        joined = column.cast(pl.List(pl.String)).list.join(" ")
        return _flat(joined) if column.dtype.inner == pl.String else joined
    if column.dtype != pl.String:
        return column
    risky = column.str.contains(FORMULA).fill_null(False)
    return column.zip_with(~risky, "'" + column)
