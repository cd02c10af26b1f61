"""Steering vectors from activations, by any method: what all of them have in common."""

import json
import logging
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from data import for_split
from data.contract import METHODS, ONE_CATEGORY, RESPOND
from data.errors import UserError
from data.store.activations import Activations
from data.store.progress import progress
from data.store.sums import NAME as SUMS
from data.store.sums import Sums
from interventions.fitting.contrasts import Contrast, contrasts
from interventions.fitting.differences import mean_differences, members, unit
from interventions.methods.method import Method, Sides
from interventions.methods.vectors import FORMAT, SteeringVectors, check_names

logger = logging.getLogger(__name__)


def fit_vectors(
    path: Path,
    method: str = "mean",
    *,
    split: str = "train",
    tau: float | None = None,
    top_k: int | None = None,
    normalize: bool = False,
    seed: int = 0,
    respond: str = RESPOND,
) -> SteeringVectors:
    """One steering vector a category and layer.

    Args:
        path: A file of `extract`: `prompts`, or `pairs`, which `contrastive` needs and `pca` makes use of; or of
            `extract_sums` over the rows of `group_of`, for a method that rests on sums.
        method: A key of `METHODS`.
        split: Rows of this split, and those without any, are used.
        tau: Entries of smaller magnitude become 0 (published code: 1e-3).
        top_k: Only the K entries of largest magnitude are kept (published code: 200).
        normalize: Scale to unit length.
        seed: Of `random` and `shuffled`.
        respond: The respond token's name, without brackets.

    Raises:
        UserError: An unknown method, rows that it needs are missing, or a category has the name of the mean of all.
    """
    how = method_named(method)
    activations = Sums.open(path) if path.stem == SUMS else Activations.open(path)
    chosen = _chosen(activations.rows, how, split, seed, respond)
    _say_left_out(activations.rows, split, {contrast.category for contrast in chosen})
    vectors, norms = mean_differences(activations, chosen)
    if how.directions is not None:
        if isinstance(activations, Sums):
            raise UserError(f"{method} needs every row's activations, not their sums; run extract")
        vectors = _along(activations, chosen, vectors, how.directions, method)
    kept = _sparse(vectors, tau, top_k)
    if how.draw is not None:
        drawn = _sparse(how.draw(activations.layers, vectors.shape, seed), None, top_k)
        kept = unit(drawn) * np.linalg.norm(kept, axis=-1, keepdims=True)
    if normalize:
        kept = unit(kept)
    options = {"tau": tau, "top_k": top_k, "normalize": normalize, "seed": seed}
    tensors = {contrast.category: torch.from_numpy(kept[at]).float() for at, contrast in enumerate(chosen)}
    return SteeringVectors(tensors, _metadata(activations, chosen, norms, method, split, options))


def group_of(
    rows: pl.DataFrame, method: str, *, split: str = "train", seed: int = 0, respond: str = RESPOND
) -> np.ndarray:
    """For each row of a row table the sum that it counts to in `fit_vectors` of the same options, or -1: (rows,) int64.

    Raises:
        UserError: As `fit_vectors`.
    """
    return members(rows.height, _chosen(rows, method_named(method), split, seed, respond))


def rests_on_sums(method: str) -> bool:
    """Whether a method's vectors follow from sums over groups of rows."""
    return method in METHODS and method_named(method).directions is None


def relabels(method: str) -> bool:
    """Whether a method takes other contrasts than the true ones, by its seed."""
    return method_named(method).relabel is not None


def _chosen(rows: pl.DataFrame, how: Method, split: str, seed: int, respond: str) -> list[Contrast]:
    chosen = contrasts(rows, split, paired=how.is_paired(rows), respond=respond)
    check_names([contrast.category for contrast in chosen])
    return chosen if how.relabel is None else how.relabel(chosen, np.random.default_rng(seed))


def _say_left_out(rows: pl.DataFrame, split: str, categories: set[str]) -> None:
    """Harmful rows that are of no vector, since others have a category and they have none."""
    left = for_split(rows, split).filter((pl.col("label") == "harmful") & pl.col("category").is_null()).height
    if left and categories != {ONE_CATEGORY}:
        logger.warning(
            "%d harmful rows have no category and are in no vector: give them one, or take all categories off", left
        )


def method_named(name: str) -> Method:
    """The method in the file of that name.

    Raises:
        UserError: There is none.
    """
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}; there are {', '.join(METHODS)}")
    return import_module(f"interventions.methods.{name}").METHOD


def _along(
    activations: Activations,
    chosen: list[Contrast],
    differences: np.ndarray,
    directions: Callable[[Sides, bool], np.ndarray],
    name: str,
) -> np.ndarray:
    """The part of each difference in means that lies along the method's direction; one layer in memory at a time."""
    used = np.unique(np.concatenate([rows for c in chosen for rows in (c.positive, c.negative)]))
    vectors = np.empty_like(differences)
    with progress(len(activations.layers), 0, f"vectors ({name})", unit="layer") as bar:
        for at, layer in enumerate(activations.layers):
            x = activations.layer(layer, used).astype(np.float64)
            sides = [(x[np.searchsorted(used, c.positive)], x[np.searchsorted(used, c.negative)]) for c in chosen]
            units = directions(sides, chosen[0].paired)
            vectors[:, at] = units * (units * differences[:, at]).sum(-1, keepdims=True)
            bar.update(1)
    return vectors


def _sparse(vectors: np.ndarray, tau: float | None, top_k: int | None) -> np.ndarray:
    """Entries below `tau`, and all but the `top_k` largest, set to 0."""
    kept = vectors if tau is None else np.where(np.abs(vectors) < tau, 0, vectors)
    if top_k is None or top_k >= vectors.shape[-1]:
        return kept
    floor = -np.partition(-np.abs(kept), top_k - 1, axis=-1)[..., top_k - 1 : top_k]
    return np.where(np.abs(kept) < floor, 0, kept)


def _metadata(
    activations: Activations | Sums,
    chosen: list[Contrast],
    norms: np.ndarray,
    method: str,
    split: str,
    options: dict[str, Any],
) -> dict[str, str]:
    benign = 0 if chosen[0].paired else len(chosen[0].negative)
    return {
        "format": FORMAT,
        **{key: activations.metadata[key] for key in ("model", "revision", "layers", "site", "position")},
        "method": method,
        "counts": json.dumps({c.category: len(c.positive) for c in chosen}, ensure_ascii=False),
        "benign": str(benign),
        "residual_norms": json.dumps([float(norm) for norm in norms]),
        "data": ", ".join(sorted(activations.rows["dataset"].unique())),
        "split": split,
        "options": json.dumps(options),
    }
