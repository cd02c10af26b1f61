"""Whose vector is added: every category's on every category's rows at equal KL."""

import polars as pl

from reports.page import wording as say
from reports.page.blocks import Block, Prose, Section, Table
from reports.page.run import Run
from reports.statistics.category import ALL, sentence

SIDES = {"towards": "Harmful prompts, steered towards refusal", "away": "Benign near-misses, steered away from refusal"}


def section(run: Run) -> Section | None:
    """The answer, a matrix a side, and what could not be brought to the budget."""
    table, test = run.table("category"), run.table("category_test")
    if table is None or test is None:
        return None
    budget = run.records.get("category", {}).get("key", {}).get("kl")
    blocks: list[Block] = [Prose(sentence(test, float(budget) if isinstance(budget, (int, float)) else None), "lead")]
    for side, caption in SIDES.items():
        rows = table.filter(pl.col("side") == side)
        if rows.height:
            blocks.append(
                Table(
                    f"category-{side}",
                    rows,
                    matrix(rows),
                    f"{caption}: refusal probability, rows by category in columns",
                )
            )
    odd = table.filter(pl.col("why_not").fill_null("") != "").unique(["side", "vector"], maintain_order=True)
    blocks += [Prose(f"{say.name(row['vector'])}, {row['side']}: its KL is {say.number(row['kl'])} nats: {say.name(row['why_not'], 120)}.", "warning")
               for row in odd.to_dicts()]  # fmt: skip
    blocks.append(tests(test))
    return Section("category", "Does it matter whose vector is added?", blocks)


def matrix(rows: pl.DataFrame) -> pl.DataFrame:
    """A row a vector, a column a category of prompts, each with its interval."""
    cells = rows.with_columns(
        say.column(rows, lambda value, low, high: f"{say.percent(value)} ({say.span(low, high)})",
                   "refusal_probability", "probability_low", "probability_high").alias("cell"),
        say.column(rows, say.number, "kl").alias("KL"), say.column(rows, say.name, "vector").alias("vector"),
        say.column(rows, say.name, "rows").alias("rows"),
    )  # fmt: skip
    wide = cells.pivot("rows", index=["vector", "KL"], values="cell", maintain_order=True)
    return wide.select("vector", "KL", *sorted(name for name in wide.columns if name not in ("vector", "KL", ALL)), ALL)


def tests(test: pl.DataFrame) -> Table:
    """Own category against others, with interval and permutation test."""
    shown = say.table_of(
        test,
        ("side", say.name, "side"),
        ("outcome", lambda outcome: say.name(str(outcome).replace("_", " ")), "outcome"),
        ("n", say.number, "n"),
        ("own better than others, points", say.points, "difference"),
        ("95 % interval", say.points_span, "low", "high"),
        ("p, permutation test", say.p_value, "p"),
    )
    return Table(
        "category-test",
        test,
        shown,
        "A row's own category's vector against the others', vectors' and rows' own strength taken out",
    )
