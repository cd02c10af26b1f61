"""Rates by data set, label and arm, with intervals and paired tests."""

from collections.abc import Mapping

import polars as pl

from data.contract import MACRO, POOLED
from reports.page import charts
from reports.page import wording as say
from reports.page.blocks import Block, Chart, Prose, Section, Table
from reports.page.names import Arm
from reports.page.run import Run
from reports.scoring.leading import leading_scorer, trust

TOGETHER = (POOLED, MACRO)
DROPPED = {"failed": "n_failed", "fitted": "n_overlap"}  # columns that stand on the page if they count anything


def section(run: Run) -> Section | None:
    """A chart a label and scorer, and one table with everything."""
    summary = run.table("summary")
    if summary is None:
        return None
    present = set(summary["arm"])
    arms = {arm: shown for arm, shown in run.named().items() if arm in present}
    best = leading_scorer(summary)
    scorers = sorted(summary["scorer"].unique().to_list(), key=lambda scorer: (scorer != best, trust(scorer)))
    alone = summary.filter(~pl.col("dataset").is_in(TOGETHER)).group_by("label").agg(pl.col("dataset").n_unique() == 1)
    lonely = alone.filter("dataset")["label"].to_list()  # with one set of a label, the pooled rows would say the same
    listed = summary.filter(~(pl.col("dataset").is_in(TOGETHER) & pl.col("label").is_in(lonely, nulls_equal=True)))
    blocks: list[Block] = []
    for label in [label for label in say.PROMPTS if label in summary["label"]]:
        rows = listed.filter((pl.col("scorer") == scorers[0]) & pl.col("label").eq_missing(label) & (pl.col("n") > 0))
        if rows.height:
            blocks.append(rate_chart(rows, label, scorers[0], arms))
    points = points_asked(run)
    blocks.append(Prose(notes(summary, points), "note"))
    for scorer in scorers:
        rows = listed.filter(pl.col("scorer") == scorer)
        blocks.append(rate_table(rows, scorer, arms, folded=scorer != scorers[0], points=points))
    return Section("rates", "Rates by data set and arm", blocks)


def rate_chart(rows: pl.DataFrame, label: str | None, scorer: str, arms: Mapping[str, Arm]) -> Chart:
    """One label's rates."""
    rows = rows.filter(pl.col("dataset") != MACRO)
    called = say.distinct(rows["dataset"], 40)
    data = rows.select(
        say.column(rows, lambda dataset: called[dataset], "dataset").alias("place"),
        say.column(rows, lambda arm: arms[arm].short, "arm").alias("arm"),
        "rate", "low", "high", "n", pl.col("broken") / pl.col("n"),
    )  # fmt: skip
    titles = {
        place[0]: f"{place[0]}\nn = {say.count_range(part['n'])}"
        for place, part in data.group_by("place", maintain_order=True)
    }
    data = data.with_columns(pl.col("place").replace_strict(titles))
    named = f"{say.REFUSED[label]}: {say.PROMPTS[label]} refused" if label in say.REFUSED else None
    title = named or f"{say.PROMPTS[None].capitalize()}: refused"
    caption = (
        f"By data set and arm, scored by {scorer}; n = {say.count_range(data['n'])}. Bars: Wilson's 95 % intervals. ✕: "
        "broken answers."
    )
    kinds = {arm.short: arm.group for arm in arms.values()}
    return Chart(f"rates-{label or 'unlabelled'}", charts.rates(data, kinds, list(titles.values())), caption, title)


def points_asked(run: Run) -> str:
    """The difference that `n_needed` is for: `5 points`."""
    key = run.records.get("summary", {}).get("key")
    asked = key.get("difference") if isinstance(key, dict) else None
    points = float(asked) if isinstance(asked, (int, float)) else 5.0
    return f"{points:g} point{'' if points == 1 else 's'}"


def rate_table(
    rows: pl.DataFrame, scorer: str, arms: Mapping[str, Arm], *, folded: bool, points: str = "5 points"
) -> Table:
    """One scorer's rows, in the order of arms."""
    order = {arm: at for at, arm in enumerate(arms)}
    first = {dataset: at for at, dataset in enumerate(TOGETHER)}  # as in the charts above
    rows = rows.sort(
        pl.col("label"), pl.col("dataset").replace_strict(first, default=len(first)), "dataset",
        pl.col("arm").replace_strict(order, default=len(order)), nulls_last=True,
    )  # fmt: skip
    needed = [(f"n for {points}", say.number, "n_needed")] if "n_needed" in rows.columns else []
    themes = [("by themes", say.span, "cluster_low", "cluster_high")] if has_themes(rows) else []
    partial = [("partial", say.share, "partial", "n")] if rows["partial"].sum() else []
    nonsense = [("incoherent", say.share, "incoherent", "n"), ("its 95 % interval", say.span, "incoherent_low", "incoherent_high"),
                ("cured", say.number, "cured")] if is_measured(rows) else []  # fmt: skip
    dropped = [(word, say.number, name) for word, name in DROPPED.items() if rows[name].sum()]
    shown = say.table_of(
        rows,
        ("group", lambda dataset, label: f"{say.name(dataset)}: {say.PROMPTS.get(label, label)}", "dataset", "label"),
        ("arm", lambda arm: arms[arm].short, "arm"),
        ("n", say.number, "n"),
        ("refused", say.percent, "rate"),
        ("95 % interval", say.span, "low", "high"),
        *themes,
        ("Δ\u00a0points", say.points, "delta"),
        ("95\u00a0%\u00a0interval of\u00a0Δ", say.points_span, "delta_low", "delta_high"),
        ("p", say.p_value, "p"),
        ("p\u00a0(Holm)", say.p_value, "p_holm"),
        ("difference", _verdict, "dataset", "delta_low", "delta_high", "p_holm"),
        ("broken", say.share, "broken", "n"),
        *partial,
        *nonsense,
        ("answered", say.share, "answered", "n"),
        *needed,
        *dropped,
    )
    return Table(f"rates-{scorer}", rows, shown, f"Scored by {scorer}", group="group", folded=folded)


def has_themes(summary: pl.DataFrame) -> bool:
    """Whether any rate has an interval that draws whole themes."""
    return "cluster_low" in summary.columns and summary["cluster_low"].is_not_null().any()


def is_measured(summary: pl.DataFrame) -> bool:
    """Whether it was looked at which answers are coherent."""
    return "incoherent" in summary.columns and summary["incoherent"].is_not_null().any()


def notes(summary: pl.DataFrame, points: str = "5 points") -> str:
    """What the columns mean."""
    tests = summary.filter(pl.col("p_holm").is_not_null()).group_by("scorer").len()["len"]
    family = f" ({say.count_range(tests)} tests a scorer)" if tests.len() else ""
    dropped = (
        " failed: the scorer gave no verdict; fitted: the prompt's text was used for fitting or choosing; both are left "
        "out of n."
        if any(summary[name].sum() for name in DROPPED.values())
        else ""
    )
    themes = (
        " by themes: a bootstrap that draws whole themes of prompts, which resemble one another; so do the intervals of "
        "(macro)."
    )
    nonsense = (
        " incoherent: answers that neither refuse nor are broken, and that the unsteered model would hardly write: their mean "
        "log-likelihood a token lies below the 1st percentile of its own answers of like length. They are not among those answered; cured: "
        "prompts that the baseline refuses and the arm answers, coherently."
    )
    return (
        "Δ: arm − baseline on the same prompts, with Newcombe's paired score interval; p: exact McNemar; Holm's "
        f"adjustment is over data set × label × arm{family}. (pooled) counts every prompt once, so large sets "
        f"weigh more; (macro) is the mean of the sets' rates, with a bootstrap interval and no test.{dropped} "
        f"n for {points}: the prompts that a difference of {points} needs to be found with 80 % power, at the "
        f"disagreement seen.{themes if has_themes(summary) else ''}{nonsense if is_measured(summary) else ''}"
    )


def _verdict(dataset: str, low: float | None, high: float | None, p: float | None) -> str:
    return "–" if low is None else "see Δ" if dataset in TOGETHER else say.verdict(low, high, p)
