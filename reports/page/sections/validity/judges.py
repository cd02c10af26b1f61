"""How good are the scorers? Beside labels by hand, where `judges` held them against some; and scores of a rubric."""

import polars as pl

from reports.page import wording as say
from reports.page.blocks import Prose, Section, Table
from reports.page.run import Run

NOTE = (
    "Sensitivity is the share of full refusals by hand that a scorer calls refusals, specificity the share of all other answers, "
    "partial refusals among them, that it does not; Wilson's 95 % intervals. Rates corrected for these errors are Rogan and Gladen's (1978) "
    "with the interval of Lang and Reiczigel (2014): they hold where the scorer errs as it did on the labelled answers."
)
HALVES = "Nothing was tuned on the answers of half “held”; phrases and prompts may be on those of “tune”."


def section(run: Run) -> Section | None:
    """Errors, confusion, corrected rates, disagreements to read; None where nothing was compared."""
    found, classes = run.table("judges"), run.table("judges_classes")
    if found is None or classes is None:
        return None
    several = found["half"].n_unique() > 1
    blocks = [Prose(NOTE, "note"), *([Prose(HALVES, "note")] if several else []), _quality(found), _classes(classes)]
    rates, odd = run.table("judges_rates"), run.table("judges_disagreements")
    blocks += [] if rates is None else [_rates(rates)]
    blocks += [] if odd is None else [_odd(odd)]
    return Section("judges", "Scorers beside labels by hand", blocks)


def rubric(run: Run) -> Section | None:
    """Mean scores of a judge that gives any, by label and arm."""
    table = run.table("rubric")
    if table is None:
        return None
    frame = table.group_by("rubric", "label", "arm", maintain_order=True).agg(
        pl.len().alias("n"), pl.col("score").mean(), (pl.col("score").std() / pl.len().sqrt()).alias("stderr")
    )
    arms = run.named()
    shown = say.table_of(
        frame,
        ("rubric", say.name, "rubric"),
        ("label", say.name, "label"),
        ("arm", lambda arm: arms[arm].short if arm in arms else say.name(arm), "arm"),
        ("n", say.number, "n"),
        ("mean score", say.fixed, "score"),
        ("standard error", say.fixed, "stderr"),
    )
    told = Prose(
        "From 0 to 1: StrongREJECT's rubric is how convincing and specific an answer is that does not refuse; a guard's is harm.",
        "note",
    )
    return Section("rubric", "Scores of a rubric", [Table("rubric", frame, shown), told])


def _quality(found: pl.DataFrame) -> Table:
    shown = say.table_of(
        found,
        ("scorer", say.name, "scorer"),
        ("half", say.name, "half"),
        ("n", say.number, "n"),
        ("no verdict", say.number, "n_failed"),
        ("wrong class", say.percent, "error"),
        ("95 % interval", say.span, "low", "high"),
        ("kappa", say.fixed, "kappa"),
        ("95 % interval of kappa", say.fixed_span, "kappa_low", "kappa_high"),
        ("sensitivity", say.percent, "sensitivity"),
        ("its interval", say.span, "sensitivity_low", "sensitivity_high"),
        ("specificity", say.percent, "specificity"),
        ("interval of it", say.span, "specificity_low", "specificity_high"),
    )
    return Table("judges", found, shown, "Errors against labels by hand")


def _classes(classes: pl.DataFrame) -> Table:
    shown = say.table_of(
        classes,
        ("scorer", say.name, "scorer"),
        ("half", say.name, "half"),
        ("by hand", say.name, "hand"),
        ("n", say.number, "n"),
        *((f"called {verdict}", say.number, verdict) for verdict in ("comply", "partial", "refuse", "broken", "none")),
        ("wrong", say.percent, "error"),
        ("95 % interval", say.span, "low", "high"),
    )
    return Table("judges-classes", classes, shown, "What a scorer calls each class", group="scorer")


def _rates(rates: pl.DataFrame) -> Table:
    shown = say.table_of(
        rates,
        ("scorer", say.name, "scorer"),
        ("label", say.name, "label"),
        ("arm", say.name, "arm"),
        ("n", say.number, "n"),
        ("refused, raw", say.percent, "rate"),
        ("95 % interval", say.span, "low", "high"),
        ("corrected", say.percent, "corrected"),
        ("its interval", say.span, "corrected_low", "corrected_high"),
        ("by hand", say.percent, "hand"),
    )
    return Table("judges-rates", rates, shown, "Rates, raw and corrected for the scorer's errors")


def _odd(odd: pl.DataFrame) -> Table:
    names = ("scorer", "half", "hand", "verdict", "arm", "prompt", "response")
    return Table("judges-disagreements", odd, odd.select(names).rename({"hand": "by hand"}),
                 "Where a scorer and the hand disagree", text=("prompt", "response"), folded=True)  # fmt: skip
