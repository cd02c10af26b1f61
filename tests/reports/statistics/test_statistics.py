"""Intervals, tests, bootstraps, sample sizes and the summary, each beside another way of computing it."""

from math import comb

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap
from statsmodels.stats.proportion import proportion_confint

from data.intervals import wilson
from data.store.tables import SCORES, SUMMARY
from reports.scoring.scores import repeated
from reports.statistics.agreement import agreement
from reports.statistics.bootstrap import clustered_interval, macro_interval
from reports.statistics.power import mcnemar_power, prompts_needed
from reports.statistics.published import ARMS, POOLED, PUBLISHED
from reports.statistics.summary import holm, mcnemar, newcombe, summarise

RELAXED = settings(deadline=None, max_examples=60)  # the first call imports statsmodels
CELLS = st.tuples(*[st.integers(0, 60)] * 4).filter(lambda cells: sum(cells) > 0)


@given(st.integers(0, 500), st.integers(1, 500))
@RELAXED
def test_wilson_is_statsmodels(k, n):
    k = min(k, n)
    assert wilson(k, n) == pytest.approx(proportion_confint(k, n, method="wilson"), abs=1e-12)
    assert np.isnan(wilson(0, 0)).all() and wilson(0, n)[0] == 0 and wilson(n, n)[1] == 1


def method_ten(a, b, c, d):
    """Newcombe 1998, method 10, transcribed from the paper's text, with scipy's Wilson intervals."""
    n = a + b + c + d
    t1, t2 = (a + b) / n, (a + c) / n
    one, two = (binomtest(k, n).proportion_ci(method="wilson") for k in (a + b, a + c))
    product = (a + b) * (c + d) * (a + c) * (b + d)
    numerator = a * d - b * c
    if 0 <= numerator <= n / 2:
        numerator = 0
    elif numerator > n / 2:
        numerator -= n / 2
    phi = 0 if product == 0 else numerator / np.sqrt(product)
    dl2, du2 = t1 - one.low, one.high - t1
    dl3, du3 = t2 - two.low, two.high - t2
    delta = np.sqrt(dl2**2 - 2 * phi * dl2 * du3 + du3**2)
    epsilon = np.sqrt(du2**2 - 2 * phi * du2 * dl3 + dl3**2)
    return t1 - t2, t1 - t2 - delta, t1 - t2 + epsilon


@given(CELLS)
@RELAXED
def test_newcombe_is_the_papers_formula(cells):
    assert newcombe(*cells) == pytest.approx(method_ten(*cells), abs=1e-12)


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        ((36, 12, 2, 0), (0.2000, 0.0569, 0.3404)),  # Newcombe 1998, table II
        ((59, 6, 16, 80), (-0.0621, -0.1186, -0.0046)),  # Cavo et al. 2012, in the R package contingencytables
        ((1, 0, 0, 1), (0, -0.5734, 0.5734)),  # the same
    ],
)
def test_newcombe_gives_the_published_examples(cells, wanted):
    assert newcombe(*cells) == pytest.approx(wanted, abs=1e-4)


@given(CELLS)
@RELAXED
def test_newcombe_turns_round_with_the_arms_and_stays_in_range(cells):
    a, b, c, d = cells
    delta, low, high = newcombe(a, b, c, d)
    assert -1 - 1e-12 <= low <= delta + 1e-12 and delta - 1e-12 <= high <= 1 + 1e-12
    assert newcombe(a, c, b, d) == pytest.approx((-delta, -high, -low), abs=1e-12)


@given(st.integers(0, 200), st.integers(0, 200))
@RELAXED
def test_mcnemar_is_the_binomial_test(first, second):
    wanted = binomtest(first, first + second).pvalue if first + second else 1
    assert mcnemar(first, second) == pytest.approx(wanted, rel=1e-9)


def test_mcnemar_is_the_binomial_sum():
    assert mcnemar(8, 2) == pytest.approx(2 * sum(comb(10, k) for k in range(3)) / 2**10)


@pytest.mark.parametrize("n", [0, 1, 2, 30])
def test_holm_steps_down(n):
    p = np.random.default_rng(n).choice([0, 0.001, 0.01, 0.02, 0.02, 0.3, 1], n).tolist()
    adjusted, running = [0.0] * n, 0.0
    for rank, at in enumerate(sorted(range(n), key=lambda at: p[at])):
        running = max(running, (n - rank) * p[at])
        adjusted[at] = min(running, 1)
    assert holm(p) == pytest.approx(adjusted)


def test_the_bootstrap_without_clusters_is_scipys():
    random = np.random.default_rng(3)
    values = random.random(150) < 0.3
    rows = pl.DataFrame({"cluster": range(150), "refused": values})
    wanted = bootstrap(
        (values.astype(float),), np.mean, n_resamples=10_000, method="percentile", rng=random
    ).confidence_interval
    assert clustered_interval(rows, "refused", 0, ("g",)) == pytest.approx((wanted.low, wanted.high), abs=0.01)


def drawn_one_by_one(clusters, draws, random):
    """Means of so many resamples of whole clusters, in the plainest way."""
    means = []
    for _ in range(draws):
        chosen = random.integers(0, len(clusters), len(clusters))
        means.append(np.concatenate([clusters[at] for at in chosen]).mean())
    return np.array(means)


def themes(random, count):
    """Clusters of unequal size whose members resemble one another."""
    return [(random.random(random.integers(1, 12)) < random.beta(0.5, 0.8)).astype(int) for _ in range(count)]


def as_rows(clusters, **columns):
    frame = {
        "cluster": [at for at, c in enumerate(clusters) for _ in c],
        "refused": np.concatenate(clusters).astype(bool),
    }
    return pl.DataFrame(frame).with_columns([pl.lit(value).alias(name) for name, value in columns.items()])


def test_the_bootstrap_draws_whole_clusters():
    random = np.random.default_rng(4)
    clusters = themes(random, 40)
    wanted = np.quantile(drawn_one_by_one(clusters, 10_000, random), [0.025, 0.975])
    found = clustered_interval(as_rows(clusters), "refused", 0, ("g",))
    assert found == pytest.approx(wanted, abs=0.012)
    n = sum(map(len, clusters))
    alone = wilson(int(np.concatenate(clusters).sum()), n)
    assert found[1] - found[0] > 1.3 * (alone[1] - alone[0])  # what Wilson would have claimed


def test_macro_intervals_draw_within_each_data_set():
    random = np.random.default_rng(5)
    sets = [themes(random, count) for count in (8, 60)]
    rows = pl.concat([as_rows(clusters, dataset=f"d{at}") for at, clusters in enumerate(sets)])
    draws = np.mean([drawn_one_by_one(clusters, 10_000, random) for clusters in sets], axis=0)
    mean, low, high = macro_interval(rows, "refused", 0, ("g",))
    assert mean == pytest.approx(np.mean([np.concatenate(clusters).mean() for clusters in sets]))
    assert (low, high) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.015)


def test_bootstraps_repeat_and_differ_by_seed_and_group():
    rows = as_rows(themes(np.random.default_rng(6), 30))
    first = clustered_interval(rows, "refused", 0, ("g", None))
    assert first == clustered_interval(rows.sample(fraction=1, shuffle=True, seed=1), "refused", 0, ("g", None))
    assert first != clustered_interval(rows, "refused", 1, ("g", None))


@pytest.mark.parametrize(("n", "disagreement", "difference"), [(60, 0.3, 0.2), (200, 0.1, 0.08), (25, 0.5, 0.4)])
def test_power_is_how_often_the_test_rejects(n, disagreement, difference):
    random = np.random.default_rng(7)
    one_way, other = (disagreement + difference) / 2, (disagreement - difference) / 2
    drawn = random.multinomial(n, [one_way, other, 1 - disagreement], 4_000)
    rejected = sum(a + b > 0 and float(binomtest(a, a + b).pvalue) <= 0.05 for a, b, _ in drawn.tolist())
    assert mcnemar_power(n, disagreement, difference) == pytest.approx(rejected / len(drawn), abs=0.03)


def test_prompts_needed_have_the_power_and_few_less_do_not():
    for disagreement, difference in [(0.1, 0.05), (0.5, 0.4), (0.06, 0.05), (0.3, 0.1), (0.02, 0.05)]:
        n = prompts_needed(disagreement, difference)
        assert n is not None
        truly = max(disagreement, difference)
        assert mcnemar_power(n, truly, difference) >= 0.8 > mcnemar_power(int(n * 0.9) - 1, truly, difference)


def test_prompts_needed_exceed_connors_formula_a_little():
    # Connor 1987: ((z_a √ψ + z_b √(ψ − d²)) / d)²; the example of R's pwr.mcnemar, 0.05 and 0.45, gives 22.
    connor = ((1.959964 * 0.5**0.5 + 0.841621 * (0.5 - 0.16) ** 0.5) / 0.4) ** 2
    assert connor == pytest.approx(22, abs=0.05)
    needed = prompts_needed(0.5, 0.4)
    assert needed is not None and 22 <= needed <= 28
    needed = prompts_needed(0.1, 0.05)
    assert needed is not None and 312 <= needed <= 312 * 1.15
    assert prompts_needed(0.1, 0) is None and prompts_needed(0.1, -0.05) == needed


def scored(rows):
    """A table of scores from (dataset, id, arm, verdict), with what else is given."""
    table = [{"dataset": d, "id": i, "arm": a, "kind": a.partition(":")[0], "label": "benign", "scorer": "phrases",
              "verdict": v, "refused": None if v is None else v == "refuse", "fitted": False, **more}
             for d, i, a, v, more in (row if len(row) == 5 else (*row, {}) for row in rows)]  # fmt: skip
    return pl.DataFrame(table, schema=SCORES)


def row_of(summary, **wanted):
    found = summary.filter([pl.col(name) == value for name, value in wanted.items()])
    assert found.height == 1
    return found.row(0, named=True)


def example():
    """Two sets of unlike size: the arm cures half of one, breaks the other."""
    rows = []
    for at in range(40):
        rows += [("a", f"{at}", "baseline", "refuse"), ("a", f"{at}", "fixed", "refuse" if at % 2 else "comply")]
    for at in range(10):
        rows += [("b", f"{at}", "baseline", "refuse" if at < 5 else "comply"), ("b", f"{at}", "fixed", "broken")]
    rows += [
        ("b", "x", "baseline", None),
        ("b", "x", "fixed", "partial"),
        ("b", "y", "fixed", "refuse", {"fitted": True}),
    ]
    return scored(rows)


def test_summary_counts_and_compares_on_the_same_rows():
    summary = summarise(example())
    assert dict(summary.schema) == SUMMARY
    row = row_of(summary, dataset="b", arm="fixed")
    assert [row[name] for name in ("n", "n_failed", "n_overlap", "refused", "partial", "broken", "answered")] == [
        11,
        0,
        1,
        0,
        1,
        10,
        0,
    ]
    assert (row["n_paired"], row["delta"], row["rate"]) == (10, -0.5, 0)
    assert (row["delta_low"], row["delta_high"]) == pytest.approx(method_ten(0, 0, 5, 5)[1:])
    assert row["p"] == pytest.approx(2 / 2**5)
    base = row_of(summary, dataset="b", arm="baseline")
    assert (base["n"], base["n_failed"], base["delta"], base["p"], base["n_paired"]) == (10, 1, None, None, 0)
    wanted = binomtest(5, 10).proportion_ci(method="wilson")
    assert (base["low"], base["high"]) == pytest.approx((wanted.low, wanted.high))


def test_pooled_rows_pool_prompts_and_macro_rows_average_sets():
    summary = summarise(example())
    pooled, macro = (row_of(summary, dataset=name, arm="fixed") for name in ("(pooled)", "(macro)"))
    assert (pooled["n"], pooled["refused"], pooled["n_paired"]) == (51, 20, 50)
    assert pooled["delta"] == pytest.approx(-25 / 50) and pooled["p"] == pytest.approx(2 / 2**25)
    assert (macro["n"], macro["rate"], macro["delta"]) == (51, pytest.approx((0.5 + 0) / 2), pytest.approx(-0.5))
    assert macro["p"] is None and macro["p_holm"] is None and pooled["p_holm"] is None
    assert macro["low"] < macro["rate"] < macro["high"] and macro["delta_low"] < -0.5 < macro["delta_high"]


def test_a_prompt_of_two_sets_counts_once_in_the_pool():
    rows = [(name, f"{at}", arm, "refuse" if arm == "baseline" or at % 2 else "comply")
            for name in ("a", "copy", "other") for at in range(10) for arm in ("baseline", "fixed")]  # fmt: skip
    scores = scored(rows)
    texts = (
        pl.when(pl.col("dataset") == "other")
        .then(pl.format("{} of another", "id"))
        .otherwise(pl.format("Prompt  {}", "id"))
    )
    twice = repeated(scores.select("dataset", "id", "label", texts.alias("prompt")))
    assert twice.rows() == [("copy", f"{at}", "a") for at in range(10)]
    summary, without = summarise(scores, repeated=twice), summarise(scores.filter(pl.col("dataset") != "copy"))
    for arm in ("baseline", "fixed"):
        pooled, wanted = (row_of(table, dataset="(pooled)", arm=arm) for table in (summary, without))
        assert pooled["n"] == 20 and {**pooled} == {**wanted}
        assert row_of(summary, dataset="copy", arm=arm)["n"] == 10


def test_holm_has_one_family_a_scorer():
    summary = summarise(example())
    family = summary.filter(pl.col("p_holm").is_not_null())
    assert family["dataset"].to_list() == ["a", "b"]
    assert family["p_holm"].to_list() == pytest.approx(holm(family["p"].to_list()))
    twice = pl.concat([example(), example().with_columns(scorer=pl.lit("judge"))])
    assert summarise(twice).filter(scorer="judge")["p_holm"].to_list() == summary["p_holm"].to_list()


def test_n_needed_is_for_the_difference_that_was_named():
    summary = summarise(example(), difference=0.1)
    assert row_of(summary, dataset="a", arm="fixed")["n_needed"] == prompts_needed(0.5, 0.1)
    assert row_of(summary, dataset="(macro)", arm="fixed")["n_needed"] is None


def test_the_order_of_rows_and_other_arms_change_nothing():
    scores = example()
    first = summarise(scores, seed=3)
    assert summarise(scores.sample(fraction=1, shuffle=True, seed=1), seed=3).equals(first)
    more = pl.concat([scores, scored([("a", str(at), "random", "comply") for at in range(40)])])
    again = summarise(more, seed=3).filter(pl.col("arm") != "random")
    assert again.drop("p_holm").equals(first.drop("p_holm"))


def test_themes_are_drawn_together_and_rows_without_one_alone():
    scores = example()
    by_four = pl.DataFrame(
        {"dataset": "a", "id": [str(at) for at in range(40)], "theme": [f"t{at % 10}" for at in range(40)]}
    )
    summary = summarise(scores, seed=0, clusters=by_four)
    row = row_of(summary, dataset="a", arm="fixed")
    assert row["n_clusters"] == 10 and row["cluster_high"] - row["cluster_low"] > row["high"] - row["low"]
    assert row["delta_cluster_low"] < row["delta"] < row["delta_cluster_high"]
    other = row_of(summary, dataset="b", arm="fixed")
    assert (other["n_clusters"], other["cluster_low"]) == (11, None)  # each row its own: Wilson's interval stands
    assert row_of(summary, dataset="(pooled)", arm="fixed")["n_clusters"] == 21
    plain = row_of(summarise(scores), dataset="(macro)", arm="fixed")
    macro = row_of(summary, dataset="(macro)", arm="fixed")
    assert macro["rate"] == plain["rate"] and macro["high"] - macro["low"] > plain["high"] - plain["low"]


def test_themes_of_one_name_in_two_sets_are_two_clusters():
    clusters = pl.DataFrame({"dataset": ["a", "b"], "id": ["1", "1"], "theme": ["t", "t"]})
    summary = summarise(scored([("a", "1", "baseline", "refuse"), ("b", "1", "baseline", "comply")]), clusters=clusters)
    assert row_of(summary, dataset="(pooled)")["n_clusters"] == 2


def test_nothing_left_is_null_not_zero():
    summary = summarise(example().with_columns(fitted=pl.lit(True)))
    assert set(summary["dataset"]) == {"a", "b", "(pooled)", "(macro)"}
    assert set(summary["n"]) == {0} and set(summary["refused"]) == {0}
    for name in ("rate", "low", "high", "delta", "p", "p_holm"):
        assert summary[name].null_count() == summary.height
    assert dict(summarise(example().clear()).schema) == SUMMARY


def test_no_baseline_no_comparison():
    summary = summarise(example().filter(pl.col("kind") != "baseline"))
    assert summary["delta"].null_count() == summary.height and summary["rate"].null_count() == 0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80))
@RELAXED
def test_kappa_is_scikit_learns(verdicts):
    from sklearn.metrics import cohen_kappa_score

    rows = [(at, s, v) for at, pair in enumerate(verdicts) for s, v in zip(("phrases", "judge"), pair, strict=True)]
    scores = scored([("d", str(at), "baseline", "refuse" if v else "comply", {"scorer": s}) for at, s, v in rows])
    scores = pl.concat([scores, scored([("d", "z", "baseline", None, {"scorer": "judge"})])])
    found = agreement(scores).row(0, named=True)
    one, two = zip(*verdicts, strict=True)
    assert (found["first"], found["second"], found["n"]) == ("phrases", "judge", len(verdicts))
    assert found["agreement"] == pytest.approx(np.mean(np.equal(one, two)))
    if len({*one, *two}) < 2:
        assert found["kappa"] is None
    else:
        assert found["kappa"] == pytest.approx(cohen_kappa_score(one, two))


def test_every_pair_of_scorers_is_compared_and_one_alone_with_none():
    scores = pl.concat([example().with_columns(scorer=pl.lit(s)) for s in ("hand", "judge", "phrases")])
    assert agreement(scores).select("first", "second").rows() == [
        ("phrases", "judge"),
        ("phrases", "hand"),
        ("judge", "hand"),
    ]
    assert agreement(example()).is_empty()


def test_published_figures_are_whole_prompts_and_their_pools_add_up():
    for figure in PUBLISHED:
        shares = [round(100 * figure.refused(arm) / figure.n, 2) for arm in ARMS]
        assert shares == pytest.approx(figure.percents, abs=0.005)
    for label in ("benign", "harmful"):
        for arm in ARMS:
            same = [figure for figure in PUBLISHED if figure.label == label]
            (pool,) = (figure for figure in same if figure.source == POOLED)
            parts = [figure for figure in same if figure.source != POOLED]
            assert (sum(f.n for f in parts), sum(f.refused(arm) for f in parts)) == (pool.n, pool.refused(arm))
    assert len(PUBLISHED) == 16
