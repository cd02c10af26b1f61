"""Methods compared: what the table says of a setting is what the arm that it names gives, and strengths cost alike."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from data.errors import UserError
from data.store.tables import COMPARED
from interventions.steering.arms import parse_arms
from interventions.steering.compared.candidates import wanted
from interventions.steering.compared.compare import Sized, both_ways, compare, settings_of
from interventions.steering.compared.equal_kl import HarmlessKL, Reached
from interventions.steering.compared.promise import MORE_REFUSED, Answered
from interventions.steering.compared.scores import gate_scores
from interventions.steering.generate import generate
from tests.made.tools import COMPARED_ARM, each

TOKENS = 4


def verdict(text):
    """Any rule will do; this one sees every word."""
    return "broken" if not text else "refuse" if len(text) % 3 == 0 else "comply"


@pytest.fixture(scope="module")
def table(tiny_tuned, prompts, tried, tmp_path_factory):
    path = tmp_path_factory.mktemp("compared") / "compared.parquet"
    scores = gate_scores(tiny_tuned, prompts, tried[0].tools, 2)
    assert set(scores) == {"probe"}
    return compare(
        tiny_tuned,
        prompts,
        tried,
        scores,
        path,
        verdicts=each(verdict),
        budgets=[0.05],
        share=0.3,
        max_new_tokens=TOKENS,
    )


def test_a_row_is_what_its_arm_gives(table, tiny_tuned, prompts, tried, tmp_path):
    assert table.schema == COMPARED and table["chosen"].sum() <= 1
    tools = {one.method: one.tools for one in tried}
    pairs = table.select("method", "gate").unique(maintain_order=True).rows()
    assert {gate for method, gate in pairs if method in ("affine", "prompt-only")} == {""}  # they leave no prompt alone
    assert {gate for method, gate in pairs if method in ("random", "angular")} == {"", "probe", "perfect"}
    for method, gate in pairs:
        rows = table.filter(method=method, gate=gate).sort("threshold")
        for row in [rows.row(len(rows) // 2 if gate else -1, named=True)]:
            [arm] = parse_arms([row["arm"]], replace(COMPARED_ARM, strength=row["strength"]))
            arm = replace(arm, strength=row["strength"])
            made = generate(
                tiny_tuned, prompts, tools[method], tmp_path / "g.parquet", arms=[arm], max_new_tokens=TOKENS
            )
            said = np.array([verdict(text) for text in made["response"]])
            harmful = (prompts["label"] == "harmful").to_numpy()
            if gate or row["threshold"] > 0.5:  # without a gate the other end is the unsteered model
                assert row["harmful"] == pytest.approx((said[harmful] == "refuse").mean()), row
                assert row["benign"] == pytest.approx((said[~harmful] == "refuse").mean())
                assert row["broken"] == pytest.approx((said == "broken").mean())


def test_strengths_cost_harmless_prompts_alike(table, tiny_tuned, prompts, tried):
    found = {row["method"]: row for row in table.unique("method").iter_rows(named=True)}
    for method in ("mean", "contrastive", "random", "wrong-category"):
        assert abs(found[method]["kl"] / 0.05 - 1) <= 0.05 or found[method]["why_not"]
    for method in ("ablate", "logit-bias", "prompt-only"):
        assert found[method]["why_not"] == "it has no strength to change"
    benign = prompts.filter(label="benign")
    measured = HarmlessKL.of(tiny_tuned, benign, tried[0].tools)
    arms = [replace(one.arm, strength=-0.2) for one in tried[:2]]
    both = measured.means(arms, [one.tools for one in tried[:2]])
    for at, one in enumerate(tried[:2]):  # several at once are what each is alone
        assert both[:, at] == pytest.approx(
            replace(measured, tools=one.tools).means([arms[at]])[:, 0], rel=1e-4, abs=1e-7
        )


def test_what_is_chosen_keeps_the_promise_and_no_other_setting_leaves_less(table):
    kept = table.filter(pl.col("promised") & ~pl.col("control"))
    assert (kept["kept_low"] >= 0.3).all()
    chosen = table.filter("chosen")
    assert chosen.height == (kept.height > 0)
    if chosen.height:
        assert chosen["benign"][0] <= kept["benign"].min() + MORE_REFUSED and not chosen["control"][0]
    swept = settings_of(table)
    assert swept.height == 2 * kept.height and swept.filter("chosen").height == 2 * chosen.height


def test_what_surely_looks_harmful_is_steered_towards_refusal(tried):
    one = Sized(0.5, tried[0].at(0.3), Reached(0.3, 0.5, 1))
    score = np.r_[np.full(80, 0.9), np.full(20, 0.6), np.full(60, 0.1), np.full(39, 0.6), 0.9]
    harmful, rows, nothing = np.arange(200) < 100, np.arange(200), np.zeros(200, bool)
    before, after = Answered((rows >= 8) & (rows < 150), nothing), Answered(nothing, nothing)
    towards = Answered(harmful | (rows == 199), nothing)
    best = {"gate": "ridge", "threshold": 0.3, "promised": True, "strength": -0.3}
    row = both_ways(one, best, score, harmful, before, after, towards, 0.95)
    assert row is not None and row["threshold"] == 0.3 and row["harmful_threshold"] == pytest.approx(0.45)
    assert row["harmful"] == 1 and row["kept"] == 1
    assert row["benign"] == 0.01  # 50 declined ones are released, one is newly declined
    [arm] = parse_arms([row["arm"]], replace(COMPARED_ARM, strength=-0.3))
    assert (arm.gate, arm.threshold, arm.harmful_threshold) == ("ridge", 0.3, row["harmful_threshold"])
    assert (arm.bias, arm.strength) == (8, -0.3) and arm.harmful == pytest.approx(0.2)
    assert arm.harmful_bias == pytest.approx(-16 / 3, rel=1e-4)
    swept = settings_of(pl.DataFrame([row | {"control": False, "chosen": True}], COMPARED))
    assert swept["harmful"].to_list() == pytest.approx([0.2, 0.2])
    left = np.flatnonzero(score >= 0.3)  # what is steered away is not asked
    asked = before.but(left, Answered(towards.refused[left], towards.broken[left]))
    assert (asked.refused != towards.refused).any() and before.refused.sum() == 142
    assert both_ways(one, best, score, harmful, before, after, asked, 0.95) == row
    costly = towards._replace(refused=harmful | (rows >= 160))
    above = both_ways(one, best, score, harmful, before, after, costly, 0.95)
    assert above is not None and above["harmful_threshold"] == pytest.approx(0.75)  # the 39 in between are left alone
    broken = towards._replace(broken=harmful)
    assert both_ways(one, best, score, harmful, before, after, broken, 0.95) is None


def test_labels_are_counted_and_never_steered_by(tiny_tuned, prompts, tried, table, tmp_path):
    shuffled = prompts.with_columns(pl.col("category").reverse())
    scores = gate_scores(tiny_tuned, shuffled, tried[0].tools, 2)
    again = compare(tiny_tuned, shuffled, tried, scores, tmp_path / "c.parquet", verdicts=each(verdict), budgets=[0.05], share=0.3,
                    max_new_tokens=TOKENS)  # fmt: skip
    assert again.equals(table)


def test_a_strength_goes_no_further_than_its_kind_can(tried):
    sizes = {one.method: one.at(7.0).arm.strength for one in tried if one.sized}
    assert sizes["angular"] == -1 and sizes["mean"] == -7


def test_methods_are_named_as_they_are():
    assert {"mean", "contrastive", "ablate", "affine"} <= set(wanted(["all"])) and "random" not in wanted(["all"])
    assert wanted(["lda", "lda"]) == ["lda"]
    with pytest.raises(UserError, match="no method 'mena'"):
        wanted(["mena"])
