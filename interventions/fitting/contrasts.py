"""Which rows stand against which: for each category the rows that refuse and the rows that answer."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from data import for_split
from data.contract import ONE_CATEGORY, RESPOND
from data.errors import UserError


@dataclass(frozen=True)
class Contrast:
    """The two sides whose difference is a category's direction; row numbers of an activations file.

    Attributes:
        category: Its name.
        positive: Rows of the category.
        negative: Benign rows (of any category), or with `paired` the same prompts answered, row by row.
        paired: Whether positive[i] and negative[i] are the same prompt.
    """

    category: str
    positive: np.ndarray
    negative: np.ndarray
    paired: bool = False


def with_category(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows; where no harmful one has a category, all of them are of the one `refusal`."""
    harmful = pl.col("label") == "harmful"
    if rows.filter(harmful)["category"].drop_nulls().len():
        return rows
    return rows.with_columns(pl.when(harmful).then(pl.lit(ONE_CATEGORY)).otherwise("category").alias("category"))


def has_suffixes(rows: pl.DataFrame) -> bool:
    """Whether this is the row table of `pairs`: a row for each prompt and suffix."""
    return rows["suffix"].null_count() < rows.height


def contrasts(rows: pl.DataFrame, split: str, *, paired: bool = False, respond: str = RESPOND) -> list[Contrast]:
    """One contrast a category, sorted by name.

    Unpaired: harmful rows of the category against benign rows of any category (*What Do Refusal Tokens Learn?*,
    difference in means). Where rows have suffixes, only those of the harmful prompt with its own category's token and
    of the benign prompt with the respond token. Paired: the harmful prompt with its own category's token against the
    same prompt with the respond token (arXiv 2603.13359, contrastive vectors).

    Args:
        rows: Row table of an activations file.
        split: Rows of this split, and those without any, are used.
        paired: Compare each prompt with itself.
        respond: The respond token's name, without brackets.

    Raises:
        UserError: No harmful row, no benign row, or a suffix that is missing.
    """
    fit = with_category(for_split(rows.with_row_index("row"), split))
    harmful = fit.filter((pl.col("label") == "harmful") & pl.col("category").is_not_null())
    if harmful.is_empty():
        raise UserError(f"no harmful row in split {split!r}: a column 'label' of the prompts says which are harmful, and "
                        "--split takes others")  # fmt: skip
    names = sorted(harmful["category"].unique())
    tagged = has_suffixes(rows)
    if paired and not tagged:
        raise UserError(f"these activations have no suffixes: run extract {_suffixes([*names, respond])}")
    if tagged:
        _check_suffixes(rows, [*names, respond])
    if paired:
        return [_pairs(harmful.filter(pl.col("category") == name), name, respond) for name in names]
    benign = fit.filter(pl.col("label") == "benign")
    if tagged:
        harmful = harmful.filter(_suffix() == pl.format("[{}]", "category"))
        benign = benign.filter(_suffix() == f"[{respond}]")
    if benign.is_empty():
        raise UserError(
            f"no benign row in split {split!r}: `extract --benign NAME_OR_FILE` adds some (for instance embedded)"
        )
    answered = benign["row"].to_numpy()
    return [Contrast(name, harmful.filter(pl.col("category") == name)["row"].to_numpy(), answered) for name in names]


def shuffled(chosen: list[Contrast], rng: np.random.Generator) -> list[Contrast]:
    """The same contrasts under permuted labels: what is left of a direction when the labels mean nothing.

    Unpaired: all rows are dealt out anew, in the same numbers. Paired: the sides of each pair change places or not.
    """
    if chosen[0].paired:
        return [_swapped(contrast, rng.random(len(contrast.positive)) < 0.5) for contrast in chosen]
    sizes = [len(contrast.positive) for contrast in chosen]
    pool = rng.permutation(np.concatenate([*(contrast.positive for contrast in chosen), chosen[0].negative]))
    *dealt, answered = np.split(pool, np.cumsum(sizes))
    return [Contrast(c.category, rows, answered) for c, rows in zip(chosen, dealt, strict=True)]


def _swapped(contrast: Contrast, swap: np.ndarray) -> Contrast:
    positive = np.where(swap, contrast.negative, contrast.positive)
    negative = np.where(swap, contrast.positive, contrast.negative)
    return Contrast(contrast.category, positive, negative, paired=True)


def _suffix() -> pl.Expr:
    return pl.col("suffix").str.strip_chars()


def _pairs(harmful: pl.DataFrame, name: str, respond: str) -> Contrast:
    key = ["dataset", "id"]
    one = [harmful.filter(_suffix() == f"[{token}]").unique(key, keep="first") for token in (name, respond)]
    both = one[0].join(one[1], on=key, suffix="_answered").sort("row")
    return Contrast(name, both["row"].to_numpy(), both["row_answered"].to_numpy(), paired=True)


def _check_suffixes(rows: pl.DataFrame, tokens: list[str]) -> None:
    there = set(rows.select(_suffix()).to_series())
    missing = [token for token in tokens if f"[{token}]" not in there]
    if missing:
        raise UserError(f"no activations with suffix {f'[{missing[0]}]'!r}: run extract {_suffixes(tokens)}")


def _suffixes(tokens: list[str]) -> str:
    return " ".join(f"--suffix {f'[{token}]'!r}" for token in tokens)
