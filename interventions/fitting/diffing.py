"""Did fine-tuning turn a category's direction? Base against fine-tuned, category by category and layer by layer.

Both models have read the same rows, so their vectors share the noise of those rows, and a high cosine alone means
little. Every cosine therefore stands between a ceiling (how well a vector agrees with itself on other rows) and a
floor (what the same rows give when their labels mean nothing). arXiv 2603.13359 compares without either.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from data.contract import RESPOND
from data.errors import UserError
from data.store.activations import Activations
from data.store.progress import progress
from data.store.sums import Sums
from data.store.tables import DIFF
from interventions.fitting.contrasts import Contrast, contrasts, has_suffixes
from interventions.fitting.differences import mean_differences, members

DIFFERENCES = ("contrastive", "mean")
DRAWS, SPLITS = 1000, 100
Z = 1.959963984540054  # two-sided 95 %


@dataclass(frozen=True)
class Draws:
    """Weights of a contrast's rows; a vector is their product with the activations, (draws, rows) @ (rows, d_model).

    Attributes:
        whole: (1, rows), the vector itself.
        resampled: (draws, rows), rows drawn with replacement.
        permuted: (draws, rows), labels permuted.
        halves: Two of (splits, rows), a random half of the rows each and no row in both; None with fewer than two.
    """

    whole: np.ndarray
    resampled: np.ndarray
    permuted: np.ndarray
    halves: tuple[np.ndarray, np.ndarray] | None


def compare(
    base: Path,
    tuned: Path,
    *,
    difference: str | None = None,
    split: str = "train",
    draws: int = DRAWS,
    seed: int = 0,
    respond: str = RESPOND,
    same_tokens: bool = True,
) -> pl.DataFrame:
    """Cosine of the two models' vectors of each category at each layer, with interval, ceiling and floor.

    Rows are resampled, permuted and halved alike in both models and at all layers.

    - `low`, `high`: 95 %, the cosine ± 1.96 bootstrap standard errors on Fisher's z scale. Percentiles of resampled
      cosines don't serve: resampling adds noise that one model's rows share with the other's, which moves all of
      them to one side (simulated with rows that share 95 % of their noise: 38 % covered, this interval 91 %).
    - `halves`: mean cosine of vectors from two random halves of a model's rows, averaged over both models;
      `ceiling`: the same for two sets of n rows, 2r / (1 + r) (Spearman 1910, Brown 1910).
    - `floor_low`, `floor_high`: 2.5 and 97.5 % of the cosines under permuted labels (of pairs: swapped sides).

    Args:
        base: Activations of the base model.
        tuned: Activations of the fine-tuned model on the same rows. `pairs` are compared at the category's token
            (text `tagged`), `prompts` at the last prompt token (`untagged`).
        difference: `contrastive` ([c] minus [respond] after the same prompt) or `mean` (harmful rows minus benign
            rows); None: contrastive for pairs, mean for prompts.
        split: Rows of this split, and those without any, are used.
        draws: Resamples and permutations.
        seed: Of all of them.
        respond: The respond token's name, without brackets.
        same_tokens: Whether both models must have read as many tokens; the published code's don't.

    Raises:
        UserError: The files hold other rows, layers or positions, or rows that the difference needs are missing.
    """
    one, two = Activations.open(base), Activations.open(tuned)
    _check_same(one, two, same_tokens)
    tagged = has_suffixes(one.rows)
    difference = difference or ("contrastive" if tagged else "mean")
    if difference not in DIFFERENCES:
        raise UserError(f"unknown difference {difference!r}; there are {', '.join(DIFFERENCES)}")
    chosen = contrasts(one.rows, split, paired=difference == "contrastive", respond=respond)
    text = "tagged" if tagged else "untagged"
    found = []
    with progress(len(chosen) * len(one.layers), 0, "diff", unit="layer") as bar:
        for number, contrast in enumerate(chosen):
            weights = draw(contrast, draws, np.random.default_rng([seed, number]))
            row = {"category": contrast.category, "text": text, "n": len(contrast.positive)}
            for layer in one.layers:
                x, y = _rows(one, layer, contrast), _rows(two, layer, contrast)
                found.append(row | {"layer": layer} | measure(weights, x, y))
                bar.update(1)
    return pl.DataFrame(found, DIFF).fill_nan(None)


def summed(rows: pl.DataFrame, *, split: str = "train", respond: str = RESPOND) -> np.ndarray:
    """For each row of a row table the sum that it counts to in `compare_means` of the same options, or -1: (rows,) int64."""
    return members(rows.height, contrasts(rows, split, paired=has_suffixes(rows), respond=respond))


def compare_means(
    base: Path, tuned: Path, *, split: str = "train", respond: str = RESPOND, same_tokens: bool = True
) -> pl.DataFrame:
    """The same cosines of sums over the rows of `summed`; what draws single rows is missing.

    Args:
        base: Sums of the base model.
        tuned: Sums of the fine-tuned model over the same rows.
        split: As in `compare`.
        respond: As in `compare`.
        same_tokens: As in `compare`.

    Raises:
        UserError: As `compare`.
    """
    one, two = Sums.open(base), Sums.open(tuned)
    _check_same(one, two, same_tokens)
    tagged = has_suffixes(one.rows)
    chosen = contrasts(one.rows, split, paired=tagged, respond=respond)
    vectors = [mean_differences(sums, chosen)[0] for sums in (one, two)]
    found = [
        {"category": contrast.category, "text": "tagged" if tagged else "untagged", "n": len(contrast.positive),
         "layer": layer, "cosine": cosine}
        for contrast, x, y in zip(chosen, *vectors, strict=True)
        for layer, cosine in zip(one.layers, cosines(x, y).tolist(), strict=True)
    ]  # fmt: skip
    return pl.DataFrame(found, DIFF).fill_nan(None)


def draw(contrast: Contrast, draws: int, rng: np.random.Generator) -> Draws:
    """Weights of the rows [positive, negative], or of the pairs' differences."""
    sides = [(len(contrast.positive), 1.0)]
    if not contrast.paired:
        sides.append((len(contrast.negative), -1.0))
    whole = np.concatenate([np.full(n, sign / n) for n, sign in sides])[None]
    resampled = [rng.multinomial(n, np.full(n, 1 / n), draws) * (sign / n) for n, sign in sides]
    if contrast.paired:
        permuted = whole * rng.choice([-1.0, 1.0], (draws, whole.shape[1]))
    else:
        permuted = rng.permuted(np.tile(whole, (draws, 1)), axis=1)
    return Draws(whole, np.concatenate(resampled, axis=1), permuted, _halves(sides, rng))


def measure(weights: Draws, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Cosine, interval, ceiling and floor of two models' rows, each (rows, d_model); no number where a vector is 0."""
    cosine = float(cosines(weights.whole @ x, weights.whole @ y)[0])
    resampled, point = (np.arctanh(np.clip(value, -1 + 1e-15, 1 - 1e-15))
                        for value in (cosines(weights.resampled @ x, weights.resampled @ y), cosine))  # fmt: skip
    reach = Z * resampled.std(ddof=1)
    low, high = (float(np.tanh(point + side * reach)) for side in (-1, 1))
    floor_low, floor_high = np.quantile(cosines(weights.permuted @ x, weights.permuted @ y), [0.025, 0.975])
    found = {"cosine": cosine, "low": min(low, cosine), "high": max(high, cosine)}
    found |= {"floor_low": float(floor_low), "floor_high": float(floor_high), "ceiling": np.nan, "halves": np.nan}
    if weights.halves is not None:
        first, second = weights.halves
        halves = float(np.mean([cosines(first @ rows, second @ rows).mean() for rows in (x, y)]))
        found |= {"halves": halves, "ceiling": max(-1.0, 2 * halves / (1 + halves))}
    return found


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row by row, (rows, d_model) twice -> (rows,); no number where either is 0."""
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.divide((a * b).sum(-1), lengths, out=np.full(len(a), np.nan), where=lengths > 0)


def _halves(sides: list[tuple[int, float]], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    if min(n for n, _ in sides) < 2:
        return None
    first, second = [], []
    for n, sign in sides:
        place = rng.permuted(np.tile(np.arange(n), (SPLITS, 1)), axis=1)
        half = n // 2
        first.append((place < half) * (sign / half))
        second.append(((place >= half) & (place < 2 * half)) * (sign / half))
    return np.concatenate(first, axis=1), np.concatenate(second, axis=1)


def _rows(activations: Activations, layer: int, contrast: Contrast) -> np.ndarray:
    positive = activations.layer(layer, contrast.positive).astype(np.float64)
    negative = activations.layer(layer, contrast.negative).astype(np.float64)
    return positive - negative if contrast.paired else np.concatenate([positive, negative])


def _check_same(one: Activations | Sums, two: Activations | Sums, same_tokens: bool) -> None:
    """Do both files hold the same rows, token for token as far as the tables say?"""
    for key in ("layers", "position", "site"):
        if one.metadata.get(key) != two.metadata.get(key):
            raise UserError(f"the two models' activations differ in {key}: {one.metadata.get(key)} and "
                            f"{two.metadata.get(key)}; extract both alike")  # fmt: skip
    if one.shape != two.shape:
        raise UserError(
            f"the two models' activations are {one.shape} and {two.shape}; they must be as many and as wide"
        )
    columns = ["dataset", "id", "category", "label", "split", "suffix", *(["n_tokens"] if same_tokens else [])]
    odd = [name for name in columns if not one.rows[name].equals(two.rows[name])]
    if odd:
        raise UserError(f"the two models' rows differ in {odd[0]}; both must read the same prompts and token ids")
