"""Do the scorers agree? Cohen's kappa between each two of them, on the answers that both scored."""

from itertools import combinations

import numpy as np
import polars as pl
from statsmodels.stats.inter_rater import cohens_kappa

from reports import wording as say
from reports.artefacts import Run
from reports.blocks import Prose, Section, Table

KEYS = ["dataset", "id", "arm"]
NOTE = (
    "Kappa is the agreement beyond what the two scorers' own rates would give by chance (Cohen 1960), on refused or not refused, with a 95 % "
    "interval from its asymptotic standard error: 1 is full agreement, 0 none beyond chance. Answers of one prompt in several arms are not "
    "independent, so the interval is, if anything, too narrow."
)


def section(run: Run) -> Section | None:
    """A row for each two scorers, or None where there is only one."""
    scores = run.table("scores")
    if scores is None or scores["scorer"].n_unique() < 2:
        return None
    frame = agreement(scores)
    if frame.is_empty():
        return None
    shown = pl.DataFrame(
        {
            "scorers": say.column(frame, lambda a, b: f"{a} and {b}", "first", "second"),
            "n": say.column(frame, say.number, "n"),
            "agree": say.column(frame, say.percent, "agreement"),
            "kappa": say.column(frame, say.fixed, "kappa"),
            "95 % interval": say.column(frame, _interval, "low", "high"),
            "both refused": say.column(frame, say.number, "both"),
            "only the first": say.column(frame, say.number, "first_only"),
            "only the second": say.column(frame, say.number, "second_only"),
            "neither": say.column(frame, say.number, "neither"),
        }
    )
    return Section("agreement", "Agreement of scorers", [Table("agreement", frame, shown), Prose(NOTE, "note")])


def agreement(scores: pl.DataFrame) -> pl.DataFrame:
    """Columns `first`, `second` (scorers), `n`, the four counts, `agreement`, `kappa`, `low`, `high`; kappa null if it has none."""
    wide = (
        scores.filter(pl.col("refused").is_not_null())
        .unique([*KEYS, "scorer"], maintain_order=True)
        .pivot("scorer", index=KEYS, values="refused")
    )
    rows = []
    for first, second in combinations([name for name in wide.columns if name not in KEYS], 2):
        a, b = wide.select(first, second).drop_nulls().get_columns()
        if not a.len():
            continue
        cells = np.array([[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]])
        rows.append({"first": first, "second": second, "n": a.len(), "both": int(cells[0, 0]), "first_only": int(cells[0, 1]),
                     "second_only": int(cells[1, 0]), "neither": int(cells[1, 1]), "agreement": float((a == b).mean() or 0.0),
                     **_kappa(cells)})  # fmt: skip
    return pl.DataFrame(rows, infer_schema_length=None)


def _kappa(cells: np.ndarray) -> dict[str, float | None]:
    if (cells.sum(0) == 0).any() and (cells.sum(1) == 0).any():  # both always say the same thing: chance is all there is
        return {"kappa": None, "low": None, "high": None}
    found = cohens_kappa(cells)
    return {"kappa": float(found.kappa), "low": float(found.kappa_low), "high": float(found.kappa_upp)}


def _interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{say.fixed(low)} to {say.fixed(high)}"
