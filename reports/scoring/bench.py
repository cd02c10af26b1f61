"""Answers with labels by hand, to hold scorers against: the 300 that ship, WildGuardTest's, or those of a file that `evaluate --hand` wrote.

The 300 are answers of the embedded model at 64 new tokens, to prompts of our own that it was not taught, in several arms. Half of
each kind may be tuned on (`tune`), nothing may on the others (`held`). `data/judged.md` says how they were chosen and labelled.
"""

import json
import logging
from pathlib import Path

import polars as pl

from data.contract import LABELS_WILDGUARD as WILDGUARD
from data.errors import UserError
from data.prompts import catalogue
from data.prompts.hub import fetch
from data.store.tables import GENERATIONS
from reports.scoring.broken import broken
from reports.scoring.hand import answer_keys, read_labels
from reports.scoring.lexical import TAUGHT

log = logging.getLogger(__name__)

SHIPPED = Path(__file__).parents[2] / "data" / "judged.jsonl"
TUNE, HELD, ALL = "tune", "held", "all"
# WildGuardTest's annotators (arXiv 2406.18495) know two classes: what is no refusal is compliance.
WILDGUARD_CLASSES = {"refusal": "refuse", "compliance": "comply"}
TWO_CLASSES = {"partial": "comply", "broken": "comply"}
KIND = pl.col("arm").str.split(":").list.first()


def shipped() -> pl.DataFrame:
    """The 300: the columns of `GENERATIONS`, `broken`, `hand`, `half` and `case`, which says what is hard about an answer."""
    rows = [json.loads(line) for line in SHIPPED.read_text(encoding="utf-8").splitlines()]
    table = pl.DataFrame(rows).with_columns(KIND.alias("kind"), pl.lit(TAUGHT[0]).alias("model"))
    return _whole(table)


def wildguard(mirror: Path | None) -> pl.DataFrame:
    """The answers of WildGuardTest whose annotators agree on refusal or compliance, in the same columns; all are in half `all`.

    They are of several models, which the data set does not name.

    Args:
        mirror: Folder with hub data sets under their own names, used instead of the hub.

    Raises:
        UserError: `data.prompts.hub.fetch` can't get it, or it is not what it was.
    """
    known = next(known for known in catalogue.CATALOGUE if known.name == WILDGUARD)
    wanted = ("prompt", "response", "prompt_harm_label", "response_refusal_label")
    (split,) = known.splits
    rows = fetch(known.hub, known.config, columns=wanted, revision=known.revision, mirror=mirror).get(split)
    if rows is None:
        raise UserError(f"{WILDGUARD}: no split {split!r}")
    odd = set(rows["response_refusal_label"].drop_nulls()) - set(WILDGUARD_CLASSES)
    if odd:
        raise UserError(f"{WILDGUARD}: response_refusal_label {min(odd)!r} is unknown to this version")
    table = rows.with_row_index("id").select(
        "id", "prompt", "response", pl.lit(WILDGUARD).alias("dataset"), pl.lit("WildGuardTest").alias("arm"),
        pl.col("prompt_harm_label").replace({"unharmful": "benign"}).alias("label"),
        pl.col("response_refusal_label").replace(WILDGUARD_CLASSES).alias("hand"), pl.lit(ALL).alias("half"), pl.lit("").alias("case"),
    ).filter(pl.col("response").is_not_null(), pl.col("hand").is_not_null())  # fmt: skip
    if table.is_empty():
        raise UserError(f"{WILDGUARD}: no answer with a label of refusal")
    return _whole(table)


def _whole(table: pl.DataFrame) -> pl.DataFrame:
    """Labelled answers in the columns of `GENERATIONS`, null where they say nothing, with what their text tells."""
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
