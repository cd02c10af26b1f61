"""`report`: one HTML page of a run directory, or a comparison of several."""

from commands.framework.app import Session, command
from commands.framework.options import ASSETS, COMPARE, MAP, OUT, TABLES
from commands.framework.output import Summary
from commands.framework.settings import Settings


@command(
    OUT.but(help="The page.", shown="RUN/report.html; RUN/compare.html with --compare"),
    ASSETS,
    TABLES,
    COMPARE,
    MAP,
    many=("--compare",),
)
def report(_session: Session, s: Settings) -> Summary:
    """Write one HTML page of whatever the run directory holds."""
    from reports.page.write import write_report

    tables = (s.run / "tables", s.get("tables")) if s.get("tables") else None
    path = s.get("out") or s.run / ("compare.html" if s.get("compare") else "report.html")
    if s.get("compare"):
        from reports.page.compare import write_comparison

        sections = write_comparison(s.get("compare"), path, assets=s.get("assets"), tables=tables)
    else:
        sections = write_report(
            s.run, path, assets=s.get("assets"), tables=tables, map_of_activations=s.get("map_of_activations")
        )
    told: Summary = {"tables": str(tables[0])} if tables else {}
    return {"sections": len(sections), "bytes": path.stat().st_size, **told, "wrote": str(path)}
