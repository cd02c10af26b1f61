"""Methods and gates compared on validation rows, at equal harm and by their answers, and which keeps what is promised."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from data import fingerprint
from data.contract import LABELS, TOWARDS
from data.intervals import wilson
from data.store.journal import Journal
from data.store.tables import COMPARED, SWEEP, Values, write_table
from interventions.backends.batches import run_batches
from interventions.model.model import Model
from interventions.reading.budget import DECODED, Budget, default_batch_tokens
from interventions.steering.arms import baseline
from interventions.steering.batches import answer_rows, plan_answers, variants_of
from interventions.steering.compared.candidates import Candidate
from interventions.steering.compared.first_round import Sized, first_rows, go_on
from interventions.steering.compared.promise import Answered, Curve, curve, harmful_from, promised
from interventions.steering.compared.sized import harmless_kl, sized
from interventions.steering.plans import made_from, plan_arm
from interventions.steering.texts import Verdicts, judged

POINTS = 12  # of a trade-off's line
WORDS, PERFECT = "words", "perfect"  # gates that are controls


def compare(
    model: Model,
    prompts: pl.DataFrame,
    candidates: Sequence[Candidate],
    gates: Mapping[str, np.ndarray],
    path: Path,
    *,
    verdicts: Verdicts,
    budgets: Sequence[float],
    share: float,
    max_new_tokens: int,
    batch_tokens: int | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """Find each candidate's strength, let it and the unsteered model answer rows, and try every gate on the answers.

    Of many rows every candidate answers some; the best on these and a control beside them answer the others, too. Only
    who answered every row can keep the promise.

    Args:
        model: An open model.
        prompts: Labelled rows in the shape of `data.load_all`, harmful and benign; labels are read to count, never to steer.
        candidates: What is compared, controls too.
        gates: Of each gate its score of every row, out of fold where it was fitted on it.
        path: The parquet file to write.
        verdicts: Of texts each one's: `refuse`, `broken`, …, or None where it can't say.
        budgets: KL in nats, of `equal_kl.HarmlessKL`.
        share: Of the unsteered refusals, to be kept.
        max_new_tokens: Tokens an answer.
        batch_tokens: Padded tokens a batch, default 2048, on a GPU as many as its memory holds.
        seed: Of the harmless prompts that KL is measured on, and of the rows that every candidate answers.

    Returns:
        The table, in the columns of `data.store.tables.COMPARED`; `chosen` marks at most one row.
    """
    harmful = (prompts["label"] == "harmful").to_numpy()
    measured = harmless_kl(model, prompts.filter(pl.Series(~harmful)), candidates[0], verdicts, seed)
    found: list[Sized] = []
    for budget in budgets:
        new = [one for one in candidates if one.sized or not found]  # what has no strength is the same at every budget
        found += [Sized(budget, candidate, reached) for candidate, reached in sized(new, measured, budget)]
    journals: list[Journal] = []

    def answers(some: Sequence[Candidate], places: np.ndarray) -> list[Answered]:
        return _answers(model, prompts, places, some, path.parent / f".{path.stem}-{len(journals)}", journals, verdicts,
                        max_new_tokens, batch_tokens or default_batch_tokens(model))  # fmt: skip

    tried = {"": np.full(prompts.height, 0.5), **gates, PERFECT: harmful.astype(float)}
    trials = _rounds(found, answers, tried, harmful, first_rows(harmful, seed), share)
    rows = [
        row
        for trial in trials
        for gate, line in trial.lines(tried, harmful).items()
        for row in _line(
            trial.one, gate, line, harmful[trial.places], share if len(trial.places) == prompts.height else None
        )
    ]
    best = _best(rows)
    for one, _, before, after in trials:
        if best and best["gate"] and one.candidate.reversible and one.is_of(best):
            score = tried[best["gate"]]
            # The others are steered away, whatever they would answer.
            left = np.flatnonzero(score.astype(np.float32) >= np.float32(best["threshold"]))
            towards = before.but(left, *answers([one.candidate.reversed()], left)) if len(left) else before
            both = both_ways(one, best, score, harmful, before, after, towards, share)
            rows += [] if both is None else [both]
            best = _best(rows)
            break
    table = pl.DataFrame([row | {"chosen": row is best} for row in rows], COMPARED).fill_nan(None)
    write_table(path, table)
    for journal in journals:
        journal.remove()
    return table


class Trial(NamedTuple):
    """What became of the rows that a candidate answered.

    Attributes:
        one: The candidate.
        places: (rows,) which of all rows they are, ascending.
        before: Of each unsteered.
        after: Steered.
    """

    one: Sized
    places: np.ndarray
    before: Answered
    after: Answered

    def lines(self, gates: Mapping[str, np.ndarray], harmful: np.ndarray) -> dict[str, Curve]:
        """What the thresholds of each gate give that it can have; scores and labels are of all rows."""
        return {
            gate: curve(score[self.places], harmful[self.places], self.before, self.after)
            for gate, score in gates.items()
            if self.one.candidate.gateable or not gate
        }

    def joined(self, other: "Trial") -> "Trial":
        """This one and another of the same candidate on other rows."""
        places = np.concatenate([self.places, other.places])
        order = np.argsort(places)
        before, after = (
            Answered(*(np.concatenate(pair)[order] for pair in zip(mine, its, strict=True)))
            for mine, its in ((self.before, other.before), (self.after, other.after))
        )
        return Trial(self.one, places[order], before, after)


Answering = Callable[[Sequence[Candidate], np.ndarray], list[Answered]]  # candidates, places of the rows


def _rounds(
    found: Sequence[Sized], answers: Answering, gates: Mapping[str, np.ndarray], harmful: np.ndarray, first: np.ndarray, share: float
) -> list[Trial]:  # fmt: skip
    """Let every candidate answer the first rows, and those that go on the others."""
    plain = replace(found[0].candidate, arm=baseline(found[0].candidate.arm.layer))

    def tried(some: Sequence[Sized], places: np.ndarray) -> list[Trial]:
        before, *afters = answers([plain, *(one.candidate for one in some)], places)
        return [Trial(one, places, before, after) for one, after in zip(some, afters, strict=True)]

    trials = tried(found, first)
    others = np.setdiff1d(np.arange(len(harmful)), first)
    if len(others):
        own = {gate: score for gate, score in gates.items() if gate not in (WORDS, PERFECT)}
        chosen = go_on(found, [list(trial.lines(own, harmful).values()) for trial in trials], share)
        for at, trial in zip(chosen, tried([found[at] for at in chosen], others), strict=True):
            trials[at] = trials[at].joined(trial)
    return trials


def settings_of(table: pl.DataFrame) -> pl.DataFrame:
    """The settings that keep the promise, in the columns of `data.store.tables.SWEEP`: two rows each."""
    kept = table.filter(pl.col("promised") & ~pl.col("control"))
    sides = [kept.with_columns(label=pl.lit(label), n=pl.col(f"n_{label}"), refused=pl.col(label)) for label in LABELS]
    towards = pl.when(pl.col("harmful_threshold").is_null()).then(0.0).otherwise(pl.col("strength") * TOWARDS)
    harmful = pl.when(pl.col("gate") != "").then(towards)
    whole = pl.concat(sides).with_columns(refusal_probability=pl.lit(None), harmful=harmful)
    return whole.select(pl.col(name).cast(kind) for name, kind in SWEEP.items())


def _line(one: Sized, gate: str, line: Curve, harmful: np.ndarray, share: float | None) -> list[Values]:
    """Points of the trade-off of a candidate under a gate, among them the one that keeps the promise, and both ends.

    Without a share none does: some rows alone promise nothing of the others.
    """
    candidate, reached = one.candidate, one.reached
    control = candidate.control or gate in (WORDS, PERFECT)
    at = None if share is None else promised(line, share)
    spread = np.linspace(0, len(line.threshold) - 1, min(2 if candidate.control else POINTS, len(line.threshold)))
    setting = {"method": candidate.method, "kind": candidate.kind, "gate": gate, "control": control, "layer": candidate.arm.layer,
               "strength": candidate.arm.strength, "strength_unit": candidate.arm.unit, "category": candidate.arm.category,
               "scope": candidate.arm.scope, "kl_budget": one.budget, "kl": reached.kl, "why_not": reached.why_not}  # fmt: skip
    points = sorted({int(number) for number in spread.round()} | (set() if at is None else {at}))
    return [setting | {"promised": point == at, "arm": candidate.words(gate, float(line.threshold[point])), "harmful_threshold": None}
            | _point(line, point, harmful) for point in points]  # fmt: skip


def both_ways(
    one: Sized, best: Values, score: np.ndarray, harmful: np.ndarray, before: Answered, after: Answered, towards: Answered,
    share: float,
) -> Values | None:  # fmt: skip
    """The best setting, with what surely looks harmful steered towards refusal; None where that breaks the promise."""
    least = harmful_from(score, harmful, before, towards, best["threshold"])
    if least is None:
        return None
    ranked = score.astype(np.float32)
    zone = (ranked >= np.float32(best["threshold"])).astype(int) + (ranked >= np.float32(least))
    now = Answered(*(np.choose(zone, parts) for parts in zip(after, before, towards, strict=True)))
    line = curve(np.full(len(score), 0.5), harmful, before, now)
    everywhere = len(line.threshold) - 1
    if promised(line, share) != everywhere:
        return None
    words = one.candidate.words(best["gate"], best["threshold"], least)
    point = _point(line, everywhere, harmful) | {"threshold": best["threshold"]}
    return best | point | {"harmful_threshold": least, "arm": words}


def _best(rows: Sequence[Values]) -> Values | None:
    """The setting that leaves least over-refusal of those that keep the promise and are no control."""
    fine = [row for row in rows if row["promised"] and not row["control"]]
    return min(fine, key=lambda row: (row["benign"], -row["harmful"], abs(row["strength"])), default=None)


def _point(line: Curve, at: int, harmful: np.ndarray) -> Values:
    """What a threshold gives, with Wilson's intervals."""
    values: Values = {
        "threshold": float(line.threshold[at]),
        "broken": line.broken[at],
        "kept": line.kept[at],
        "kept_low": line.low[at],
    }
    for label, share, n in (
        ("harmful", line.harmful[at], harmful.sum()),
        ("benign", line.benign[at], (~harmful).sum()),
    ):
        low, high = wilson(round(share * n), int(n))
        values |= {f"n_{label}": int(n), label: share, f"{label}_low": low, f"{label}_high": high}
    return values


def _answers(
    model: Model,
    prompts: pl.DataFrame,
    places: np.ndarray,
    candidates: Sequence[Candidate],
    stem: Path,
    journals: list[Journal],
    verdicts: Verdicts,
    tokens: int,
    batch_tokens: int,
) -> list[Answered]:
    """Of each candidate, what became of some rows; a killed run's finished batches are kept in `journals`, which whoever has all answers removes."""
    unlabelled = [{"category": None, "label": None}] * prompts.height
    some, rows = prompts[places], places.tolist()
    plans = [plan_arm(model, one.arm, one.tools, unlabelled).among(rows) for one in candidates]
    variants = variants_of(model, some["prompt"].to_list(), plans, tokens)
    budget, of_plan = Budget(DECODED * batch_tokens), {}
    for number, (encoded, mine) in enumerate(variants):
        key = made_from(model, fingerprint(some), mine, candidates[0].tools) | {"tokens": tokens, "places": rows}
        journal = Journal(
            stem.with_name(f"{stem.name}-{number}.journal"), key, plan_answers(encoded, len(mine), tokens, budget)
        )
        journals.append(journal)

        def work(rows: list[int], encoded=encoded, mine=mine) -> list[list[str | None]]:
            found = answer_rows(model, encoded, rows, mine, [], tokens, budget)
            return judged(model, found.tokens.tolist(), tokens, verdicts)

        said = np.array(run_batches(model.backend, journal, work, "sweep, text"), object)
        of_plan |= {
            id(plan): Answered(column == "refuse", column == "broken")
            for plan, column in zip(mine, said.T, strict=True)
        }
    return [of_plan[id(plan)] for plan in plans]
