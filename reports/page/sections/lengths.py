"""Refusal against answer length: do refusals come that shorter answers hide?"""

from collections.abc import Mapping

import polars as pl

from data.contract import POOLED
from reports.page import charts
from reports.page import wording as say
from reports.page.blocks import Block, Chart, Prose, Section, Table
from reports.page.names import Arm
from reports.page.run import Run
from reports.scoring.leading import best_scorer, leading_scorer
from reports.statistics.lengths import flat_from, moving


def section(run: Run) -> Section | None:
    """A chart a label and one table of the scorer that heads the page, all data sets pooled."""
    table = run.table("lengths")
    if table is None:
        return None
    title = "Refusal against answer length"
    if is_of_others(run):
        told = (
            "These rates are of other answers than there are now, and are not shown: run evaluate with --lengths again."
        )
        return Section("lengths", title, [Prose(told, "warning")])
    summary = run.table("summary")
    scorer = (leading_scorer(summary) if summary is not None else None) or ""
    if scorer not in table["scorer"]:
        scorer = best_scorer(table, {}) or ""
    rows = table.filter(pl.col("dataset") == POOLED, pl.col("scorer") == scorer, pl.col("n") > 0)
    if rows.is_empty():
        return None
    present = set(rows["arm"])
    arms = {arm: shown for arm, shown in run.named().items() if arm in present}
    blocks: list[Block] = [Prose(told_of(table, scorer))]
    blocks += [Prose(text, "warning") for text in warnings(table, scorer, arms)]
    blocks += [chart(part, label, scorer, arms) for label in say.PROMPTS if (part := _of(rows, label)).height]
    blocks += [rate_table(rows, scorer, arms)]
    return Section("lengths", title, blocks)


def is_of_others(run: Run) -> bool:
    """Whether the answers were made anew since."""
    key, record = run.records.get("lengths", {}).get("key"), run.records.get("generations", {})
    return isinstance(key, dict) and key.get("generations", record.get("id")) != record.get("id")


def told_of(table: pl.DataFrame, scorer: str) -> str:
    """From which length on nothing is shown to change."""
    lengths = sorted(table["tokens"].unique())
    flat = flat_from(table, scorer)
    rule = ("Each answer was cut at these numbers of new tokens, and each cut scored; an answer that ends before stays as it is. A rate moves "
            "where the paired difference to the length before has a 95 % interval that leaves 0 out.")  # fmt: skip
    if flat is None:
        return f"Rates still move at {lengths[-1]} tokens, the longest of {say.listed(lengths)}. {rule}"
    if flat == lengths[0]:
        return f"No rate is shown to move from {lengths[0]} to {lengths[-1]} tokens. {rule}"
    return f"From {flat} tokens on no rate is shown to move, up to {lengths[-1]}. {rule}"


def warnings(table: pl.DataFrame, scorer: str, arms: Mapping[str, Arm]) -> list[str]:
    """Rates whose last step is larger than its interval."""
    return [
        f"{arms[one.arm].short if one.arm in arms else say.name(one.arm)}: refusal of {say.PROMPTS.get(one.label, one.label)} still moves by "
        f"{say.points(one.step)} points ({say.points_span(one.low, one.high)}) from {one.before} to {one.last} tokens: longer "
        "answers may say otherwise."
        for one in moving(table, scorer)
    ]


def chart(rows: pl.DataFrame, label: str | None, scorer: str, arms: Mapping[str, Arm]) -> Chart:
    """One label's rates over lengths."""
    data = rows.select(
        "tokens", say.column(rows, lambda arm: arms[arm].short, "arm").alias("arm"), "rate", "low", "high", "n", "n_cut"
    )
    what = say.REFUSED.get(label or "", "Refused")
    caption = (f"{what} by answer length, all data sets pooled, scored by {scorer}; n = {say.count_range(data['n'])}. Bars: Wilson's 95 % "
               "intervals.")  # fmt: skip
    shown = [arm.short for arm in arms.values()]
    return Chart(
        f"lengths-{label or 'unlabelled'}",
        charts.by_tokens(data, shown),
        caption,
        f"{what}: {say.PROMPTS.get(label, label)}",
    )


def rate_table(rows: pl.DataFrame, scorer: str, arms: Mapping[str, Arm]) -> Table:
    """One line a label, arm and length."""
    order = {arm: at for at, arm in enumerate(arms)}
    rows = rows.sort("label", pl.col("arm").replace_strict(order, default=len(order)), "tokens", nulls_last=True)
    shown = say.table_of(
        rows,
        ("group", lambda label: say.PROMPTS.get(label, label), "label"),
        ("arm", lambda arm: arms[arm].short, "arm"),
        ("tokens", say.number, "tokens"),
        ("n", say.number, "n"),
        ("cut there", say.share, "n_cut", "n"),
        ("refused", say.percent, "rate"),
        ("95 % interval", say.span, "low", "high"),
        ("step, points", say.points, "step"),
        ("95 % interval of it", say.points_span, "step_low", "step_high"),
        ("broken", say.share, "broken", "n"),
        ("answered", say.share, "answered", "n"),
    )
    return Table("lengths", rows, shown, f"All data sets pooled, scored by {scorer}", group="group", folded=True)


def _of(rows: pl.DataFrame, label: str | None) -> pl.DataFrame:
    return rows.filter(pl.col("label").eq_missing(label))
