"""How well a score tells harmful rows from benign ones, and from which score on a row counts as harmful."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from data.errors import UserError
from data.intervals import wilson
from data.store.tables import PROBE_ROC

FOLDS = 5


def choose_threshold(harmful: np.ndarray, score: np.ndarray, fpr: float | None = None) -> float:
    """The score from which on a row counts as harmful.

    Youden's J, max(TPR − FPR) (Youden 1950; the papers' rule), or the highest TPR whose FPR is at most `fpr`;
    of equals the one with fewer false alarms. The threshold lies midway between the last score that passes and the
    first that doesn't, so that rounding moves no row across it.

    Args:
        harmful: (rows,) bool.
        score: (rows,) float32, 0 to 1.
        fpr: 0 to 1, or None for Youden's J.
    """
    from sklearn.metrics import roc_curve

    false, true, scores = roc_curve(harmful, score, drop_intermediate=False)
    gain = true - false if fpr is None else np.where(false <= fpr, true, -1)
    at = int(np.argmax(gain >= gain.max() - 1e-12))  # the first of equals, whatever rounding did to them
    above = np.float32(scores[at]) if at else np.nextafter(np.float32(1), np.float32(2))
    if at == len(scores) - 1:
        return float(above)
    below = np.float32(scores[at + 1])
    middle = np.float32((float(above) + float(below)) / 2)
    return float(middle if middle > below else above)


def auc(harmful: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve: how often a harmful row scores higher than a benign one."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(harmful, score))


def theme_folds(harmful: np.ndarray, themes: Sequence[str], folds: int = FOLDS) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows to fit on and rows to score, so that no theme is on both sides; every row is scored once.

    Raises:
        UserError: Too few themes or rows, so that one side would lack harmful or benign ones.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    folds, found = min(folds, len(set(themes)), int(harmful.sum()), int((~harmful).sum())), []
    if folds > 1:
        found = list(StratifiedGroupKFold(folds).split(np.zeros(len(harmful)), harmful, list(themes)))
    if not found or not all(0 < harmful[train].sum() < len(train) for train, _ in found):
        raise UserError(
            "a gate is chosen by prompts that it was fitted without: add prompts of more themes, harmful and benign"
        )
    return found


def tpr_at(harmful: np.ndarray, score: np.ndarray, fpr: float) -> float:
    """The highest TPR at a false-positive rate of at most `fpr`."""
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(harmful, score, drop_intermediate=False)
    return float(true[false <= fpr].max())


def roc_table(split: str, harmful: np.ndarray, score: np.ndarray) -> pl.DataFrame:
    """Points of the ROC curve; the first, where nothing passes, has no threshold."""
    from sklearn.metrics import roc_curve

    false, true, scores = roc_curve(harmful, score)
    scores = np.where(np.isfinite(scores), scores, np.nan)
    return pl.DataFrame(
        {"split": [split] * len(false), "fpr": false, "tpr": true, "threshold": scores}, PROBE_ROC
    ).fill_nan(None)


def quality_table(
    split: str, harmful: np.ndarray, near_miss: np.ndarray, score: np.ndarray, threshold: float
) -> pl.DataFrame:
    """How well the probe tells harmful rows from all benign rows, and from near-misses alone."""
    found = []
    for against, benign in (("all", ~harmful), ("near-miss", near_miss)):
        if not benign.any():
            continue
        used = harmful | benign
        row = {"split": split, "against": against, "n_harmful": int(harmful.sum()), "n_benign": int(benign.sum())}
        row["auc"] = auc(harmful[used], score[used])
        row["tpr_at_1_fpr"] = tpr_at(harmful[used], score[used], 0.01)
        for name, group in (("tpr", harmful), ("fpr", benign)):
            fired, n = int((score[group] >= np.float32(threshold)).sum()), int(group.sum())
            low, high = wilson(fired, n)
            row |= {name: fired / n, f"{name}_low": low, f"{name}_high": high}
        found.append(row)
    return pl.DataFrame(found)
