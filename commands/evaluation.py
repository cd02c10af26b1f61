"""`evaluate` and `report`: answers to scores, rates and the page."""

from pathlib import Path
from typing import Any

import click

from commands.framework import Session, command
from commands.output import warn
from commands.records import ACTIVATIONS, VECTORS, note, unchanged
from commands.settings import Settings
from commands.steering import need_generations


@command()
def evaluate(session: Session, s: Settings) -> dict[str, Any]:
    """Score answers and summarise them with intervals."""
    import polars as pl

    from interventions.rundir import now, records, replacing
    from reports.scoring import score
    from reports.statistics import summarise

    start = now()
    record = need_generations(session, s)
    generations = pl.read_parquet(s.run / "generations.parquet")
    key = {"generations": record["id"], "fitted": records(s.run).get(VECTORS, {}).get("id"), "seed": s.get("seed", 0)}
    path = s.run / "summary.parquet"
    if unchanged(s, "scores", key, s.run / "scores.parquet") and unchanged(s, "summary", key, path):
        summary = pl.read_parquet(path)
    else:
        scores = score(generations, fitted_texts(s))
        summary = summarise(scores, key["seed"])
        for name, table in (("scores", scores), ("summary", summary)):
            with replacing(s.run / f"{name}.parquet") as unfinished:
                table.write_parquet(unfinished)
            note(s, name, key, None, start, like=record)
    if summary.filter(pl.col("n") > 0).is_empty():
        warn("every answer's prompt was used for fitting: nothing is left to evaluate")
    shown = summary.filter(~pl.col("dataset").is_in(["(pooled)", "(macro)"])).select(
        "dataset",
        "label",
        "arm",
        "scorer",
        "n",
        "rate",
        "low",
        "high",
        "broken",
        "delta",
        "delta_low",
        "delta_high",
        "p_holm",
    )
    return {"answers": generations.height, "table": shown, "wrote": str(path)}


@command(
    click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The page.  [default: RUN/report.html]")
)
def report(_session: Session, s: Settings) -> dict[str, Any]:
    """Write one HTML page of whatever the run directory holds."""
    from reports.page import write_report

    path = s.get("out", s.run / "report.html")
    sections = write_report(s.run, path)
    return {"sections": len(sections), "bytes": path.stat().st_size, "wrote": str(path)}


def fitted_texts(s: Settings) -> set[str]:
    """Texts of the prompts that the vectors rest on."""
    import polars as pl

    from data import for_split
    from interventions.rundir import records
    from reports.scoring import same_text

    path, record = s.run / f"{ACTIVATIONS}.parquet", records(s.run).get(VECTORS)
    if record is None or not path.exists():
        return set()
    rows = for_split(pl.read_parquet(path), record["key"]["split"])
    benign, harmful = pl.col("label") == "benign", (pl.col("label") == "harmful") & pl.col("category").is_not_null()
    return {same_text(text) for text in rows.filter(benign | harmful)["prompt"]}
