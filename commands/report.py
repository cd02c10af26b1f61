"""`report`: one HTML page of a run directory, or a comparison of several."""

from pathlib import Path
from typing import Any

import click

from commands.framework.app import Session, command
from commands.framework.settings import Settings


@command(
    click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The page.  [default: RUN/report.html; "
                 "RUN/compare.html with --compare]"),
    click.option("--assets", type=click.Path(file_okay=False, path_type=Path), help="Also each chart as PNG and SVG, each "
                 "table as CSV and parquet, into this folder.  [default: none]"),
    click.option("--compare", multiple=True, type=click.Path(file_okay=False, path_type=Path), help="Run directories to "
                 "compare in place of one run's page: --compare A B.  [default: none]"),
    click.option("--map", "map_of_activations", type=click.Choice(["pca", "tsne"]), help="Map of activations.  "
                 "[default: pca]"),
    many=("--compare",),
)  # fmt: skip
def report(_session: Session, s: Settings) -> dict[str, Any]:
    """Write one HTML page of whatever the run directory holds."""
    return make_report(s)


def make_report(s: Settings) -> dict[str, Any]:
    """Write the page, or a comparison of several runs."""
    from reports.page.write import write_report

    path = s.get("out", s.run / ("compare.html" if s.get("compare") else "report.html"))
    if s.get("compare"):
        from reports.page.compare import write_comparison

        sections = write_comparison(s.get("compare"), path, assets=s.get("assets"))
    else:
        sections = write_report(
            s.run, path, assets=s.get("assets"), map_of_activations=s.get("map_of_activations", "pca")
        )
    return {"sections": len(sections), "bytes": path.stat().st_size, "wrote": str(path)}
