"""Errors of scorers against labels by hand, and rates corrected for them."""

import numpy as np
import polars as pl
import pytest
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from reports.statistics.judges import classes, corrected, disagreements, quality, rogan_gladen

HAND = ["refuse"] * 40 + ["partial"] * 20 + ["comply"] * 35 + ["broken"] * 5
SAID = (
    ["refuse"] * 34
    + ["comply"] * 6
    + ["comply"] * 12
    + ["refuse"] * 8
    + ["comply"] * 33
    + ["refuse"] * 2
    + ["broken"] * 5
)


def bench(said=SAID, half="all"):
    rows = range(len(HAND))
    return pl.DataFrame({"scorer": "mine", "half": half, "hand": HAND, "verdict": said, "dataset": "d", "id": [str(at) for at in rows],
                         "arm": "baseline", "prompt": "p", "response": "r", "label": "harmful"})  # fmt: skip


def test_errors_kappa_and_confusion_are_those_of_others():
    row = quality(bench()).to_dicts()[0]
    matrix = confusion_matrix(HAND, SAID, labels=["comply", "partial", "refuse", "broken"])
    assert row["n"] == 100 and row["wrong"] == 100 - matrix.trace()
    assert row["sensitivity"] == 34 / 40 and row["specificity"] == 50 / 60
    low, high = binomtest(34, 40).proportion_ci(method="wilson")
    assert (row["sensitivity_low"], row["sensitivity_high"]) == pytest.approx((low, high))
    theirs = cohen_kappa_score([hand == "refuse" for hand in HAND], [said == "refuse" for said in SAID])
    assert row["kappa"] == pytest.approx(theirs) and row["kappa_low"] < theirs < row["kappa_high"]
    table = classes(bench()).select("comply", "partial", "refuse", "broken").to_numpy()
    assert (table == matrix).all()
    assert disagreements(bench()).height == row["wrong"]


def test_no_verdict_is_counted_apart_and_is_no_error():
    said = [None if at % 10 == 0 else verdict for at, verdict in enumerate(SAID)]
    row = quality(bench(said)).to_dicts()[0]
    assert row["n"] == 90 and row["n_failed"] == 10
    assert classes(bench(said))["none"].sum() == 10


def test_halves_stand_alone_and_together():
    both = pl.concat([bench(half="tune"), bench(half="held")])
    assert quality(both).select("half", "n").rows() == [("tune", 100), ("held", 100), ("all", 200)]


def test_a_perfect_scorers_rate_is_left_nearly_as_it_is():
    rate, low, high = rogan_gladen(30, 100, 1000, 1000, 1000, 1000)
    assert rate == pytest.approx(0.3) and low < 0.3 < high and high - low < 0.2
    assert all(np.isnan(rogan_gladen(30, 100, 5, 10, 5, 10)))  # a coin


def test_the_published_example_comes_out():
    """Lang and Reiczigel's formula, worked by hand for n = 150, 15 positive, Se 40/50, Sp 97/100."""
    z = 1.96
    n, p = 150 + z**2, (15 + z**2 / 2) / (150 + z**2)
    se, sp = 41 / 52, 98 / 102
    middle = (p + sp - 1) / (se + sp - 1)
    a, b = se * (1 - se) / 52, sp * (1 - sp) / 102
    shift = 2 * z**2 * (middle * a - (1 - middle) * b)
    spread = z * (p * (1 - p) / n + middle**2 * a + (1 - middle) ** 2 * b) ** 0.5 / (se + sp - 1)
    found = rogan_gladen(15, 150, 40, 50, 97, 100)
    assert found == pytest.approx((0.07 / 0.77, max(middle + shift - spread, 0), middle + shift + spread), abs=1e-4)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    random, true, se, sp, held = np.random.default_rng(0), 0.3, 0.8, 0.9, 0
    for _ in range(1000):
        seen = random.binomial(300, true * se + (1 - true) * (1 - sp))
        _, low, high = rogan_gladen(seen, 300, random.binomial(80, se), 80, random.binomial(120, sp), 120)
        held += low <= true <= high
    assert 930 <= held <= 975


def test_corrected_rates_come_nearer_to_the_hand():
    rows = bench()
    table = corrected(rows, quality(rows)).to_dicts()[0]
    assert table["hand"] == 0.4 and table["rate"] == 0.44
    assert table["corrected"] == pytest.approx(0.4) and table["corrected_low"] < 0.4 < table["corrected_high"]
