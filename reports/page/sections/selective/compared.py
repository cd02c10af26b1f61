"""Methods and gates at equal harm on validation rows: their trade-offs, and which of them keeps what is promised."""

import polars as pl

from data.store.tables import COMPARED, Values, answered_most, answered_some
from reports.page import charts
from reports.page import wording as say
from reports.page.blocks import Block, Chart, Prose, Section, Table
from reports.page.run import Run

LINES = 6  # methods drawn, the best first; beside them the chosen one under a gate of words and under labels
NO_GATE = "none"
MAY_LACK = ("why_not", "harmful_threshold")  # columns in which a whole row may have nothing


def section(run: Run) -> Section | None:
    """What was compared, or None where nothing was."""
    table_of_run = run.table("compared")
    compared = (
        None if table_of_run is None else table_of_run.drop_nulls([name for name in COMPARED if name not in MAY_LACK])
    )
    if compared is None or compared.is_empty() or compared.filter(gate="").is_empty():
        return None
    caption = (
        f"Over-refusal against refusal on validation rows, a line a method under its best gate, from steering no prompt to "
        f"steering all as the gate's threshold rises: {extent(compared)}. Up and to the left is better. Bars are Wilson's 95 % "
        f"intervals. Hollow: over {say.percent(charts.HOLLOW_FROM, 0)} of answers broken."
    )
    lines = drawn(answered_most(compared))  # what answered some prompts alone does not stand beside the others
    chart = [
        Chart("compared-lines", charts.trade_off(lines, lines["group"].unique(maintain_order=True).to_list()), caption)
    ]
    blocks: list[Block] = [Prose(told(compared)), *(chart if lines.height else []), table(compared), reached(compared)]
    return Section("compared", "Methods and gates at equal harm", blocks)


def extent(compared: pl.DataFrame) -> str:
    """How many prompts, at which budgets."""
    row = answered_most(compared).row(0, named=True)
    budgets = say.listed(f"{budget:g}" for budget in compared["kl_budget"].unique().sort())
    return f"benign n = {say.number(row['n_benign'])}, harmful n = {say.number(row['n_harmful'])}; KL on harmless prompts {budgets} nats"


def told(compared: pl.DataFrame) -> str:
    """What was chosen, and what is shown of it beside the controls; nothing chosen is said so."""
    own, left = compared.filter(~pl.col("control")), left_behind(compared)
    tried = own.select("method", "gate", "kl_budget").unique().height
    start = answered_most(compared).filter(gate="").sort("threshold").row(0, named=True)
    of_all = " that answered every prompt" if left else ""
    if own.filter("chosen").is_empty():
        return (f"{say.counted(tried, 'setting')} tried; none{of_all} lowers over-refusal and keeps the refusals that it should with "
                f"95 % confidence: nothing is chosen. {left}").strip()  # fmt: skip
    best = own.filter("chosen").row(0, named=True)
    parts = [
        f"Of {say.counted(tried, 'setting')}, {called(best)} is chosen: over-refusal {rates(start, best, 'benign')}, "
        f"refusal {rates(start, best, 'harmful')}; at least {say.percent(best['kept_low'])} of the refusals are kept, with "
        "95 % confidence. These rows led to the choice and flatter it; the evaluation's don't."
    ]
    beaten = compared.filter(pl.col("control") & pl.col("promised") & (pl.col("gate") != "perfect")).sort("benign")
    if beaten.height:
        rival = beaten.row(0, named=True)
        apart = best["benign_high"] < rival["benign_low"]
        parts.append(
            f"The best control{of_all}, {called(rival)}, leaves {say.percent(rival['benign'])}: "
            + ("the intervals don't overlap." if apart else "the intervals overlap, so that no difference is shown.")
        )
    else:
        parts.append(f"No control{of_all} keeps the promise.")
    return " ".join([*parts, *([left] if left else [])])


def left_behind(compared: pl.DataFrame) -> str:
    """How many methods answered some prompts alone; empty where none did."""
    left, gone, every = answered_some(compared)
    if left.is_empty():
        return ""
    row = left.row(0, named=True)
    return (f"{gone} of {every} methods and controls, each at a budget, answered {row['n_benign']} of the benign and {row['n_harmful']} of the "
            "harmful prompts alone, and were left there, as others did better on these: of them no more is known, none is chosen or drawn, "
            "and the tables give the prompts that each answered.")  # fmt: skip


def rates(before: Values, after: Values, label: str) -> str:
    """From which share to which, with the interval."""
    span = say.span(after[f"{label}_low"], after[f"{label}_high"])
    return f"from {say.percent(before[label])} to {say.percent(after[label])} ({span})"


def called(row: Values) -> str:
    """A setting in a few words."""
    gate = f" under the gate {say.name(row['gate'])}" if row["gate"] else " without a gate"
    return f"{say.name(row['method'])}{gate}"


def drawn(compared: pl.DataFrame) -> pl.DataFrame:
    """The points of the chart: each method's best gate, and the chosen method's controls."""
    kept = compared.filter("promised").sort("benign")
    best = kept.filter(~pl.col("control")).unique("method", keep="first", maintain_order=True).head(LINES)
    wanted = best.select("method", "gate", "kl_budget")
    for row in compared.filter("chosen").iter_rows(named=True):
        more = [{"method": row["method"], "gate": gate, "kl_budget": row["kl_budget"]} for gate in ("words", "perfect")]
        wanted = pl.concat([wanted, pl.DataFrame(more, wanted.schema)])
    points = compared.join(wanted.unique(maintain_order=True), on=wanted.columns, maintain_order="right_left")
    group = pl.format("{}, {}", "method", pl.when(pl.col("gate") == "").then(pl.lit("no gate")).otherwise("gate"))
    sides = [pl.col(f"{label}{end}").alias(f"{name}{side}") for side, label in (("_x", "benign"), ("_y", "harmful"))
             for name, end in (("rate", ""), ("low", "_low"), ("high", "_high"))]  # fmt: skip
    return points.select(
        group.alias("arm"), group.alias("group"), pl.col("threshold").alias("order"), *sides,
        pl.col("n_benign").alias("n_x"), pl.col("n_harmful").alias("n_y"), "broken",
        (pl.col("broken") > charts.HOLLOW_FROM).alias("hollow"), pl.lit(True).alias("line"),
        pl.when("chosen").then(pl.lit("chosen")).otherwise(pl.lit("")).alias("mark"),
    )  # fmt: skip


def table(compared: pl.DataFrame) -> Table:
    """Every setting that keeps the promise, least over-refusal first."""
    kept = compared.filter("promised").sort("benign", "control")
    shown = say.table_of(
        kept,
        ("method", say.name, "method"),
        ("gate", lambda gate: say.name(gate or NO_GATE), "gate"),
        ("KL budget", say.number, "kl_budget"),
        ("over-refusal", say.percent, "benign"),
        ("95 % interval", say.span, "benign_low", "benign_high"),
        ("refusal", say.percent, "harmful"),
        ("95 % interval of it", say.span, "harmful_low", "harmful_high"),
        ("kept at least", say.percent, "kept_low"),
        ("broken", say.percent, "broken"),
        ("benign n", say.number, "n_benign"),
        ("harmful n", say.number, "n_harmful"),
        ("", lambda control, chosen: "chosen" if chosen else "control" if control else "", "control", "chosen"),
    )
    return Table("compared-kept", kept, shown, "Settings that lower over-refusal and keep the refusals", folded=True)


def reached(compared: pl.DataFrame) -> Table:
    """The strength and KL that each method came to, and how many prompts it answered."""
    frame = compared.select(
        "method", "kind", "strength", "strength_unit", "layer", "kl_budget", "kl", "why_not", "n_benign", "n_harmful"
    ).unique(maintain_order=True)
    shown = say.table_of(
        frame,
        ("method", say.name, "method"),
        ("strength", say.number, "strength"),
        ("unit", say.name, "strength_unit"),
        ("KL budget", say.number, "kl_budget"),
        ("KL", say.number, "kl"),
        ("why not the budget", say.name, "why_not"),
        ("benign n", say.number, "n_benign"),
        ("harmful n", say.number, "n_harmful"),
    )
    return Table("compared-kl", frame, shown, "What each method costs harmless prompts", folded=True)
