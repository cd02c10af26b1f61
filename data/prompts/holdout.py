"""Splits for rows that have none: some to fit on, some to choose on, some to answer, siblings together."""

from hashlib import sha256

import polars as pl

from data.contract import SPLITS
from data.store.tables import Values

CHOSEN_ON = 0.4  # of what is held out; the rest is answered


def with_splits(frame: pl.DataFrame, holdout: float, seed: int, themes: pl.DataFrame | None = None) -> pl.DataFrame:
    """The rows, those without a split put into one; the others as they are.

    Which rows lie together, a theme's or those of the same text, is drawn together, by a hash of the seed and its name, and
    each label and category of a data set gets its share of every split: with three such groups at least one each.

    Args:
        frame: Prompts in the shape of `data.load_all`.
        holdout: Share that is not fitted on: two fifths of it `validation`, the rest `test`.
        seed: Another one draws others.
        themes: `dataset`, `id`, `theme`, of any of the rows.
    """
    rows = frame.with_row_index("at").filter(pl.col("split").is_null())
    themes = pl.DataFrame(schema=dict.fromkeys(("dataset", "id", "theme"), pl.String)) if themes is None else themes
    rows = rows.join(themes.unique(["dataset", "id"]), on=["dataset", "id"], how="left", maintain_order="left")
    strata: dict[tuple[str, ...], dict[str, list[int]]] = {}
    whole: dict[
        tuple[str, str], tuple[str, ...]
    ] = {}  # a theme may hold both labels; its first row says where it counts
    for row in rows.to_dicts():
        group = f"theme {row['theme']}" if row["theme"] is not None else " ".join(row["prompt"].casefold().split())
        stratum = whole.setdefault((row["dataset"], group), (row["dataset"], str(row["label"]), str(row["category"])))
        strata.setdefault(stratum, {}).setdefault(group, []).append(row["at"])
    split: dict[int, str] = {}
    for (dataset, *_), groups in strata.items():
        order = sorted(groups, key=lambda name: sha256(f"{seed}\0{dataset}\0{name}".encode()).digest())
        for group, name in zip(order, _shares(len(order), holdout), strict=True):
            split |= dict.fromkeys(groups[group], name)
    drawn = pl.Series("split", [split.get(at, own) for at, own in enumerate(frame["split"])], pl.String)
    return frame.with_columns(drawn)


def _shares(groups: int, holdout: float) -> list[str]:
    """So many names of splits: at least one to fit on, then one to answer, then one to choose on."""
    chosen_on = min(max(round(groups * holdout * CHOSEN_ON), 1), max(groups - 2, 0))
    answered = min(max(round(groups * holdout * (1 - CHOSEN_ON)), 1), max(groups - 1 - chosen_on, 0))
    fitted_on, validation, test = SPLITS
    return [fitted_on] * (groups - chosen_on - answered) + [validation] * chosen_on + [test] * answered


def counts(frame: pl.DataFrame) -> Values:
    """Rows in each split."""
    return {split: int((frame["split"] == split).sum()) for split in SPLITS}
