"""Tables of prompts × arms that add up: what is missing of what is asked for, and old and new rows in one table."""

from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

KEY = ["dataset", "id", "prompt"]


class Missing(NamedTuple):
    """Prompts, by their numbers, that some of the arms asked for, by theirs, have no row of."""

    arms: list[int]
    rows: list[int]


def missing(
    table: pl.DataFrame | None, names: Sequence[str], prompts: pl.DataFrame, labelled: Sequence[bool]
) -> list[Missing]:
    """What of prompts × arms a table lacks; arms that lack the same prompts together.

    Args:
        table: Rows of earlier commands, or None.
        names: What the table calls each arm, or would.
        prompts: Rows in the shape of `data.load_all`.
        labelled: Which arms read labels and categories, so that these must be as they were.
    """
    if table is None:
        return [Missing(list(range(len(names))), list(range(prompts.height)))]
    category = "prompt_category" if "prompt_category" in table.columns else "category"
    groups: dict[tuple[int, ...], list[int]] = {}
    for at, (name, reads) in enumerate(zip(names, labelled, strict=True)):
        known = set(
            table.filter(pl.col("arm") == name).select(*KEY, *([category, "label"] if reads else [])).iter_rows()
        )
        wanted = prompts.select(*KEY, *(["category", "label"] if reads else [])).iter_rows()
        rows = tuple(row for row, values in enumerate(wanted) if values not in known)
        if rows:
            groups.setdefault(rows, []).append(at)
    return [Missing(arms, list(rows)) for rows, arms in groups.items()]


def joined(table: pl.DataFrame, new: pl.DataFrame, arms: Sequence[str]) -> pl.DataFrame:
    """Both tables' rows, arm by arm in the order given, prompts as they came; a new row replaces the old one of its key."""
    both = pl.concat([table.select(column for column in table.columns if column in new.columns), new], how="diagonal")
    both = both.select(new.columns).unique(["dataset", "id", "arm"], keep="last", maintain_order=True)
    number = both.select("dataset", "id").unique(maintain_order=True).with_row_index("number")
    order = {name: at for at, name in enumerate(arms)}
    both = both.join(number, on=["dataset", "id"], how="left", maintain_order="left")
    return both.sort(pl.col("arm").replace_strict(order, return_dtype=pl.Int64), "number").drop("number")


def of_prompts(table: pl.DataFrame, prompts: pl.DataFrame) -> pl.DataFrame:
    """A table's rows of some prompts."""
    return table.join(prompts.select(KEY).unique(), on=KEY, how="semi", maintain_order="left")


def with_labels_of(table: pl.DataFrame, prompts: pl.DataFrame) -> pl.DataFrame:
    """A table without rows of prompts that have other words now, and with the labels and categories they have now."""
    now = prompts.select("dataset", "id", text="prompt", new_category="category", new_label="label")
    both = table.join(now, on=["dataset", "id"], how="left", maintain_order="left")
    both = both.filter(pl.col("text").is_null() | (pl.col("text") == pl.col("prompt")))
    category = "prompt_category" if "prompt_category" in table.columns else "category"
    asked = pl.col("text").is_not_null()
    return both.with_columns(
        pl.when(asked).then("new_category").otherwise(category).alias(category),
        pl.when(asked).then("new_label").otherwise("label").alias("label"),
    ).select(table.columns)


def runs_of(table: pl.DataFrame, prompts: pl.DataFrame) -> list[list[int]]:
    """Which of a table's prompts, numbered as they first stand there, are among some: first and last of each run."""
    own = table.select(KEY).unique(maintain_order=True).with_row_index("number")
    runs: list[list[int]] = []
    for number in own.join(prompts.select(KEY), on=KEY, how="semi", maintain_order="left")["number"]:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return runs


def in_runs(table: pl.DataFrame, runs: Sequence[Sequence[int]]) -> pl.DataFrame:
    """A table's rows of the prompts that `runs_of` told."""
    own = table.select(KEY).unique(maintain_order=True).with_row_index("number")
    inside = (
        pl.any_horizontal([pl.col("number").is_between(first, last) for first, last in runs]) if runs else pl.lit(False)
    )
    return of_prompts(table, own.filter(inside))
