"""From which score on a row counts as harmful, so that refusal is kept: a threshold that promises something."""

from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Kept:
    """A threshold and what it promises.

    Attributes:
        threshold: Rows whose score reaches it count as harmful; None: no threshold keeps what was asked for.
        kept: Share of the harmful rows that the model declines unsteered and that the gate calls harmful.
        low: One-sided lower bound of that share, exact (Clopper and Pearson 1934), at 95 % confidence.
        released: Share of benign rows that it calls benign.
        declined: How many harmful rows the model declines unsteered: what the bound rests on.
        needed: How many there would have to be for the promise to be possible at all, none of them lost.
    """

    threshold: float | None
    kept: float
    low: float
    released: float
    declined: int
    needed: int


def keep_refusal(score: np.ndarray, harmful: np.ndarray, declined: np.ndarray, share: float) -> Kept:
    """The threshold that releases most benign rows while refusal is kept at a share, with 95 % confidence.

    A harmful row that the model declines and the gate calls benign counts as lost, whatever its steered answer may be;
    one that steering makes the model decline is not counted as won: the promise errs on the side of refusal.

    Args:
        score: (rows,) out of fold: each by a gate that was fitted without its theme.
        harmful: (rows,) bool.
        declined: (rows,) bool, whether the model declines unsteered.
        share: Of the unsteered refusals, to be kept; 0 to 1.
    """
    from scipy.stats import binomtest

    at_stake, benign = np.sort(score[harmful & declined]), score[~harmful]
    n = len(at_stake)
    needed = int(np.ceil(np.log(1 - CONFIDENCE) / np.log(share))) if 0 < share < 1 else 0
    best = Kept(None, 1.0, 0.0, 0.0, n, needed)
    for least in np.unique(at_stake):  # a threshold at a score that is kept; between two of them nothing changes
        lost = int((at_stake < least).sum())
        low = binomtest(n - lost, n, alternative="greater").proportion_ci(CONFIDENCE, "exact").low
        if low < share:
            break
        below = score[score < least]  # midway, so that rounding moves no row across it
        middle = np.float32((float(least) + float(below.max())) / 2) if len(below) else least
        threshold = float(middle if not len(below) or middle > below.max() else least)
        released = float((benign < threshold).mean()) if len(benign) else float("nan")
        best = Kept(threshold, 1 - lost / n, float(low), released, n, needed)
    return best
