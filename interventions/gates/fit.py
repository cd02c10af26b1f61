"""Fitting a probe, choosing its threshold, and how well it tells."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch

from data import for_split
from data.contract import FITS
from data.errors import UserError
from data.store.activations import Activations
from data.store.progress import progress
from interventions.fitting.linear import Linear, best_c, fit_logistic, fit_mass_mean, fit_published, stratified
from interventions.gates.features import Features, fitted
from interventions.gates.features import Fit as GateFit
from interventions.gates.gate import PROBE_FORMAT, FittedGate
from interventions.gates.quality import choose_threshold, quality_table, roc_table, tpr_at

Fit = Callable[[np.ndarray, np.ndarray], Linear]


@dataclass(frozen=True)
class ProbeReport:
    """A probe and what is known about it.

    Attributes:
        probe: The probe.
        layers: `layer`, `auc`, `tpr_at_1_fpr` on the threshold's split, for every layer, and `chosen`. All layers are
            fitted alike (C = 0.01), so that they compare; the chosen one is then fitted as asked.
        roc: `split`, `fpr`, `tpr`, `threshold`: every point of the curve.
        quality: One row for each split and `against` (`all` benign rows, or the `near-miss` ones: benign rows with a
            category): `n_harmful`, `n_benign`, `auc`, `tpr_at_1_fpr`, and at the threshold `tpr` and `fpr`, each
            with its Wilson 95 % interval.
    """

    probe: FittedGate
    layers: pl.DataFrame
    roc: pl.DataFrame
    quality: pl.DataFrame


@dataclass(frozen=True)
class _Rows:
    """Labelled rows: row numbers, whether harmful, whether near-miss (benign, with a category)."""

    rows: np.ndarray
    harmful: np.ndarray
    near_miss: np.ndarray


def fit_probe(
    path: Path,
    layer: int | None,
    *,
    fit: str = "logistic",
    fpr: float | None = None,
    split: str = "train",
    threshold_split: str = "validation",
    seed: int = 0,
) -> ProbeReport:
    """Fit on one split, choose the threshold on another, report on that and on `test`.

    Benign rows with a category (near-misses such as "kill a process") are benign rows like any other: a gate
    has to let them pass. (Two or three times their weight changed the AUC against them by less than 0.01 on
    SmolLM2.) Rows without a split serve all; they are then scored by probes fitted without them (5-fold), since a
    probe on more dimensions than rows tells its own rows apart perfectly.

    Args:
        path: A `prompts` file of `extract`.
        layer: The block to read; None chooses the one with the highest AUC on `threshold_split`.
        fit: A key of `FITS`.
        fpr: Share of benign rows of `threshold_split` that may pass for harmful; None: Youden's J (TPR − FPR).
        split: Rows to fit on.
        threshold_split: Rows to choose the threshold on.
        seed: Of the folds, and of the published fit's start and batches.

    Raises:
        UserError: No harmful or no benign row in one of the splits, or no such layer or fit.
    """
    if fit not in FITS:
        raise UserError(f"unknown fit {fit!r}; there are {', '.join(FITS)}")
    activations = Activations.open(path)
    if activations.metadata["position"] == "suffix":
        raise UserError(f"{path}: a probe reads prompts; run extract without --suffix")
    if layer is not None:
        activations.index(layer)
    known, chooser = _labelled(activations.rows, split), _labelled(activations.rows, threshold_split)
    _need_both(known, split, "fit")
    _need_both(chooser, threshold_split, "choose the threshold")
    layers = _by_layer(activations, known, chooser, fit_mass_mean if fit == "mass-mean" else fit_logistic, seed)
    if layer is None:
        layer = int(layers.sort("auc", "tpr_at_1_fpr", descending=True, maintain_order=True)["layer"][0])
    fitter, noted = _fitter(fit, _x(activations, layer, known), known.harmful, seed)
    bare = fitted(*fitter(_x(activations, layer, known), known.harmful))
    held = {threshold_split: chooser, "test": _labelled(activations.rows, "test")}
    held = {name: rows for name, rows in held.items() if 0 < rows.harmful.sum() < len(rows.harmful)}
    scores = {name: _held_out(activations, layer, bare, fitter, known, rows, seed) for name, rows in held.items()}
    threshold = choose_threshold(chooser.harmful, scores[threshold_split], fpr)
    quality = pl.concat(
        [quality_table(name, rows.harmful, rows.near_miss, scores[name], threshold) for name, rows in held.items()]
    )
    reached = quality.row(0, named=True)
    metadata = {
        "format": PROBE_FORMAT,
        **{key: activations.metadata[key] for key in ("model", "revision", "site", "position")},
        **{"layer": str(layer), "method": fit, **noted, "seed": str(seed)},
        **{"split": split, "counts": json.dumps(_counts(known))},
        **{"threshold_split": threshold_split, "threshold_counts": json.dumps(_counts(chooser))},
        "threshold_rule": "youden" if fpr is None else f"fpr<={fpr:g}",
        **{key: f"{reached[key]:.6f}" for key in ("auc", "tpr_at_1_fpr", "tpr", "fpr")},
        "data": ", ".join(sorted(activations.rows["dataset"].unique())),
    }
    return ProbeReport(
        replace(bare, threshold=torch.tensor([threshold]), metadata=metadata),
        layers.with_columns((pl.col("layer") == layer).alias("chosen")),
        pl.concat([roc_table(name, rows.harmful, scores[name]) for name, rows in held.items()]),
        quality,
    )


def fit_again(probe: FittedGate) -> GateFit:
    """How a probe would be fitted to other rows, at its layer and with its penalty, to see how it carries over."""
    layer, fit, seed = probe.layer, probe.metadata["method"], int(probe.metadata["seed"])
    own = {key: probe.metadata[key] for key in ("layer", "position")}

    def fitting(features: Features, rows: np.ndarray, harmful: np.ndarray, _themes: object) -> FittedGate:
        x = features.residual((layer, own["position"]), rows)
        if fit == "logistic":
            return fitted(*fit_logistic(x, harmful, float(probe.metadata["c"])), **own)
        return fitted(*_fitter(fit, x, harmful, seed)[0](x, harmful), **own)

    return fitting


def _fitter(fit: str, x: np.ndarray, harmful: np.ndarray, seed: int) -> tuple[Fit, dict[str, str]]:
    """How rows become a probe, and what to note of it; C is chosen once, on all rows of the split."""
    if fit == "published":
        return lambda x, harmful: fit_published(x, harmful, seed), {}
    if fit == "mass-mean":
        return fit_mass_mean, {}
    c = best_c(x, harmful, seed)
    return lambda x, harmful: fit_logistic(x, harmful, c), {"c": f"{c:.6g}"}


def _x(activations: Activations, layer: int, rows: _Rows) -> np.ndarray:
    return activations.layer(layer, rows.rows).astype(np.float64)


def _labelled(rows: pl.DataFrame, split: str) -> _Rows:
    chosen = for_split(rows.with_row_index("row"), split).filter(pl.col("label").is_not_null())
    harmful = (chosen["label"] == "harmful").to_numpy()
    near_miss = ~harmful & chosen["category"].is_not_null().to_numpy()
    return _Rows(chosen["row"].to_numpy().astype(np.int64), harmful, near_miss)


def _need_both(rows: _Rows, split: str, purpose: str) -> None:
    for there, word in ((rows.harmful.any(), "harmful"), ((~rows.harmful).any(), "benign")):
        if not there:
            more = "--benign NAME_OR_FILE adds some" if word == "benign" else "add some"
            raise UserError(f"no {word} row in split {split!r} to {purpose} on: {more}, or change the prompts' splits")


def _held_out(
    activations: Activations, layer: int, bare: FittedGate, fitter: Fit, known: _Rows, rows: _Rows, seed: int
) -> np.ndarray:
    """Scores (rows,) float32; a row that the probe was fitted on is scored by a probe fitted without it."""
    score = bare.score(torch.from_numpy(activations.layer(layer, rows.rows))).numpy()
    seen = np.isin(rows.rows, known.rows)
    if seen.any():
        x, without = _x(activations, layer, known), np.empty(len(known.rows), np.float32)
        for train, test in stratified(known.harmful, seed).split(x, known.harmful):
            part = fitted(*fitter(x[train], known.harmful[train]))
            without[test] = part.score(torch.from_numpy(x[test])).numpy()
        score[seen] = without[np.searchsorted(known.rows, rows.rows[seen])]
    return score


def _by_layer(activations: Activations, known: _Rows, held: _Rows, quick: Fit, seed: int) -> pl.DataFrame:
    """AUC and TPR at 1 % FPR of a probe at every layer; one layer in memory at a time."""
    from sklearn.metrics import roc_auc_score

    found = []
    with progress(len(activations.layers), 0, "probe", unit="layer") as bar:
        for layer in activations.layers:
            bare = fitted(*quick(_x(activations, layer, known), known.harmful))
            score = _held_out(activations, layer, bare, quick, known, held, seed)
            found.append((layer, float(roc_auc_score(held.harmful, score)), tpr_at(held.harmful, score, 0.01)))
            bar.update(1)
    return pl.DataFrame(found, {"layer": pl.Int64, "auc": pl.Float64, "tpr_at_1_fpr": pl.Float64}, orient="row")


def _counts(rows: _Rows) -> dict[str, int]:
    groups = {"harmful": rows.harmful, "benign": ~rows.harmful, "near_miss": rows.near_miss}
    return {name: int(group.sum()) for name, group in groups.items()}
