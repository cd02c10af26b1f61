"""Whose vector matters: the permutation test against scipy's, figures against counting, the sentence against the numbers."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from data.store.tables import CATEGORY, CATEGORY_TEST
from reports.statistics.category import ALL, matrix, own_against_others, own_or_another, sentence

NAMES = ["a", "b", "c"]


def made(seed: int, effect: float, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Rows of three categories under three vectors that differ in strength, some rows easier than others; own ones better by an effect."""
    draw = np.random.default_rng(seed)
    own = draw.integers(0, 3, n)
    y = draw.normal(size=(n, 3)) + draw.normal(size=(n, 1)) * 3 + np.array([0.0, 2.0, 4.0])
    y[np.arange(n), own] += effect
    return y, own


@pytest.mark.parametrize("effect", [0.0, 0.4, 1.5])
def test_the_permutation_test_is_scipys(effect):
    y, own = made(1, effect)
    value, low, high, p = own_against_others(y, own, [str(at) for at in range(len(own))])
    z = y - y.mean(1, keepdims=True) - y.mean(0) + y.mean()

    def statistic(labels):
        return 1.5 * z[np.arange(len(z)), labels.astype(int)].mean()

    known = stats.permutation_test((own,), statistic, permutation_type="pairings", alternative="greater", n_resamples=5000,
                                   rng=np.random.default_rng(2))  # fmt: skip
    assert low is not None and high is not None
    assert value == pytest.approx(known.statistic) and low < value < high
    assert p == pytest.approx(known.pvalue, abs=0.03)


def test_a_strong_vector_and_an_easy_row_are_no_effect_of_the_category():
    """Rows of the strongest vector's category in the majority, no interaction: the test must not find one."""
    small = sum(
        own_against_others(*made(seed, 0.0), [str(at) for at in range(60)], seed)[3] < 0.05 for seed in range(60)
    )
    assert small <= 9  # of 60; 3 are expected
    assert own_against_others(*made(3, 2.0), [str(at) for at in range(60)])[3] < 1e-3


def test_siblings_are_permuted_together():
    """A theme's rows are one draw, however many they are: copies of a row make nothing surer."""
    y, own = made(4, 0.5, 20)
    once = own_against_others(y, own, [str(at) for at in range(20)])
    often = own_against_others(np.repeat(y, 7, 0), np.repeat(own, 7), [str(at) for at in range(20) for _ in range(7)])
    assert once[0] == pytest.approx(often[0]) and once[3] == pytest.approx(often[3], abs=0.01)


def frame(seed=5) -> pl.DataFrame:
    draw, rows = np.random.default_rng(seed), []
    for side in ("towards", "away"):
        for at in range(24):
            for vector in [*NAMES, "mean", "(unsteered)"]:
                mass = float(draw.random())
                rows.append((side, vector, f"r{at}", NAMES[at % 3], f"t{at // 4}", mass, mass > 0.5))
    return pl.DataFrame(
        rows, ["side", "vector", "row", "rows", "cluster", "refusal_probability", "refused"], orient="row"
    )


def test_the_matrix_counts_every_cell():
    reached = pl.DataFrame([(side, vector, 1.0, "unit", 0.5, "") for side in ("towards", "away") for vector in [*NAMES, "mean"]],
                           ["side", "vector", "strength", "unit", "kl", "why_not"], orient="row")  # fmt: skip
    outcomes = frame()
    table = matrix(outcomes, reached)
    assert table.schema == pl.Schema(CATEGORY) and table.height == 2 * 5 * 4
    for row in table.to_dicts():
        cell = outcomes.filter(pl.col("side") == row["side"], pl.col("vector") == row["vector"])
        cell = cell if row["rows"] == ALL else cell.filter(pl.col("rows") == row["rows"])
        assert row["n"] == cell.height and row["refusal_probability"] == pytest.approx(
            cell["refusal_probability"].mean()
        )
        assert row["refused"] == pytest.approx(cell["refused"].mean()) and row["low"] <= row["refused"] <= row["high"]
        assert (row["kl"] is None) == (row["vector"] == "(unsteered)")


def test_away_from_refusal_less_is_better():
    outcomes = frame()
    good = outcomes.with_columns(
        refusal_probability=pl.when(pl.col("rows") == pl.col("vector"))
        .then(pl.when(pl.col("side") == "towards").then(0.9).otherwise(0.1))
        .otherwise(0.5)
    )
    table = own_or_another(good, NAMES)
    assert table.schema == pl.Schema(CATEGORY_TEST)
    mass = table.filter(pl.col("outcome") == "refusal_probability")
    assert mass["difference"].to_list() == pytest.approx([0.4, 0.4]) and (mass["p"] < 0.05).all()
    assert sentence(table, 0.5).startswith(
        "The row's own category's vector does better"
    ) and "+40.0 points" in sentence(table, 0.5)
    assert "not shown to matter" in sentence(table.with_columns(p=pl.lit(0.4)), 0.5)
    assert "can't be said" in sentence(table.clear(), 0.5)
