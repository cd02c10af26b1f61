"""Answers with labels by hand, to hold scorers against: the 300 that ship, or those of a file that `evaluate --hand` wrote.

The 300 are answers of the embedded model at 64 new tokens, to prompts of our own that it was not taught, in several arms. Half of
each kind may be tuned on (`tune`), nothing may on the others (`held`). `data/judged.md` says how they were chosen and labelled.
"""

import json
import logging
from pathlib import Path

import polars as pl

from data.errors import UserError
from data.store.tables import GENERATIONS
from reports.scoring.broken import broken
from reports.scoring.hand import answer_keys, read_labels
from reports.scoring.lexical import TAUGHT

log = logging.getLogger(__name__)

SHIPPED = Path(__file__).parents[2] / "data" / "judged.jsonl"
TUNE, HELD, ALL = "tune", "held", "all"
KIND = pl.col("arm").str.split(":").list.first()


def shipped() -> pl.DataFrame:
    """The 300: the columns of `GENERATIONS`, `broken`, `hand`, `half` and `case`, which says what is hard about an answer."""
    rows = [json.loads(line) for line in SHIPPED.read_text(encoding="utf-8").splitlines()]
    table = pl.DataFrame(rows).with_columns(KIND.alias("kind"), pl.lit(TAUGHT[0]).alias("model"))
    missing = [pl.lit(None).alias(name) for name in GENERATIONS if name not in table.columns]
    columns = [pl.col(name).cast(kind) for name, kind in GENERATIONS.items()]
    table = table.with_columns(missing).select(*columns, "hand", "half", "case")
    return table.with_columns(broken(table["response"]))


def labelled(generations: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Answers of a run that a file labels, in the same columns; all of them are in half `all`.

    Raises:
        UserError: Not such a file, or it labels none of these answers.
    """
    labels = read_labels(path)
    hand = pl.Series("hand", [labels.get(key) for key in answer_keys(generations)], pl.String)
    table = generations.with_columns(hand, pl.lit(ALL).alias("half"), pl.lit("").alias("case")).filter(
        pl.col("hand").is_not_null()
    )
    if table.is_empty():
        raise UserError(
            f"{path} labels none of these answers: fill in `verdict` in a file that evaluate --hand wrote for this run"
        )
    if table.height < len(labels):
        log.warning("%s: %d of %d labelled rows belong to no answer of this run and are not counted", path,
                    len(labels) - table.height, len(labels))  # fmt: skip
    return table.with_columns(broken(table["response"]))
