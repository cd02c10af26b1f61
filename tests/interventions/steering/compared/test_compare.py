"""Methods compared: what the table says of a setting is what the arm that it names gives, and strengths cost alike."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from data import load_all
from data.errors import UserError
from data.store.tables import COMPARED
from interventions.steering.arms import Arm, parse_arms
from interventions.steering.compared.candidates import candidates, wanted
from interventions.steering.compared.compare import compare, settings_of
from interventions.steering.compared.equal_kl import HarmlessKL
from interventions.steering.compared.promise import MORE_REFUSED
from interventions.steering.compared.scores import gate_scores
from interventions.steering.generate import generate
from interventions.steering.plans import Tools
from tests.made.tools import methods_of, probe_of, vectors_of

TOKENS = 4
DEFAULT = Arm("fixed", "fixed", 2)


def verdict(text):
    """Any rule will do; this one sees every word."""
    return "broken" if not text else "refuse" if len(text) % 3 == 0 else "comply"


@pytest.fixture(scope="module")
def prompts(prompts_file):
    return load_all([str(prompts_file)])


@pytest.fixture(scope="module")
def tried(tiny_tuned):
    tools = Tools(vectors_of(tiny_tuned), probe_of(tiny_tuned), methods=methods_of(tiny_tuned))
    other = replace(tools, vectors=vectors_of(tiny_tuned, seed=9))
    return candidates(
        tiny_tuned,
        DEFAULT,
        {"mean": tools, "contrastive": other, "ablate": tools, "angular": tools, "affine": tools},
        tools,
    )


@pytest.fixture(scope="module")
def table(tiny_tuned, prompts, tried, tmp_path_factory):
    path = tmp_path_factory.mktemp("compared") / "compared.parquet"
    scores = gate_scores(tiny_tuned, prompts, tried[0].tools, 2)
    assert set(scores) == {"probe"}
    return compare(
        tiny_tuned, prompts, tried, scores, path, verdict=verdict, budgets=[0.05], share=0.3, max_new_tokens=TOKENS
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
            [arm] = parse_arms([row["arm"]], replace(DEFAULT, strength=row["strength"]))
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


def test_what_surely_looks_harmful_is_steered_towards_refusal(table, tiny_tuned, prompts, tried, tmp_path):
    [row] = table.filter(pl.col("harmful_threshold").is_not_null()).iter_rows(named=True)
    assert row["chosen"] and row["promised"] and row["harmful_threshold"] >= row["threshold"]
    [swept] = settings_of(table).filter("chosen")["harmful"].unique()
    assert swept == pytest.approx(-2 / 3 * row["strength"])
    [arm] = parse_arms([row["arm"]], replace(DEFAULT, strength=row["strength"]))
    [tools] = [one.tools for one in tried if one.method == row["method"]]
    gated = generate(tiny_tuned, prompts, tools, tmp_path / "g.parquet", arms=[arm], max_new_tokens=TOKENS)
    score, own = gated["gate"].to_numpy(), gated["strength"].to_numpy()
    expected = np.where(score < row["threshold"], arm.strength, np.where(score < row["harmful_threshold"], 0, swept))
    assert own == pytest.approx(expected)
    said = np.array([verdict(text) for text in gated["response"]])
    for label in ("harmful", "benign"):
        assert row[label] == pytest.approx((said[(prompts["label"] == label).to_numpy()] == "refuse").mean())


def test_labels_are_counted_and_never_steered_by(tiny_tuned, prompts, tried, table, tmp_path):
    shuffled = prompts.with_columns(pl.col("category").reverse())
    scores = gate_scores(tiny_tuned, shuffled, tried[0].tools, 2)
    again = compare(tiny_tuned, shuffled, tried, scores, tmp_path / "c.parquet", verdict=verdict, budgets=[0.05], share=0.3,
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
