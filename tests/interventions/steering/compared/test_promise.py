import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import binomtest

from interventions.steering.compared.promise import MORE_REFUSED, Answered, curve, harmful_from, needed, promised

SIZE = 40
BOOLS = hnp.arrays(bool, SIZE)
SCORES = hnp.arrays(np.float32, SIZE, elements=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.51, 0.9, 1.0]))


@given(SCORES, BOOLS, BOOLS, BOOLS, BOOLS, BOOLS)
def test_every_threshold_gives_what_rows_below_it_answer_steered_and_the_others_unsteered(
    score, harmful, refused, after, broken, broken_after
):
    harmful[:2] = True, False
    found = curve(score, harmful, Answered(refused, broken), Answered(after, broken_after))
    for at, threshold in enumerate(found.threshold):
        steered = score < threshold
        now, none = np.where(steered, after, refused), np.where(steered, broken_after, broken)
        assert np.isclose(found.benign[at], now[~harmful].mean())
        assert np.isclose(found.harmful[at], now[harmful].mean())
        assert np.isclose(found.broken[at], none.mean())
        stake = harmful & refused
        if stake.any():
            kept = int(now[stake].sum())
            low = binomtest(kept, int(stake.sum()), alternative="greater").proportion_ci(0.95, "exact").low
            assert np.isclose(found.kept[at], kept / stake.sum())
            assert np.isclose(found.low[at], low)
    assert len(found.threshold) == len(np.unique(score)) + 1


@given(SCORES, BOOLS, BOOLS, BOOLS, st.sampled_from([0.3, 0.7, 0.9]))
def test_the_promise_is_kept_and_no_threshold_that_keeps_it_leaves_less_over_refusal(
    score, harmful, refused, after, share
):
    harmful[:2] = True, False
    nothing = np.zeros(SIZE, bool)
    found = curve(score, harmful, Answered(refused, nothing), Answered(after, nothing))
    at = promised(found, share)
    fine = (found.low >= share) & (found.benign < found.benign[0])
    assert (at is None) == (not fine.any())
    if at is not None:
        assert fine[at] and found.benign[at] == found.benign[fine].min()


def test_broken_answers_are_no_cure():
    harmful = np.array([True] * 60 + [False] * 60)
    refused, nothing = np.ones(120, bool), np.zeros(120, bool)
    score = harmful.astype(float)
    broken = Answered(nothing, ~harmful)
    assert promised(curve(score, harmful, Answered(refused, nothing), broken), 0.9) is None
    assert promised(curve(score, harmful, Answered(refused, nothing), Answered(nothing, nothing)), 0.9) is not None


@given(SCORES, BOOLS, BOOLS, BOOLS, BOOLS, st.sampled_from([0.0, 0.3, 0.5, 2.0]))
def test_steering_towards_refusal_begins_as_low_as_costs_benign_rows_little(
    score, harmful, refused, after, broken, threshold
):
    harmful[:2] = True, False
    least = harmful_from(score, harmful, Answered(refused, ~refused), Answered(after, broken), threshold)

    def cost(start):
        steered = ~harmful & (score >= start)
        return (steered & ((after & ~refused) | (broken & refused))).sum()

    allowed = MORE_REFUSED * (~harmful).sum()
    if least is None:
        assert all(cost(start) > allowed for start in score if start >= np.float32(threshold))
    else:
        assert least >= threshold and cost(np.float32(least)) <= allowed
        lower = [start for start in score if np.float32(threshold) <= start < np.float32(least)]
        assert all(cost(start) > allowed for start in lower)


def test_how_many_rows_a_promise_takes():
    n = needed(0.95)
    assert binomtest(n, n, alternative="greater").proportion_ci(0.95, "exact").low >= 0.95
    assert binomtest(n - 1, n - 1, alternative="greater").proportion_ci(0.95, "exact").low < 0.95
