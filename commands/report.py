"""`report`: one HTML page of a run directory, or a comparison of several."""

from commands.framework.app import Session, command
from commands.framework.options import ASSETS, COMPARE, MAP, OUT
from commands.framework.output import Summary
from commands.framework.settings import Settings


@command(
    OUT.but(help="The page.", shown="RUN/report.html; RUN/compare.html with --compare"),
    ASSETS,
    COMPARE,
    MAP,
    many=("--compare",),
)
def report(_session: Session, s: Settings) -> Summary:
    """Write one HTML page of whatever the run directory holds."""
    from reports.page.write import write_report

    path = s.get("out") or s.run / ("compare.html" if s.get("compare") else "report.html")
    if s.get("compare"):
        from reports.page.compare import write_comparison

        sections = write_comparison(s.get("compare"), path, assets=s.get("assets"))
    else:
        sections = write_report(s.run, path, assets=s.get("assets"), map_of_activations=s.get("map_of_activations"))
    return {"sections": len(sections), "bytes": path.stat().st_size, "wrote": str(path)}
