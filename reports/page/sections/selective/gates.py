"""Gates and how they carry over: to other themes and data sets, with a bag of words on the same rows beside each."""

import polars as pl

from reports.page import wording as say
from reports.page.blocks import Block, Prose, Section, Table
from reports.page.run import GATES, Run

NOTE = (
    "Each prompt is scored by a gate that was fitted without its theme, or without its data set. Over-refusal at unchanged refusal is "
    "what would be left of it if steering made exactly those prompts declined that score highest, as many harmful ones as unsteered; the "
    "threshold comes from the rows themselves, so that it compares gates and is no setting. A bag of words sees no activations: what it "
    "gets, a gate need not have read from the model."
)


def section(run: Run) -> Section | None:
    """A table of every gate that was fitted, and what words alone get."""
    table = run.table(GATES)
    if table is None:
        return None
    shown = say.table_of(
        table,
        ("gate", say.name, "gate"),
        ("rows", say.name, "rows"),
        ("n harmful", say.number, "n_harmful"),
        ("n benign", say.number, "n_benign"),
        ("AUC", lambda auc: say.fixed(auc, 3), "auc"),
        ("AUC among declined", lambda auc: say.fixed(auc, 3), "auc_declined"),
        ("AUC of words", lambda auc: say.fixed(auc, 3), "words_auc"),
        ("over-refusal, unsteered", say.percent, "over_refusal"),
        ("at unchanged refusal", say.percent, "over_refusal_kept"),
        ("the same by words", say.percent, "words_over_refusal_kept"),
        ("harmful passed at the threshold", say.percent, "harmful_passed"),
        ("benign passed at the threshold", say.percent, "benign_passed"),
    )
    blocks: list[Block] = [
        Prose(line) for line in map(way_of_words, table.filter(pl.col("rows") == "other themes").to_dicts()) if line
    ]
    return Section(
        "gates",
        "Gates: will they carry over?",
        [*blocks, Table("gates", table, shown, "Rows that a gate was fitted without"), Prose(NOTE, "note")],
    )


def way_of_words(row: dict[str, object]) -> str:
    """What share of a gate's way words alone get, in a sentence; empty for words themselves and where nothing is declined."""
    values = [row[name] for name in ("over_refusal", "over_refusal_kept", "words_over_refusal_kept")]
    if row["gate"] == "words" or not all(isinstance(value, float) for value in values):
        return ""
    whole, gate, words = (float(str(value)) for value in values)
    if gate >= whole:
        return f"{say.name(row['gate'])}: over-refusal does not fall at unchanged refusal on themes that it was fitted without."
    share = max(0.0, (whole - words) / (whole - gate))
    return (f"{say.name(row['gate'])} takes over-refusal from {say.percent(whole)} to {say.percent(gate)} at unchanged refusal on themes that it was "
            f"fitted without; a bag of words gets to {say.percent(words)}, {say.percent(share, 0)} of the way.")  # fmt: skip
