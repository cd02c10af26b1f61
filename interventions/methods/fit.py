"""Ways to a category's direction, from activations: difference in means, contrastive, PCA, logistic, LDA, controls.

Every method is a `SteeringVectors` with the same metadata. The difference in means δ of a category's contrast is
computed first, in slices, for all layers. `pca`, `logistic` and `lda` then find a unit direction ŵ one layer at a
time, and their vector is the part of δ that lies along it, ŵ(ŵ·δ): it points towards refusal, and adding it at
strength 1 moves an average answered row as far along ŵ as the average refused row lies.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.errors import UserError
from data.store.activations import Activations
from data.store.progress import progress
from interventions.fitting.contrasts import RESPOND, Contrast, contrasts, has_suffixes, shuffled
from interventions.fitting.covariance import within_class_covariance
from interventions.fitting.linear import fit_logistic
from interventions.methods.vectors import FORMAT, SteeringVectors, check_names

METHODS = {
    "mean": "mean of a category's rows minus mean of all benign rows",
    "contrastive": "the same prompt followed by its category's token minus followed by [respond], averaged",
    "pca": "first principal component of the differences that mean or, given pairs, contrastive averages",
    "logistic": "normal of a logistic regression between a category's rows and benign rows",
    "lda": "linear discriminant analysis with Ledoit-Wolf shrinkage",
    "random": "a random direction as long as the mean's: a control",
    "shuffled": "mean under permuted labels: a control",
}
LINEAR = ("pca", "logistic", "lda")


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
        path: A file of `extract`: `prompts`, or `pairs`, which `contrastive` needs and `pca` makes use of.
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
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}; there are {', '.join(METHODS)}")
    activations = Activations.open(path)
    paired = method == "contrastive" or (method == "pca" and has_suffixes(activations.rows))
    chosen = contrasts(activations.rows, split, paired=paired, respond=respond)
    check_names(contrast.category for contrast in chosen)
    if method == "shuffled":
        chosen = shuffled(chosen, np.random.default_rng(seed))
    vectors, norms = mean_differences(activations, chosen)
    if method in LINEAR:
        vectors = _along(activations, chosen, vectors, method)
    kept = _sparse(vectors, tau, top_k)
    if method == "random":
        drawn = _sparse(_random(activations.layers, vectors.shape, seed), None, top_k)
        kept = _unit(drawn) * np.linalg.norm(kept, axis=-1, keepdims=True)
    if normalize:
        kept = _unit(kept)
    options = {"tau": tau, "top_k": top_k, "normalize": normalize, "seed": seed}
    tensors = {contrast.category: torch.from_numpy(kept[at]).float() for at, contrast in enumerate(chosen)}
    return SteeringVectors(tensors, _metadata(activations, chosen, norms, method, split, options))


def mean_differences(activations: Activations, chosen: Sequence[Contrast]) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each contrast's positive rows minus mean of its negative ones, summed in float64.

    Returns:
        Differences (contrasts, layers, d_model), and the mean norm of all rows used (layers,).
    """
    shared = not chosen[0].paired
    groups = [contrast.positive for contrast in chosen]
    groups += [chosen[0].negative] if shared else [contrast.negative for contrast in chosen]
    member = np.full(activations.shape[0], -1)
    for number, rows in enumerate(groups):
        member[rows] = number
    sums = np.zeros((len(groups), *activations.shape[1:]))
    norms = np.zeros(activations.shape[1])
    for start, block in activations.slices():
        here = member[start : start + len(block)]
        for number in np.unique(here[here >= 0]):
            sums[number] += block[here == number].sum(0, dtype=np.float64)
        used = block[here >= 0]
        norms += np.sqrt(np.einsum("rld,rld->rl", used, used, dtype=np.float64)).sum(0)
    means = sums / np.array([len(rows) for rows in groups])[:, None, None]
    return means[: len(chosen)] - means[len(chosen) :], norms / (member >= 0).sum()


def pca_direction(differences: np.ndarray) -> np.ndarray:
    """First principal component of differences (rows, d_model) about 0: (d_model,), unit, of either sign.

    Not centred, because their mean is what is looked for: the same as PCA of the differences together with their
    negatives, and so as in *Representation Engineering* (arXiv 2310.01405, section 3.1), where the order within a
    pair is random.
    """
    from scipy.linalg import eigh

    wide = differences.shape[0] <= differences.shape[1]
    gram = differences @ differences.T if wide else differences.T @ differences
    last = len(gram) - 1
    leading = eigh(gram, subset_by_index=[last, last])[1][:, 0]
    return _unit(differences.T @ leading if wide else leading)


def logistic_direction(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Normal of the logistic regression that tells two groups of rows apart: (d_model,), unit, in the raw residual."""
    x = np.concatenate([positive, negative])
    return _unit(fit_logistic(x, np.arange(len(x)) < len(positive))[0])


def lda_directions(positive: Sequence[np.ndarray], negative: np.ndarray) -> np.ndarray:
    """Σ⁻¹(μ_c − μ_benign) for each category, Σ shared by all of them and benign: (categories, d_model), unit.

    The directions of scikit-learn's `LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")` (coef_ of the
    category minus coef_ of benign), but solved by Cholesky: its least squares take minutes a layer at d = 4,096.

    Raises:
        UserError: The rows don't vary.
    """
    from scipy.linalg import LinAlgError, solve

    covariance = within_class_covariance([*positive, negative])
    differences = np.stack([rows.mean(0) for rows in positive]) - negative.mean(0)
    try:
        return _unit(solve(covariance, differences.T, assume_a="pos").T)
    except LinAlgError:
        raise UserError("lda: the activations hardly vary within their categories; use --method mean") from None


def _along(activations: Activations, chosen: list[Contrast], differences: np.ndarray, method: str) -> np.ndarray:
    """The part of each difference in means that lies along the method's direction; one layer in memory at a time."""
    used = np.unique(np.concatenate([rows for c in chosen for rows in (c.positive, c.negative)]))
    vectors = np.empty_like(differences)
    with progress(len(activations.layers), 0, f"vectors ({method})", unit="layer") as bar:
        for at, layer in enumerate(activations.layers):
            x = activations.layer(layer, used).astype(np.float64)
            sides = [(x[np.searchsorted(used, c.positive)], x[np.searchsorted(used, c.negative)]) for c in chosen]
            units = _directions(sides, method, chosen[0].paired)
            vectors[:, at] = units * (units * differences[:, at]).sum(-1, keepdims=True)
            bar.update(1)
    return vectors


def _directions(sides: list[tuple[np.ndarray, np.ndarray]], method: str, paired: bool) -> np.ndarray:
    if method == "pca":
        return np.stack([pca_direction(p - (n if paired else n.mean(0))) for p, n in sides])
    if method == "logistic":
        return np.stack([logistic_direction(p, n) for p, n in sides])
    return lda_directions([p for p, _ in sides], sides[0][1])


def _random(layers: Sequence[int], shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Standard normal (categories, layers, d_model); a layer's draw doesn't depend on which others there are."""
    draws = [np.random.default_rng([seed, layer]).standard_normal((shape[0], shape[2])) for layer in layers]
    return np.stack(draws, axis=1)


def _sparse(vectors: np.ndarray, tau: float | None, top_k: int | None) -> np.ndarray:
    """Entries below `tau`, and all but the `top_k` largest, set to 0."""
    kept = vectors if tau is None else np.where(np.abs(vectors) < tau, 0, vectors)
    if top_k is None or top_k >= vectors.shape[-1]:
        return kept
    floor = -np.partition(-np.abs(kept), top_k - 1, axis=-1)[..., top_k - 1 : top_k]
    return np.where(np.abs(kept) < floor, 0, kept)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Scaled to length 1; zero stays zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length == 0, 1, length)


def _metadata(
    activations: Activations,
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
