"""Fitting a gate on labelled prompts: scores out of fold, a threshold that promises something, and how it carries over."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch

from data.contract import SITE
from data.errors import UserError
from data.store.activations import Activations
from data.store.tables import GATE_QUALITY
from interventions.gates import ridge, words
from interventions.gates.gate import LinearGate
from interventions.gates.quality import choose_threshold
from interventions.gates.threshold import keep_refusal
from interventions.model.model import Model

FOLDS = 5
Fit = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, float]]


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


@dataclass(frozen=True)
class GateReport:
    """A gate, and how well it tells prompts apart that it was fitted without, in the columns of `GATE_QUALITY`."""

    gate: LinearGate
    quality: pl.DataFrame


def residual_features(files: dict[str, Activations], reads: Sequence[tuple[int, str]], rows: np.ndarray) -> np.ndarray:
    """What is read of some rows, one piece behind the other: float64 (rows, reads · d_model)."""
    return np.concatenate([files[position].layer(layer, rows) for layer, position in reads], axis=1).astype(np.float64)


def fit_ridge(
    model: Model, rows: GateRows, x: np.ndarray, reads: Sequence[tuple[int, str]], **chosen: float | None
) -> GateReport:
    """Ridge regression on the residual stream, x (rows, reads · d_model)."""
    return _fitted(model, "ridge", rows, x, ridge.fit, {"reads": json.dumps(reads)}, **chosen)


def fit_words(model: Model, rows: GateRows, **chosen: float | None) -> GateReport:
    """A bag of words."""
    texts = rows.frame["prompt"].to_list()
    known = words.vocabulary(texts)
    if not known:
        raise UserError("no word stands in two prompts: there is nothing for a gate of words to go by; add prompts")
    x = words.counted(texts, known).astype(np.float64)
    return _fitted(model, "words", rows, x, words.fit, {"words": json.dumps(known, ensure_ascii=False)}, **chosen)


def _fitted(
    model: Model, kind: str, rows: GateRows, x: np.ndarray, fit: Fit, more: dict[str, str], *,
    keep: float | None = None, fpr: float | None = None,
) -> GateReport:  # fmt: skip
    harmful = rows.harmful
    for there, word in ((harmful.any(), "harmful"), ((~harmful).any(), "benign")):
        if not there:
            raise UserError(f"no {word} row to fit a gate on: add prompts, or --benign NAME_OR_FILE")
    score = out_of_fold(x, harmful, rows.themes, fit)
    free = (
        ~rows.taught
        if (~rows.taught & harmful).any() and (~rows.taught & ~harmful).any()
        else np.ones(len(harmful), bool)
    )
    threshold, rule = _threshold(
        score[free], harmful[free], None if rows.declined is None else rows.declined[free], keep, fpr
    )
    weight, mean, bias = fit(x, harmful)
    parts = [torch.from_numpy(np.array(part, np.float32).reshape(-1)) for part in (weight, mean, bias, threshold)]
    metadata = {"kind": kind, "model": model.name, "revision": model.revision, "site": SITE, **more, **rule,
                "rows": str(len(harmful)), "chosen_on": str(int(free.sum())),
                "data": ", ".join(sorted(rows.frame["dataset"].unique()))}  # fmt: skip
    return GateReport(
        LinearGate(parts[0], parts[1], parts[2], parts[3], metadata), carried_over(rows, x, fit, score, threshold)
    )


def _threshold(
    score: np.ndarray, harmful: np.ndarray, declined: np.ndarray | None, keep: float | None, fpr: float | None
) -> tuple[float, dict[str, str]]:
    """The threshold, and how it was chosen, for the metadata."""
    if keep is None:
        threshold = choose_threshold(harmful, score, fpr)
        return threshold, {"threshold_rule": "youden" if fpr is None else f"fpr<={fpr:g}"}
    found = keep_refusal(score, harmful, np.ones(len(score), bool) if declined is None else declined, keep)
    if found.threshold is None:
        raise UserError(f"no threshold keeps {keep:.0%} of the refusals with 95 % confidence on {found.declined} harmful prompts that "
                        f"are declined: {found.needed} of them, none lost, would be needed; add prompts, or ask --keep-refusal "
                        "for less")  # fmt: skip
    noted = {"threshold_rule": f"keep-refusal>={keep:g}", "kept": f"{found.kept:.6f}", "kept_low": f"{found.low:.6f}",
             "released": f"{found.released:.6f}", "declined": str(found.declined)}  # fmt: skip
    return found.threshold, noted


def out_of_fold(x: np.ndarray, harmful: np.ndarray, themes: Sequence[str], fit: Fit) -> np.ndarray:
    """(rows,) float32 scores, each by a gate that was fitted without the row's theme.

    Raises:
        UserError: Fewer than two themes, or one of them holds every harmful or every benign row.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    folds = min(FOLDS, len(set(themes)))
    score = np.full(len(harmful), np.nan, np.float32)
    if folds > 1:
        for train, test in StratifiedGroupKFold(folds).split(x, harmful, list(themes)):
            if harmful[train].any() and not harmful[train].all():
                weight, mean, bias = fit(x[train], harmful[train])
                score[test] = 1 / (1 + np.exp(-((x[test] - mean) @ weight + bias)))
    if np.isnan(score).any():
        raise UserError(
            "a gate is chosen by prompts that it was fitted without: add prompts of more themes, harmful and benign"
        )
    return score


def carried_over(rows: GateRows, x: np.ndarray, fit: Fit, score: np.ndarray, threshold: float) -> pl.DataFrame:
    """How well scores tell rows apart that their gate was fitted without: other themes', and each data set's by the others."""
    harmful, sets = rows.harmful, rows.frame["dataset"].to_numpy()
    found = [_told("other themes", score, rows, np.ones(len(harmful), bool), threshold)]
    for name in dict.fromkeys(sets.tolist()):
        mine = sets == name
        if mine.all() or len(set(harmful[mine])) < 2 or len(set(harmful[~mine])) < 2:
            continue
        weight, mean, bias = fit(x[~mine], harmful[~mine])
        one = (1 / (1 + np.exp(-((x - mean) @ weight + bias)))).astype(np.float32)
        found.append(_told(f"without {name}", one, rows, mine, threshold))
    return pl.DataFrame(found, GATE_QUALITY)


def _told(what: str, score: np.ndarray, rows: GateRows, mine: np.ndarray, threshold: float) -> dict[str, object]:
    """AUC over all of some rows and among those that the model declines, and what the threshold does to them."""
    from sklearn.metrics import roc_auc_score

    harmful, passed = rows.harmful, score < np.float32(threshold)
    declined = None if rows.declined is None else rows.declined & mine
    both = declined is not None and len(set(harmful[declined])) == 2
    return {
        "rows": what,
        "n_harmful": int((mine & harmful).sum()),
        "n_benign": int((mine & ~harmful).sum()),
        "auc": float(roc_auc_score(harmful[mine], score[mine])),
        "auc_declined": float(roc_auc_score(harmful[declined], score[declined])) if both else None,
        "harmful_passed": float(passed[mine & harmful].mean()),
        "benign_passed": float(passed[mine & ~harmful].mean()),
    }
