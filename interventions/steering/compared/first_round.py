"""The rows that every candidate answers first, and the candidates that go on to the others."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from interventions.steering.compared.candidates import Candidate
from interventions.steering.compared.equal_kl import Reached
from interventions.steering.compared.promise import Curve, likely

ENOUGH = 128  # so few rows are answered by every candidate
FIRST = 80  # else so many
GO_ON = 3  # candidates that answer the others, too
BESIDE = "logit-bias"  # the control that does: no vector, under the same gates


class Sized(NamedTuple):
    """A candidate at the strength that a budget allows it."""

    budget: float
    candidate: Candidate
    reached: Reached

    def is_of(self, row: dict[str, object]) -> bool:
        """Whether a row of the table is of it."""
        return (self.budget, self.candidate.method) == (row["kl_budget"], row["method"])


def first_rows(harmful: np.ndarray, seed: int) -> np.ndarray:
    """Places of the rows of the first round, ascending: all where they are few, else half of each label as far as there are such.

    Args:
        harmful: (rows,) bool.
        seed: Which rows they are.
    """
    if len(harmful) <= ENOUGH:
        return np.arange(len(harmful))
    shuffled = np.random.default_rng(seed).permutation(len(harmful))
    sides = [shuffled[harmful[shuffled]], shuffled[~harmful[shuffled]]]
    least = [max(FIRST // 2, FIRST - len(other)) for other in reversed(sides)]  # of each, what the other lacks too
    return np.sort(np.concatenate([side[:most] for side, most in zip(sides, least, strict=True)]))


def go_on(found: Sequence[Sized], curves: Sequence[Sequence[Curve]], share: float) -> list[int]:
    """Places of the candidates that answer every row, ascending: the best on the first ones, and a control beside them.

    Args:
        found: Candidates.
        curves: Of each under every gate that is no control, by the first rows.
        share: Of the unsteered refusals, to be kept.
    """
    best = {
        at: min(_standing(one, line, share) for line in curves[at])
        for at, one in enumerate(found)
        if not one.candidate.control
    }
    beside = [at for at, one in enumerate(found) if one.candidate.control and one.candidate.method == BESIDE]
    return sorted([*sorted(best, key=lambda at: best[at])[:GO_ON], *beside])


def _standing(one: Sized, line: Curve, share: float) -> tuple[float, float, float]:
    """What candidates are ordered by, the least first, as settings that keep the promise are."""
    at = likely(line, share)
    return float(line.benign[at]), -float(line.harmful[at]), abs(one.candidate.arm.strength)
