"""Fitting a probe, choosing its threshold, and how well it tells."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch

from data import for_split
from data.contract import FITS
from data.errors import UserError
from data.store.activations import Activations
from data.store.progress import progress
from data.store.projections import CARRIED, NAME, Projections
from interventions.fitting.linear import (
    Linear,
    best_c,
    fit_line,
    fit_logistic,
    fit_mass_mean,
    fit_published,
    stratified,
)
from interventions.fitting.moments import mass_mean
from interventions.gates.features import Features, fitted
from interventions.gates.features import Fit as GateFit
from interventions.gates.gate import PROBE_FORMAT, FittedGate
from interventions.gates.quality import choose_threshold, quality_table, roc_table, tpr_at
from interventions.reading.projections import Fits

Fit = Callable[[np.ndarray, np.ndarray], Linear]
SINGLE = "mass-mean"  # the fit that moments and projections do for
PROJECTED = "projection"  # stands for a position where gates read `AtLayer`


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


class _Scored(NamedTuple):
    """A probe, and the scores that it gives some rows: row numbers -> (rows,) float32."""

    probe: FittedGate
    score: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class _Layer:
    """One layer's activations of the rows that a probe is fitted to or scores.

    Attributes:
        values: float32 (rows, d_model).
        rows: (rows,) ascending row numbers.
    """

    values: np.ndarray
    rows: np.ndarray

    def x(self, rows: np.ndarray) -> np.ndarray:
        """Of some rows, float64."""
        return self.values[np.searchsorted(self.rows, rows)].astype(np.float64)

    def fit(self, rows: np.ndarray, harmful: np.ndarray, fitter: Fit) -> _Scored:
        """On some rows."""
        probe = fitted(*fitter(self.x(rows), harmful))
        return _Scored(probe, lambda some: probe.score(torch.from_numpy(self.x(some))).numpy())


@dataclass(frozen=True)
class _ProjectedLayer:
    """One layer's moments and projections in their place: a mass-mean probe's direction follows from its rows' moments, its slope and
    bias, and every score, from projections on it."""

    file: Projections
    layer: int

    def fit(self, rows: np.ndarray, harmful: np.ndarray, _fitter: Fit) -> _Scored:
        """On some rows.

        Raises:
            UserError: Other ones than were projected for.
        """
        at, depth = self.file.fit_on(rows), self.file.index(self.layer)
        weight, mean = mass_mean((self.file.counts[at], self.file.means[at][:, depth], self.file.squares[at][:, depth]))
        slope, bias = fit_line(self.file.along(self.layer, at, rows).astype(np.float64), harmful)
        line = fitted(np.array([slope]), np.zeros(1), bias)
        score = lambda some: line.score(torch.from_numpy(self.file.along(self.layer, at, some))[:, None]).numpy()  # noqa: E731
        return _Scored(fitted(weight * slope, mean, bias), score)


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
        path: A `prompts` file of `extract`; for mass-mean also one of `extract_projections` for `fits_of` the same splits and seed.
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
    read = read_of(path)
    if isinstance(read, Projections) and fit != SINGLE:
        raise UserError(f"{fit} needs every row's activations, not their projections; run extract")
    if read.metadata["position"] == "suffix":
        raise UserError(f"{path}: a probe reads prompts; run extract without --suffix")
    if layer is not None:
        read.index(layer)
    known, held = _splits(read.rows, split, threshold_split)
    chooser = held[threshold_split]
    used = np.unique(np.concatenate([rows.rows for rows in (known, *held.values())]))
    layers = _by_layer(read, used, known, chooser, fit_mass_mean if fit == SINGLE else fit_logistic, seed)
    if layer is None:
        layer = int(layers.sort("auc", "tpr_at_1_fpr", descending=True, maintain_order=True)["layer"][0])
    here = _at(read, layer, used)
    fitter, noted = _fitter(fit, here.x(known.rows) if isinstance(here, _Layer) else np.empty(0), known.harmful, seed)
    whole = here.fit(known.rows, known.harmful, fitter)
    scores = {name: _held_out(here, whole, fitter, known, rows, seed) for name, rows in held.items()}
    threshold = choose_threshold(chooser.harmful, scores[threshold_split], fpr)
    quality = pl.concat(
        [quality_table(name, rows.harmful, rows.near_miss, scores[name], threshold) for name, rows in held.items()]
    )
    reached = quality.row(0, named=True)
    metadata = {
        "format": PROBE_FORMAT,
        **{key: read.metadata[key] for key in ("model", "revision", "site", "position")},
        **{"layer": str(layer), "method": fit, **noted, "seed": str(seed)},
        **{"split": split, "counts": json.dumps(_counts(known))},
        **{"threshold_split": threshold_split, "threshold_counts": json.dumps(_counts(chooser))},
        "threshold_rule": "youden" if fpr is None else f"fpr<={fpr:g}",
        **{key: f"{reached[key]:.6f}" for key in ("auc", "tpr_at_1_fpr", "tpr", "fpr")},
        "data": ", ".join(sorted(read.rows["dataset"].unique())),
    }
    return ProbeReport(
        replace(whole.probe, threshold=torch.tensor([threshold]), metadata=metadata),
        layers.with_columns((pl.col("layer") == layer).alias("chosen")),
        pl.concat([roc_table(name, rows.harmful, scores[name]) for name, rows in held.items()]),
        quality,
    )


def read_of(path: Path) -> Activations | Projections:
    """Activations, or what is left of them where a server reduced them.

    Raises:
        UserError: The file is neither.
    """
    return Projections.open(path) if path.stem in (NAME, CARRIED) else Activations.open(path)


def fits_of(rows: pl.DataFrame, split: str, threshold_split: str, seed: int) -> Fits:
    """What `fit_probe` fits to which rows of a row table, and whom else it scores.

    Raises:
        UserError: As `fit_probe`.
    """
    known, held = _splits(rows, split, threshold_split)
    trained = [known.rows]
    scored = np.unique(np.concatenate([part.rows for part in held.values()]))
    if np.isin(scored, known.rows).any():
        trained += [known.rows[train] for train, _ in _folds(known, seed)]
    return among(trained, rows.height, scored)


def among(trained: Sequence[np.ndarray], height: int, scored: np.ndarray) -> Fits:
    """Fits to some of so many rows each, and whom else they score; all by row numbers."""
    members, also = np.zeros((len(trained), height), bool), np.zeros(height, bool)
    for own, rows in zip(members, trained, strict=True):
        own[rows] = True
    also[scored] = True
    return Fits(members, also)


def fit_again(probe: FittedGate, file: Projections | None = None) -> GateFit:
    """How a probe would be fitted to other rows, at its layer and with its penalty, to see how it carries over.

    With projections a gate reads one number of each row, its projection on the direction of the gate's own rows.
    """
    if file is not None:

        def projecting(features: Features, rows: np.ndarray, harmful: np.ndarray, _themes: object) -> FittedGate:
            read = (file.fit_on(rows), PROJECTED)
            slope, bias = fit_line(features.residual(read, rows)[:, 0], harmful)
            return fitted(np.array([slope]), np.zeros(1), bias, reads=json.dumps([read]))

        return projecting
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
    if fit == SINGLE:
        return fit_mass_mean, {}
    c = best_c(x, harmful, seed)
    return lambda x, harmful: fit_logistic(x, harmful, c), {"c": f"{c:.6g}"}


def _at(read: Activations | Projections, layer: int, used: np.ndarray) -> _Layer | _ProjectedLayer:
    """One layer of the rows that are used."""
    return _ProjectedLayer(read, layer) if isinstance(read, Projections) else _Layer(read.layer(layer, used), used)


def _splits(rows: pl.DataFrame, split: str, threshold_split: str) -> tuple[_Rows, dict[str, _Rows]]:
    """Rows to fit on; and those of the splits to report on that have harmful and benign ones, the threshold's first."""
    known, chooser = _labelled(rows, split), _labelled(rows, threshold_split)
    _need_both(known, split, "fit")
    _need_both(chooser, threshold_split, "choose the threshold")
    held = {threshold_split: chooser, "test": _labelled(rows, "test")}
    return known, {name: part for name, part in held.items() if 0 < part.harmful.sum() < len(part.harmful)}


def _folds(known: _Rows, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Places among the rows that are fitted on: to fit, and to score."""
    return list(stratified(known.harmful, seed).split(known.rows, known.harmful))


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
    here: _Layer | _ProjectedLayer, whole: _Scored, fitter: Fit, known: _Rows, rows: _Rows, seed: int
) -> np.ndarray:
    """Scores (rows,) float32; a row that the probe was fitted on is scored by a probe fitted without it."""
    score = whole.score(rows.rows)
    seen = np.isin(rows.rows, known.rows)
    if seen.any():
        without = np.empty(len(known.rows), np.float32)
        for train, test in _folds(known, seed):
            without[test] = here.fit(known.rows[train], known.harmful[train], fitter).score(known.rows[test])
        score[seen] = without[np.searchsorted(known.rows, rows.rows[seen])]
    return score


def _by_layer(
    read: Activations | Projections, used: np.ndarray, known: _Rows, held: _Rows, quick: Fit, seed: int
) -> pl.DataFrame:
    """AUC and TPR at 1 % FPR of a probe at every layer; one layer in memory at a time."""
    from sklearn.metrics import roc_auc_score

    found = []
    with progress(len(read.layers), 0, "probe", unit="layer") as bar:
        for layer in read.layers:
            here = _at(read, layer, used)
            whole = here.fit(known.rows, known.harmful, quick)
            score = _held_out(here, whole, quick, known, held, seed)
            found.append((layer, float(roc_auc_score(held.harmful, score)), tpr_at(held.harmful, score, 0.01)))
            bar.update(1)
    return pl.DataFrame(found, {"layer": pl.Int64, "auc": pl.Float64, "tpr_at_1_fpr": pl.Float64}, orient="row")


def _counts(rows: _Rows) -> dict[str, int]:
    groups = {"harmful": rows.harmful, "benign": ~rows.harmful, "near_miss": rows.near_miss}
    return {name: int(group.sum()) for name, group in groups.items()}
