"""The first screen: what steering did, in a sentence with its interval, and the trade-off it made."""

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from data.contract import MACRO, POOLED, SCORERS
from data.store.tables import SUMMARY, Values
from reports.page import charts
from reports.page import wording as say
from reports.page.blocks import Block, Chart, Prose, Section, Table
from reports.page.names import Arm, kind_of, mark, unsaid
from reports.page.run import Run
from reports.scoring.leading import FEW, best_scorer, failures, trust
from reports.statistics import published
from reports.statistics.summary import holm

CONTROLS = ("baseline", "random", "wrong-category", "prompt-only", "logit-bias", "oracle")
LONGEST_MARK = 20


@dataclass(frozen=True)
class Pooled:
    """The pooled rows of one scorer, by label and arm, with tests adjusted over all of them.

    `failed` says of each scorer there is how large a share of an arm's answers it left without a verdict, at worst.
    """

    scorer: str
    rows: dict[tuple[str, str], Values]
    failed: dict[str, float]

    def row(self, label: str, arm: str) -> Values | None:
        """The row of a label and arm, if any of its answers count."""
        return self.rows.get((label, arm))


def section(run: Run) -> Section | None:
    """The answer, or None where nothing was evaluated."""
    pooled = pooled_rows(run)
    if pooled is None:
        return None
    arms = run.arms()
    named = {arm: shown for arm, shown in run.named().items() if arm in arms}
    first = leading_arm(run, arms)
    blocks: list[Block] = []
    if first:
        told = sentence(pooled, first, named[first].short)
        blocks += [Prose(told, "lead"), Prose(footing(run, pooled, first, arms), "note")]
    if len(arms) > 2 and (told := overview(pooled, named)):
        blocks.append(Prose(told))
    if told := beyond_the_papers(run):
        blocks.append(Prose(told, "note"))
    blocks += [Prose(text, "warning") for text in warnings(pooled, named)]
    blocks += trade_off(pooled, named)
    blocks += [Prose(text, "note")] if (text := unsaid(run.named())) else []
    blocks.append(glance(pooled, named, macro_rates(run, pooled.scorer)))
    return Section("answer", "What steering did", blocks)


def pooled_rows(run: Run) -> Pooled | None:
    """Pooled rows of the best scorer; Holm's adjustment spans every arm and label of it that is tested here."""
    summary = run.table("summary")
    if summary is None:
        return None
    pooled = summary.filter((pl.col("dataset") == POOLED) & (pl.col("n") > 0) & pl.col("label").is_in(say.LABELS))
    failed = failures(summary)
    scorer = best_scorer(pooled, failed)
    if scorer is None:
        return None
    whole = ["rate", "low", "high", "broken", "answered"]
    rows = pooled.filter(pl.col("scorer") == scorer).drop_nulls(whole).to_dicts()
    tested = [row for row in rows if row["p"] is not None]
    for row, p in zip(tested, holm([row["p"] for row in tested]) if tested else [], strict=True):
        row["p_holm"] = p
    return Pooled(scorer, {(row["label"], row["arm"]): row for row in rows}, failed)


def leading_arm(run: Run, arms: list[str]) -> str | None:
    """The arm to speak of first: the one chosen on validation, else the first that is neither baseline nor control."""
    steered = [arm for arm in arms if kind_of(arm) not in CONTROLS]
    chosen = chosen_arms(run)
    steered = [arm for arm in steered if arm in chosen] or steered
    return next(iter(steered or [arm for arm in arms if kind_of(arm) != "baseline"]), None)


def chosen_arms(run: Run) -> set[str]:
    """Arms that ran with the layer, strength and unit that the sweep chose for their kind."""
    sweep, generations = run.table("sweep"), run.table("generations")
    if sweep is None or generations is None:
        return set()
    keys = ["layer", "strength", "strength_unit", "kind"]
    chosen = sweep.filter("chosen").with_columns(pl.col("arm").str.split(":").list.first().alias("kind"))
    return set(generations.join(chosen.select(keys).unique(), on=keys, nulls_equal=True)["arm"])


def sentence(pooled: Pooled, arm: str, called: str) -> str:
    """One sentence with both rates, both differences and their intervals; refusal first where it is lost."""
    lost = pooled.row("harmful", arm)
    falls = lost is not None and lost["delta_high"] is not None and lost["delta_high"] < 0
    labels = tuple(reversed(say.LABELS)) if falls else say.LABELS
    parts = [finding(label, row, pooled.row(label, "baseline")) for label in labels if (row := pooled.row(label, arm))]
    if not parts:
        return f"Nothing is left to say of {called}: no answer of it counts."
    return f"With {called}, {'; '.join(parts)}."


def finding(label: str, row: Values, before: Values | None) -> str:
    """Whether a label's rate fell, rose or shows no change, with the difference and its interval."""
    what = say.REFUSED[label].lower()
    prompts = say.counted(row["n"], f"{label} prompt")
    if row["delta"] is None or row["delta_low"] is None or row["delta_high"] is None:
        return f"the model refuses {say.percent(row['rate'])} of {prompts}"
    rates = f"{say.percent(row['rate'])} of {prompts}"
    rates = f"from {say.percent(before['rate'])} to {rates}" if before else f"to {rates}"
    told = (
        f"{say.points(row['delta'])} points, 95\u00a0% interval {say.points_span(row['delta_low'], row['delta_high'])}"
    )
    if say.is_shown(row["delta_low"], row["delta_high"], row["p_holm"]):
        return f"{what} {'falls' if row['delta'] < 0 else 'rises'} {rates} ({told})"
    if row["delta_low"] > 0 or row["delta_high"] < 0:  # the interval stands alone; the test counts its companions
        told += f"; p = {say.p_value(row['p_holm'])} adjusted for all comparisons"
    return f"no change of {what} is shown: {rates} ({told})"


def footing(run: Run, pooled: Pooled, arm: str, arms: list[str]) -> str:
    """How the sentence's arm was picked, its broken answers, who scored, and how many arms stand beside it."""
    steered = [other for other in arms if kind_of(other) not in CONTROLS]
    picked = (
        "Its setting was chosen on validation rows."
        if arm in chosen_arms(run)
        else f"It is the first of {say.counted(len(steered), 'steered arm')}; none was chosen on validation rows."
        if len(steered) > 1
        else ""
    )
    broken = [f"{say.percent(row['broken'] / row['n'])} of the {label}" for label in say.LABELS
              if (row := pooled.row(label, arm)) and row["broken"]]  # fmt: skip
    answers = f"Broken answers: {' and '.join(broken)}." if broken else "None of its answers is broken."
    others = len([other for other in arms if other not in (arm, "baseline")])
    beside = f"{say.counted(others, 'other arm')} below." if others else ""
    return " ".join(part for part in (picked, answers, scored(pooled), beside) if part)


def scored(pooled: Pooled) -> str:
    """Who scored, on how many answers it gave no verdict, and which better scorer was passed over for that."""

    def left(scorer: str) -> str:
        return f"gave no verdict on {'up to ' if pooled.failed[scorer] < 1 else ''}{say.percent(pooled.failed[scorer])}"

    better = [name for name in list(SCORERS)[: trust(pooled.scorer)] if pooled.failed.get(name, 0.0) > FEW]
    own = f", which {left(pooled.scorer)} of an arm’s answers" if pooled.failed.get(pooled.scorer) else ""
    instead = "".join(f" Not by {name}, which {left(name)} of an arm’s answers." for name in better)
    return f"Scored by {pooled.scorer}{own}.{instead}"


def beyond_the_papers(run: Run) -> str:
    """After `reproduce`: the pooled sets that its table leaves out of the papers' sums."""
    summary = run.table("summary")
    if summary is None or not isinstance(run.records.get("paper", {}).get("missing"), dict):
        return ""
    theirs = {name for row in published.PUBLISHED for name in (row.source, row.source.partition("/")[0])}
    here = summary.filter(~pl.col("dataset").is_in([POOLED, MACRO]) & (pl.col("n") > 0))
    more = sorted(set(here["dataset"]) - theirs)
    if not more:
        return ""
    names = say.listed(say.name(name) for name in more)
    return f"These rates pool every set of this run; the sums beside the papers’ leave out {names}, which they don’t report."


def overview(pooled: Pooled, arms: Mapping[str, Arm]) -> str:
    """In which arms over-refusal is shown to fall, and in how many of those refusal of harmful prompts falls too."""

    def falls(label: str, arm: str) -> bool:
        row = pooled.row(label, arm)
        shown = row is not None and say.is_shown(row["delta_low"], row["delta_high"], row["p_holm"])
        return row is not None and shown and row["delta_high"] + more_nonsense(label, arm) < 0

    def more_nonsense(label: str, arm: str) -> float:
        """Share of answers that became incoherent: none of them is a cure, so a fall has to be larger."""
        row, before = pooled.row(label, arm), pooled.row(label, "baseline")
        counts = [one.get("incoherent") for one in (row, before) if one]
        if label != "benign" or len(counts) < 2 or None in counts or not row or not before:
            return 0.0
        return max(0.0, counts[0] / row["n"] - counts[1] / before["n"])

    compared = [arm for arm in arms if (row := pooled.row("benign", arm)) and row["delta"] is not None]
    fallen = [arm for arm in compared if falls("benign", arm)]
    if not compared:
        return ""
    if not fallen:
        of = "the one arm" if len(compared) == 1 else f"any of the {len(compared)} arms"
        return f"Over-refusal is not shown to fall in {of} compared with the baseline."
    names = say.listed(arms[arm].short for arm in fallen)
    if len(fallen) == len(compared):
        told = f"Over-refusal is shown to fall in {'the one arm' if len(fallen) == 1 else f'all {len(fallen)} arms'} compared with the baseline."
    else:
        told = f"Over-refusal is shown to fall in {len(fallen)} of the {len(compared)} arms that are compared with the baseline: {names}."
    weighed = [arm for arm in fallen if pooled.row("harmful", arm)]
    lost = [arm for arm in weighed if falls("harmful", arm)]
    if not weighed:
        return told
    among = "it" if len(weighed) == 1 else "each of these" if len(lost) == len(weighed) else "none of these"
    among = say.listed(arms[arm].short for arm in lost) if 0 < len(lost) < len(weighed) else among
    if not lost:
        not_ = "not " if len(weighed) == 1 else ""
        return f"{told} In {among}, refusal of harmful prompts is {not_}shown to fall."
    return f"{told} In {among}, refusal of harmful prompts is shown to fall too."


def warnings(pooled: Pooled, arms: Mapping[str, Arm]) -> list[str]:
    """What a reader must know before believing a fall in refusals."""
    found = []
    for label in say.LABELS:
        before = pooled.row(label, "baseline")
        for arm, shown in arms.items():
            row = pooled.row(label, arm)
            if row and before and row["broken"] / row["n"] > before["broken"] / before["n"] + charts.HOLLOW_FROM:
                shares = [say.percent(one["broken"] / one["n"]) for one in (row, before)]
                found.append(
                    f"{shown.short}: {shares[0]} of its answers to {label} prompts are broken ({shares[1]} "
                    "unsteered). A broken answer is neither a refusal nor a cure."
                )
            if row and before and rises(row, before):
                shares = [say.percent(one["incoherent"] / one["n"]) for one in (row, before)]
                found.append(f"{shown.short}: {shares[0]} of its answers to {label} prompts are incoherent ({shares[1]} unsteered): fluent nonsense, "
                             "which is counted in no cure.")  # fmt: skip
    if not any(pooled.row(label, "baseline") for label in say.LABELS):
        found.append("There is no baseline: run it too, or no difference can be told from chance.")
    unsteered = [before for label in say.LABELS if (before := pooled.row(label, "baseline"))]
    if unsteered and not any(before["rate"] for before in unsteered):
        found.append("The unsteered model declined none of these prompts: there is no refusal to take away, and these rates say "
                     "nothing of steering away from it.")  # fmt: skip
    return found


def rises(row: Values, before: Values) -> bool:
    """Whether an arm gives more incoherent answers than the unsteered model, by intervals that don't meet."""
    ends = row.get("incoherent_low"), before.get("incoherent_high")
    return ends[0] is not None and ends[1] is not None and ends[0] > ends[1]


def trade_off(pooled: Pooled, arms: Mapping[str, Arm]) -> list[Block]:
    """The chart, where there are both benign and harmful prompts."""
    rows = []
    for arm, shown in arms.items():
        benign, harmful = pooled.row("benign", arm), pooled.row("harmful", arm)
        if benign is None or harmful is None:
            continue
        rows.append({"arm": shown.short, "group": shown.group, "order": shown.strength or 0.0, "mark": beside(shown),
                     **point(benign, harmful, joined=shown.strength is not None)})  # fmt: skip
    if not rows:
        return []
    groups = list(dict.fromkeys(row["group"] for row in rows))
    table = pl.DataFrame(rows)
    caption = (
        f"Over-refusal against refusal, all data sets pooled, scored by {pooled.scorer}: benign prompts n = "
        f"{say.count_range(table['n_x'])}, harmful n = {say.count_range(table['n_y'])}. Up and to the left is "
        f"better. Bars are Wilson's 95 % intervals.{drawn_as(table)}"
    )
    return [Chart("trade-off", charts.trade_off(table, groups), caption)]


def point(benign: Values, harmful: Values, *, joined: bool) -> Values:
    """Where an arm stands in the chart: both rates with their intervals, and the share of broken answers."""
    broken = (benign["broken"] + harmful["broken"]) / (benign["n"] + harmful["n"])
    sides = {
        f"{key}_{side}": row[key]
        for side, row in (("x", benign), ("y", harmful))
        for key in ("rate", "low", "high", "n")
    }
    return {"broken": broken, "hollow": broken > charts.HOLLOW_FROM, "line": joined, **sides}


def drawn_as(table: pl.DataFrame) -> str:
    """What lines, numbers and hollow points mean, as far as the chart has any."""
    told = ""
    if table.filter("line").height:
        told += " Numbers are strengths, where there is room; a line joins those of one kind."
    if table["hollow"].any():
        told += f" Hollow: over {say.percent(charts.HOLLOW_FROM, 0)} of answers broken."
    return told


def beside(arm: Arm) -> str:
    """What stands beside a point of the chart: its strength, else its name, if that is short."""
    if arm.strength is not None:
        return mark(arm.strength)
    return arm.group if len(arm.group) <= LONGEST_MARK else ""


def macro_rates(run: Run, scorer: str) -> dict[tuple[str, str], float]:
    """Label and arm -> mean of the data sets' rates."""
    summary = run.table("summary")
    if summary is None:
        return {}
    rows = summary.filter((pl.col("dataset") == MACRO) & (pl.col("scorer") == scorer)).drop_nulls(["label", "rate"])
    return {(label, arm): rate for label, arm, rate in rows.select("label", "arm", "rate").iter_rows()}


def glance(pooled: Pooled, arms: Mapping[str, Arm], macro: dict[tuple[str, str], float]) -> Table:
    """Every arm's pooled rates in one table, and the mean of the data sets' rates."""
    rows = [row for label in say.LABELS for arm in arms if (row := pooled.row(label, arm))]
    keep = ("arm", "label", "n", "rate", "low", "high", "broken", "answered", "n_paired", "delta", "delta_low", "delta_high", "p",
            "p_holm")  # fmt: skip
    means = [macro.get((row["label"], row["arm"])) for row in rows]
    frame = pl.DataFrame([{key: row[key] for key in keep} for row in rows], {key: SUMMARY[key] for key in keep})
    frame = frame.with_columns(pl.Series("macro_rate", means, pl.Float64))
    shown = say.table_of(
        frame,
        ("prompts", say.PROMPTS.get, "label"),
        ("arm", lambda arm: arms[arm].short, "arm"),
        ("n", say.number, "n"),
        ("refused", say.percent, "rate"),
        ("95 % interval", say.span, "low", "high"),
        ("mean of sets", say.percent, "macro_rate"),
        ("broken", say.share, "broken", "n"),
        ("against baseline", say.points, "delta"),
        ("95 % interval of it", say.points_span, "delta_low", "delta_high"),
        ("p (Holm)", say.p_value, "p_holm"),
    )
    caption = f"Every arm, all data sets pooled, scored by {pooled.scorer}"
    return Table("at-a-glance", frame, shown, caption, group="prompts", folded=True)
