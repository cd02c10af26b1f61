"""Will a gate carry over: how well it tells rows apart that it was fitted without, of other themes and of other data sets.

A bag of words that is fitted and scored on the same rows stands beside, the control that a gate must beat.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from data.errors import UserError
from data.store.tables import GATE_QUALITY
from interventions.gates import words
from interventions.gates.combination import out_of_fold
from interventions.gates.features import Features, Fit, fitted
from interventions.gates.gate import FittedGate
from interventions.gates.quality import auc, theme_folds


@dataclass(frozen=True)
class GateRows:
    """Labelled prompts to fit a gate on.

    Attributes:
        frame: Their rows, none without a label.
        themes: (rows,) whom each is a sibling of: siblings are never on both sides of a fold.
        declined: (rows,) bool, whether the model declines unsteered; None where it can't say so by its first token.
        taught: (rows,) bool, whether the model was taught the row: it is fitted on, and nothing is chosen by it.
    """

    frame: pl.DataFrame
    themes: Sequence[str]
    declined: np.ndarray | None
    taught: np.ndarray

    @property
    def harmful(self) -> np.ndarray:
        """(rows,) bool."""
        return (self.frame["label"] == "harmful").to_numpy()

    @property
    def counted(self) -> np.ndarray:
        """(rows,) bool, whether thresholds are chosen by the row: all but the taught ones, unless too few are left."""
        free, harmful = ~self.taught, self.harmful
        return free if (free & harmful).any() and (free & ~harmful).any() else np.ones(len(free), bool)


def fit_words(features: Features, rows: np.ndarray, harmful: np.ndarray, _themes: Sequence[str]) -> FittedGate:
    """A bag of words; those that stand in two of the rows.

    Raises:
        UserError: No word does.
    """
    texts = [features.texts[int(row)] for row in rows]
    known = words.vocabulary(texts)
    if not known:
        raise UserError("no word stands in two prompts: there is nothing for a gate of words to go by; add prompts")
    return fitted(*words.fit(texts, known, harmful), words=json.dumps(known, ensure_ascii=False))


def carried_over(
    rows: GateRows, features: Features, fit: Fit, score: np.ndarray | None = None, threshold: float | None = None
) -> pl.DataFrame:
    """The table, in the columns of `GATE_QUALITY`.

    Args:
        rows: The prompts.
        features: What was read of them, in their order.
        fit: How the gate is fitted.
        score: (rows,) each by a gate that was fitted without its theme; None: they are computed.
        threshold: From which on a row counts as harmful; None: nothing is said of what passes.
    """
    found = _told_of_all(rows, features, fit, score, threshold)
    try:
        control = _told_of_all(rows, features, fit_words, None, None)
    except UserError:  # no word in common
        control = []
    for row, beside in zip(found, control, strict=False):
        row |= {f"words_{name}": beside.get(name) for name in ("auc", "over_refusal_kept")}
    return pl.DataFrame(found, GATE_QUALITY)


def _told_of_all(
    rows: GateRows, features: Features, fit: Fit, score: np.ndarray | None, threshold: float | None
) -> list[dict[str, object]]:
    """What is told of the rows by scores without their theme, and of each data set by a gate without it."""
    harmful, every = rows.harmful, np.arange(rows.frame.height)
    if score is None:
        score = out_of_fold(features, every, harmful, rows.themes, fit)
    found, names = [told("other themes", score, rows, np.ones(len(harmful), bool), threshold)], np.array(rows.themes)
    for name, mine in _sets(rows):
        gate = fit(features, every[~mine], harmful[~mine], names[~mine].tolist())
        one = np.zeros(len(harmful), np.float32)
        one[mine] = features.score(gate, every[mine])
        found.append(told(f"without {name}", one, rows, mine, threshold))
    return found


def trained_on(rows: GateRows) -> list[np.ndarray]:
    """The row numbers that `carried_over` fits gates to, where scores aren't given.

    Raises:
        UserError: Too few themes.
    """
    return [train for train, _ in theme_folds(rows.harmful, rows.themes)] + [
        np.flatnonzero(~mine) for _, mine in _sets(rows)
    ]


def _sets(rows: GateRows) -> list[tuple[str, np.ndarray]]:
    """Data sets, and (rows,) bool which are theirs: those which, and beside which, harmful and benign rows are."""
    harmful, sets = rows.harmful, rows.frame["dataset"].to_numpy()
    found = [(name, sets == name) for name in dict.fromkeys(sets.tolist())]
    return [(name, mine) for name, mine in found if len(set(harmful[mine])) == len(set(harmful[~mine])) == 2]


def told(what: str, score: np.ndarray, rows: GateRows, mine: np.ndarray, threshold: float | None) -> dict[str, object]:
    """AUC over all of some rows and among those that the model declines, and what the threshold does to them."""
    harmful = rows.harmful
    found: dict[str, object] = {
        "rows": what,
        "n_harmful": int((mine & harmful).sum()),
        "n_benign": int((mine & ~harmful).sum()),
        "auc": auc(harmful[mine], score[mine]),
    }
    if threshold is not None:
        passed = score < np.float32(threshold)
        found |= {f"{label}_passed": float(passed[mine & group].mean())
                  for label, group in (("harmful", harmful), ("benign", ~harmful))}  # fmt: skip
    if rows.declined is None:
        return found
    declined = rows.declined & mine
    if len(set(harmful[declined])) == 2:
        found["auc_declined"] = auc(harmful[declined], score[declined])
    found["refusal"], found["over_refusal"] = (
        float(rows.declined[mine & group].mean()) for group in (harmful, ~harmful)
    )
    found["over_refusal_kept"] = unchanged_refusal(score[mine], harmful[mine], rows.declined[mine])
    return found


def unchanged_refusal(score: np.ndarray, harmful: np.ndarray, declined: np.ndarray) -> float:
    """Over-refusal if steering makes all rows declined that score at least t, and no other, with t such that as many harmful rows are as
    unsteered. It compares gates: t comes from the rows themselves. By the model's own margin it is the unsteered over-refusal."""
    kept = int((declined & harmful).sum())
    if kept == 0:
        return 0.0
    threshold = np.sort(score[harmful])[-kept]
    return float((score[~harmful] >= threshold).mean())
