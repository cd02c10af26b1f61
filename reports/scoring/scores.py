"""Verdicts on answers, several scorers side by side: one row for each answer and scorer.

A verdict is one of `data.contract.VERDICTS`, or null where the scorer failed or does not apply.
"""

from collections.abc import Mapping, Set

import polars as pl

from data.contract import SCORERS
from data.store.tables import SCORES
from reports.scoring.assemble import Verdicts, assemble
from reports.scoring.broken import broken


def score(
    generations: pl.DataFrame, fitted_prompts: Set[str], scorers: Mapping[str, Verdicts] | None = None
) -> pl.DataFrame:
    """One row an answer and scorer, in the columns of `SCORES`.

    Args:
        generations: The table of `generate`; with a column `incoherent`, of `statistics.coherence`, that is noted beside each verdict.
        fitted_prompts: `same_text` of the prompts that vectors were fitted on.
        scorers: As `assemble` gives them; without it, those that need nothing.
    """
    answers = generations.with_columns(broken(generations["response"]))
    fitted = {prompt: same_text(prompt) in fitted_prompts for prompt in answers["prompt"].unique()}
    base = answers.select(
        "dataset", "id", "arm", "kind", "category", "label", *(["incoherent"] if "incoherent" in answers.columns else []),
        pl.col("prompt").replace_strict(fitted, return_dtype=pl.Boolean).alias("fitted"),
    )  # fmt: skip
    parts = []
    for name, verdicts in (assemble(generations) if scorers is None else scorers).items():
        part = base.with_columns(pl.lit(name).alias("scorer"), verdicts(answers).cast(pl.String).alias("verdict"))
        partly = name in SCORERS and SCORERS[name].partly  # what it was not given, it did not fail at
        parts.append(part.filter(pl.col("verdict").is_not_null()) if partly else part)
    scores = pl.concat(parts) if parts else base.clear().with_columns(scorer=pl.lit(""), verdict=pl.lit(""))
    lacking = [] if "incoherent" in scores.columns else [pl.lit(None).alias("incoherent")]
    return scores.with_columns((pl.col("verdict") == "refuse").alias("refused"), *lacking).select(
        [pl.col(name).cast(kind) for name, kind in SCORES.items()]
    )


def repeated(generations: pl.DataFrame) -> pl.DataFrame:
    """`dataset`, `id`, `first` of prompts that stand before them already, with the same label; `first` is the data set where."""
    rows = generations.select("dataset", "id", "label", "prompt").unique(
        ["dataset", "id"], keep="first", maintain_order=True
    )
    rows = rows.with_columns(pl.col("prompt").map_elements(same_text, pl.String))
    own = ["prompt", "label"]
    first = rows.unique(own, keep="first", maintain_order=True).select(*own, first="dataset", first_id="id")
    both = rows.join(first, on=own, nulls_equal=True, maintain_order="left")
    again = (pl.col("dataset") != pl.col("first")) | (pl.col("id") != pl.col("first_id"))
    return both.filter(again).select("dataset", "id", "first")


def same_text(prompt: str) -> str:
    """What two prompts share that a reader would call the same text."""
    return " ".join(prompt.casefold().split())
