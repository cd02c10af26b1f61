"""The first round: who answered which rows, who goes on, and that nothing else changes by it."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from data.store.journal import Journal
from data.store.tables import answered_most
from interventions.steering.arms import Arm, parse_arms
from interventions.steering.compared import first_round
from interventions.steering.compared.candidates import Candidate
from interventions.steering.compared.compare import compare, settings_of
from interventions.steering.compared.equal_kl import Reached
from interventions.steering.compared.first_round import BESIDE, ENOUGH, FIRST, GO_ON, Sized, first_rows, go_on
from interventions.steering.compared.promise import Answered, curve
from interventions.steering.compared.scores import gate_scores
from interventions.steering.generate import generate
from tests.made.tools import COMPARED_ARM, COMPARED_METHODS, each

TOKENS = 4
BUDGET, SHARE, FEW = 0.05, 0.02, 12


def verdict(text):
    """A rule by which about half of all answers refuse."""
    return "refuse" if sum(map(ord, text)) % 2 else "comply"


@pytest.fixture
def compared(tiny_tuned, prompts, tried, tmp_path, monkeypatch):
    """Compare, with a first round of so many rows or without."""
    scores = gate_scores(tiny_tuned, prompts, tried[0].tools, 2)

    def call(first, name="c.parquet", **more):
        monkeypatch.setattr(first_round, "ENOUGH", first or prompts.height)
        monkeypatch.setattr(first_round, "FIRST", first or FIRST)
        return compare(tiny_tuned, prompts, tried, scores, tmp_path / name, verdicts=each(verdict), budgets=[BUDGET], share=SHARE,
                       max_new_tokens=TOKENS, **more)  # fmt: skip

    return call


def test_who_goes_on_answers_all_rows_as_without_a_first_round_and_the_others_promise_nothing(
    compared, tiny_tuned, prompts, tried, tmp_path
):
    whole, table = compared(None, "whole.parquet"), compared(FEW)
    assert set(whole["n_benign"] + whole["n_harmful"]) == {prompts.height}
    went_on = answered_most(table)
    assert set(went_on["n_benign"]) == set(whole["n_benign"]) and set(went_on["n_harmful"]) == set(whole["n_harmful"])
    names = set(went_on["method"])
    assert BESIDE in names and len(names & set(COMPARED_METHODS)) == GO_ON and len(names) == GO_ON + 1
    lines = [frame.filter(pl.col("method").is_in(list(names)) & pl.col("harmful_threshold").is_null()).drop("chosen")
             for frame in (table, whole)]  # fmt: skip
    assert_frame_equal(*lines)
    left = table.join(went_on, on="method", how="anti")
    assert set(left["method"]) == set(whole["method"]) - names
    assert set(left["n_benign"]) == set(left["n_harmful"]) == {FEW // 2}
    assert went_on["promised"].any() and not left["promised"].any() and not left["chosen"].any()
    assert set(settings_of(table)["n"]) <= {prompts.height // 2}
    some = prompts[first_rows((prompts["label"] == "harmful").to_numpy(), 0)]
    tools = {one.method: one.tools for one in tried}
    ends = left.filter(pl.col("gate") == "", pl.col("threshold") > 0.5, pl.col("method") != "random")
    assert ends.height
    for row in ends.iter_rows(named=True):  # what the first rows answer, and no other
        [arm] = parse_arms([row["arm"]], replace(COMPARED_ARM, strength=row["strength"]))
        arm = replace(arm, strength=row["strength"])
        made = generate(
            tiny_tuned, some, tools[row["method"]], tmp_path / "g.parquet", arms=[arm], max_new_tokens=TOKENS
        )
        for label in ("benign", "harmful"):
            said = [verdict(text) == "refuse" for text in made.filter(label=label)["response"]]
            assert row[label] == pytest.approx(np.mean(said)), row


def test_a_killed_run_goes_on_in_either_round(compared, tmp_path, monkeypatch):
    whole, finish, noted = compared(FEW, "whole.parquet", batch_tokens=8), Journal.finish, []
    for deaths in (3, 30, 4000):  # in the first round, in the second, never

        def dies(journal, done, deaths=deaths):
            finish(journal, done)
            noted.append((journal._path.name, *done))
            if len(noted) == deaths:
                raise KeyboardInterrupt

        monkeypatch.setattr(Journal, "finish", dies)
        if deaths < 4000:
            with pytest.raises(KeyboardInterrupt):
                compared(FEW, batch_tokens=8)
            assert any(path.suffix == ".journal" for path in tmp_path.iterdir())
    again = compared(FEW, batch_tokens=8)
    assert again.equals(whole)
    assert len(noted) == len(set(noted)) > 30  # nothing was answered twice
    assert {path.name for path in tmp_path.iterdir()} == {"whole.parquet", "c.parquet"}


@given(st.lists(st.booleans(), min_size=2, max_size=400), st.integers(0, 5))
def test_the_first_rows_are_half_harmful_as_far_as_there_are_such(labels, seed):
    harmful = np.array(labels)
    rows = first_rows(harmful, seed)
    assert (np.diff(rows) > 0).all() and (first_rows(harmful, seed) == rows).all()
    if len(harmful) <= ENOUGH:
        assert rows.tolist() == list(range(len(harmful)))
        return
    assert len(rows) == FIRST
    rarer = harmful if harmful.sum() * 2 <= len(harmful) else ~harmful
    assert rarer[rows].sum() == min(rarer.sum(), FIRST // 2)


def one(method, strength=-1.0, control=False):
    arm = Arm(method, "fixed", 1, strength=strength)
    return Sized(0.5, Candidate(method, "fixed", (), arm, None, control), Reached(1.0, 0.5, 1))  # type: ignore[arg-type]


def test_the_best_by_what_they_keep_go_on_and_a_control_beside_them():
    harmful, nothing = np.arange(40) < 20, np.zeros(40, bool)
    before = Answered(np.ones(40, bool), nothing)
    score = harmful * 0.8

    def line(benign, lost=0, broken=0):
        """So many benign rows go on to refuse, so many harmful ones no longer do."""
        refused = np.r_[np.arange(20) >= lost, np.arange(20) < benign]
        return curve(
            np.arange(40) / 40 if lost else score, harmful, before, Answered(refused, np.arange(40) >= 40 - broken)
        )

    found = [
        one("a"),
        one("b"),
        one("random", control=True),
        one("c", -2.0),
        one("d"),
        one("e"),
        one("logit-bias", control=True),
    ]
    curves = [[line(9), line(3)], [line(20)], [line(0)], [line(5)], [line(0, broken=20)], [line(5)], [line(19)]]
    assert go_on(found, curves, 0.9) == [0, 3, 5, 6]  # d breaks answers, which is no cure
    found[4] = one("d", -0.5)
    curves[4] = [line(5)]
    found[1], curves[1] = one("b", -0.4), [line(5)]
    assert go_on(found, curves, 0.9) == [0, 1, 4, 6]  # of equals the weaker
    curves[0] = [line(0, lost=20)]  # steering any benign row means to lose every harmful one
    assert 0 not in go_on(found, curves, 0.9)
