"""Side effects in figures: means, percentiles and ratios with 95 % intervals, one row a data set, arm and measure.

Means and perplexities are ratios of sums over clusters (prompts of one theme, pieces of one passage); their intervals
are percentile bootstraps over the clusters. A percentile's interval is the distribution-free one of order statistics;
few prompts bound the 95th percentile from below alone, and the upper end is null.
"""

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import polars as pl
from scipy import stats

from data.intervals import wilson
from data.store.measured import Measured
from data.store.tables import EFFECTS
from reports.statistics.bootstrap import DRAWS, draws_of

DRAWS_AT_ONCE = 500
Figure = tuple[float | None, float | None, float | None]
NOTHING: Figure = (None, None, None)


def figures(
    measured: Measured, datasets: Sequence[str], themes: Sequence[str | None], text_name: str, seed: int = 0
) -> pl.DataFrame:
    """The table, in the columns of `EFFECTS`.

    Measures, each with `n` prompts or passages: `kl_first_mean`, `kl_first_p95`; `kl_32_mean`, `kl_32_p95` (32: at
    most so many tokens; percentiles are over prompts), nats; `broken`, a share with Wilson's interval; `perplexity`,
    and `perplexity_ratio` to the baseline's on the same passages.

    Args:
        measured: The numbers.
        datasets: (N,) data set of each prompt.
        themes: (N,) the cluster each is drawn with; None is a cluster of its own.
        text_name: What the plain text is called.
        seed: Of the bootstrap.
    """
    rows: list[tuple[str, str, str, float | None, float | None, float | None, int]] = []
    for dataset in dict.fromkeys(datasets):
        chosen = np.array([name == dataset for name in datasets])
        clusters = [at if theme is None else theme for at, theme in enumerate(themes) if chosen[at]]
        for at, arm in enumerate(measured.arms):
            for name, values in (("first", measured.first), (str(measured.most), measured.answer)):
                kl = values[chosen, at]
                mean = ratio(kl, np.ones(len(kl)), clusters, draws_of(dataset, seed))
                rows.append((dataset, arm, f"kl_{name}_mean", *mean, len(kl)))
                rows.append((dataset, arm, f"kl_{name}_p95", *percentile(kl, 0.95), len(kl)))
            rows.append((dataset, arm, "broken", *share(measured.broken[chosen, at]), int(chosen.sum())))
    passages, n = measured.passage.tolist(), len(set(measured.passage.tolist()))
    for at, arm in enumerate(measured.arms):
        nll, own, random = measured.nll[:, at], measured.nll[:, 0], lambda: draws_of(text_name, seed)
        perplexity = ratio(nll, measured.tokens, passages, random(), np.exp)
        rows.append((text_name, arm, "perplexity", *perplexity, n))
        against = ratio(nll - own, measured.tokens, passages, random(), np.exp)
        rows.append((text_name, arm, "perplexity_ratio", *against, n))
    return pl.DataFrame(rows, EFFECTS, orient="row").fill_nan(None)


def ratio(
    sums: np.ndarray,
    sizes: np.ndarray,
    clusters: Sequence[Hashable],
    random: np.random.Generator,
    scale: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> Figure:
    """scale(Σ sums / Σ sizes) and its percentile bootstrap interval over clusters (scipy); none of a single cluster."""
    if not len(sums):
        return NOTHING
    order = {cluster: at for at, cluster in enumerate(dict.fromkeys(clusters))}
    which = np.array([order[cluster] for cluster in clusters])
    totals = [np.bincount(which, weights=part, minlength=len(order)) for part in (sums, sizes)]

    def statistic(top: np.ndarray, bottom: np.ndarray, axis: int) -> np.ndarray:
        return scale(top.sum(axis) / bottom.sum(axis))

    value = float(statistic(totals[0], totals[1], -1))
    if len(order) < 2:
        return value, None, None
    found = stats.bootstrap(totals, statistic, paired=True, vectorized=True, n_resamples=DRAWS, batch=DRAWS_AT_ONCE,
                            method="percentile", rng=random)  # fmt: skip
    return value, float(found.confidence_interval.low), float(found.confidence_interval.high)


def percentile(values: np.ndarray, p: float) -> Figure:
    """A percentile and its distribution-free interval (order statistics, scipy's `quantile_test`)."""
    if not len(values):
        return NOTHING
    low, high = stats.quantile_test(values, p=p).confidence_interval(0.95)
    return float(np.quantile(values, p)), float(low), float(high)


def share(flags: np.ndarray) -> Figure:
    """A share and Wilson's interval."""
    if not len(flags):
        return NOTHING
    return float(flags.mean()), *wilson(int(flags.sum()), len(flags))
