"""Is an answer text that the model would write? Fluent nonsense is not `broken`, and is no answer either.

An answer is incoherent if its mean log-likelihood a token under the unsteered model lies below the 1st percentile of that of the
unsteered answers of like length. So about one in a hundred unsteered answers is called so too.
"""

import numpy as np
import polars as pl

from data.store.tables import COHERENCE

PERCENTILE = 1.0
LIKE = 200  # unsteered answers that are nearest in length, by its logarithm
FEWEST = 50  # of them for a percentile to be told


def incoherent(answers: pl.DataFrame) -> pl.DataFrame:
    """The table, in the columns of `COHERENCE`.

    Args:
        answers: `dataset`, `id`, `arm`, `kind`, `label`, `tokens` (of text) and `log_likelihood`, null where there is no text.
    """
    known = answers.filter(pl.col("kind") == "baseline", pl.col("log_likelihood").is_not_null())
    lengths, values = np.log(known["tokens"].to_numpy()), known["log_likelihood"].to_numpy()
    at = {tokens: percentile(lengths, values, tokens) for tokens in answers["tokens"].unique() if tokens}
    floor = pl.col("tokens").replace_strict(at, default=None, return_dtype=pl.Float64)
    table = answers.with_columns(floor.alias("floor"))
    table = table.with_columns((pl.col("log_likelihood") < pl.col("floor")).alias("incoherent"))
    return table.select([pl.col(name).cast(kind) for name, kind in COHERENCE.items()])


def percentile(lengths: np.ndarray, values: np.ndarray, tokens: int) -> float | None:
    """The 1st percentile of the unsteered answers that are nearest in length; None if there are too few.

    Args:
        lengths: Logarithms of their lengths.
        values: Their mean log-likelihoods.
        tokens: The length asked about.
    """
    if len(values) < FEWEST:
        return None
    nearest = np.argsort(np.abs(lengths - np.log(tokens)), kind="stable")[:LIKE]
    return float(np.percentile(values[nearest], PERCENTILE))
