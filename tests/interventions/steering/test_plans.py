"""Routes: which row gets which vector, decided from the unsteered prompt alone."""

import json
import random
from dataclasses import replace

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data import UserError, load_all
from interventions.model.prompt_format import encode
from interventions.reading.batches import pad_batch, pad_id
from interventions.steering.answer import Asked, answer
from interventions.steering.arms import Arm
from interventions.steering.generate import generate
from interventions.steering.plans import Tools, plan_arm
from tests.made.tools import EVERY_ROUTE, NOTHING_KNOWN, arms_of, probe_of, vectors_of
from tests.oracles import are_best, control_ids, cut, expected, look, plain, refusal_ids, stop_ids

STEPS = 8


@pytest.fixture(scope="module")
def prompts(prompts_file):
    return load_all([str(prompts_file)])


@pytest.fixture(scope="module")
def tools(tiny_tuned):
    return Tools(vectors_of(tiny_tuned), probe_of(tiny_tuned))


def test_every_row_goes_the_way_its_own_prompt_says(tiny_tuned, prompts, tools):
    arms, encoded = arms_of(), encode(tiny_tuned.tokenizer, prompts["prompt"].to_list())
    ids, respond = refusal_ids(tiny_tuned), control_ids(tiny_tuned)["respond"]
    gate = tools.probe.gate
    plans = [plan_arm(tiny_tuned, arm, tools, [NOTHING_KNOWN] * len(encoded)) for arm in arms]
    found = answer(
        tiny_tuned, pad_batch(encoded.ids, pad_id(tiny_tuned.tokenizer)), [plan.shipped for plan in plans],
        Asked(STEPS, ids, sorted(stop_ids(tiny_tuned)), [gate]),
    )  # fmt: skip
    seen, best = set(), []
    for row, tokens in enumerate(encoded.ids):
        logits, score = look(tiny_tuned, tokens, tools.probe)
        assert found.gates is not None and abs(float(found.gates[row, 0]) - score) < 1e-4
        for at, arm in enumerate(arms):
            name, strength, edit = expected(tiny_tuned, arm, tools.vectors, logits, score)
            seen.add((arm.name, name, strength))
            assert float(found.strength[row, at]) == pytest.approx(strength) or not (
                arm.steers or arm.kind == "logit-bias"
            )
            if name is not None:
                assert plans[at].names[int(found.vector[row, at])] == name
            if arm.kind == "logit-bias":
                biased = logits.clone()
                biased[respond if arm.category == "respond" else ids] += strength
                best.append(([int(found.tokens[row, at, 0])], biased))
                continue
            wanted, _ = plain(tiny_tuned, tokens, arm.layer, arm.scope, STEPS, **edit)
            assert cut(tiny_tuned, found.tokens[row, at].tolist()) == cut(tiny_tuned, wanted), (arm.name, row)
    are_best(best)
    assert len({pair for pair in seen if pair[0].startswith("gated")}) > 2  # both categories and both strengths occur


@pytest.mark.parametrize(
    "word", ["gated:bias=9,harmful-bias=-6", "gated:bias=9", "fixed:bias=-4", "oracle:bias=7,harmful-bias=-7"]
)
def test_a_bias_on_respond_goes_beside_the_vector(tiny_tuned, prompts, tools, word):
    (arm,), encoded = arms_of([word]), encode(tiny_tuned.tokenizer, prompts["prompt"].to_list())
    own = prompts.select("category", "label").to_dicts() if arm.kind == "oracle" else [NOTHING_KNOWN] * len(encoded)
    respond = control_ids(tiny_tuned)["respond"]
    found = answer(
        tiny_tuned, pad_batch(encoded.ids, pad_id(tiny_tuned.tokenizer)), [plan_arm(tiny_tuned, arm, tools, own).shipped],
        Asked(STEPS, refusal_ids(tiny_tuned), sorted(stop_ids(tiny_tuned)), [tools.probe.gate], top_k=3),
    )  # fmt: skip
    assert found.top is not None
    biases, best = set(), []
    for row, ids in enumerate(encoded.ids):
        logits, score = look(tiny_tuned, ids, tools.probe)
        _, _, edit = expected(tiny_tuned, arm, tools.vectors, logits, score)
        looks_harmful = own[row]["label"] == "harmful" if arm.kind == "oracle" else score >= 0.5
        if arm.kind == "oracle":
            name = own[row]["category"]
            vector = tools.vectors.at(2, name if name in tools.vectors.categories else "mean")
            edit = {"delta": (arm.harmful if looks_harmful else arm.strength) * vector / vector.norm()}
        bias = {"gated:bias=9": (9, -6)}.get(word, (arm.bias, arm.harmful_bias))[arm.kind != "fixed" and looks_harmful]
        biases.add(bias)
        _, first = plain(tiny_tuned, ids, arm.layer, arm.scope, 1, **edit)
        first[respond] += bias
        shares = first.softmax(-1)
        best.append(([int(found.tokens[row, 0, 0])], first))
        assert float(found.top[1][row, 1, 0]) == pytest.approx(float(shares.max()), abs=1e-4)
    are_best(best)
    assert len(biases) == (1 if arm.kind == "fixed" else 2)


@given(bias=st.floats(-20, 20), harmful=st.floats(-20, 20))
def test_what_came_later_is_recorded_where_it_says_something(bias, harmful):
    plain_arm, arm = Arm("x", "gated", 2), Arm("x", "gated", 2, bias=bias, harmful_bias=harmful)
    assert set(plain_arm.record) == {"name", "kind", "layer", "category", "strength", "harmful", "unit", "scope",
                                     "operation", "route", "seed", "text"}  # fmt: skip
    assert (arm.record == plain_arm.record) == (bias == 0 and harmful == 0)


def test_a_bias_without_a_vector_is_refused():
    for word in ("logit-bias:bias=3", "baseline:bias=1", "prompt-only:harmful-bias=2"):
        with pytest.raises(UserError, match="bias goes beside a vector"):
            arms_of([word])


def test_a_batch_answers_as_one_row_at_a_time(tiny_tuned, prompts, tools, tmp_path):
    words = [*EVERY_ROUTE, "prompt-only", "fixed:scope=all"]
    together = generate(tiny_tuned, prompts, tools, tmp_path / "a.parquet", arms=arms_of(words), max_new_tokens=6)
    alone = generate(
        tiny_tuned, prompts, tools, tmp_path / "b.parquet", arms=arms_of(words), max_new_tokens=6, batch_tokens=1
    )
    columns = ["arm", "id", "response", "control_token", "vector", "strength", "finish", "new_tokens"]
    assert together.select(columns).equals(alone.select(columns))
    for name in ("refusal_probability", "gate"):
        assert ((together[name] - alone[name]).abs().fill_null(0) < 1e-4).all()


def test_no_arm_but_oracle_reads_categories_or_labels(tiny_tuned, prompts, tools, tmp_path):
    shuffled = list(range(prompts.height))
    random.Random(3).shuffle(shuffled)
    swapped = prompts.with_columns(category=prompts["category"][shuffled], label=prompts["label"][shuffled])
    words = [*EVERY_ROUTE, "oracle"]
    one = generate(tiny_tuned, prompts, tools, tmp_path / "a.parquet", arms=arms_of(words), max_new_tokens=6)
    two = generate(tiny_tuned, swapped, tools, tmp_path / "b.parquet", arms=arms_of(words), max_new_tokens=6)
    hidden = ["category", "label"]
    blind = pl.col("kind") != "oracle"
    assert one.filter(blind).drop(hidden).equals(two.filter(blind).drop(hidden))
    assert not one.filter(~blind).drop(hidden).equals(two.filter(~blind).drop(hidden))


def test_an_oracle_takes_the_rows_own_vector_and_the_labels_strength(tiny_tuned, prompts, tools, tmp_path):
    table = generate(
        tiny_tuned,
        prompts,
        tools,
        tmp_path / "a.parquet",
        arms=arms_of(["oracle:benign=-6,harmful=4"]),
        max_new_tokens=1,
    )
    for row in table.to_dicts():
        assert row["vector"] == (row["category"] if row["category"] in tools.vectors.categories else "mean")
        assert row["strength"] == (4 if row["label"] == "harmful" else -6)


@pytest.mark.parametrize("category", ["weapons", "feelings", "third"])
def test_the_wrong_categorys_vector_is_never_the_named_ones(tiny_tuned, category):
    names = ["weapons", "feelings", "third"]
    vectors = vectors_of(tiny_tuned, categories=names)
    (arm,) = arms_of([f"wrong-category:category={category},route=fixed"])
    plan = plan_arm(tiny_tuned, arm, Tools(vectors), [NOTHING_KNOWN] * 2)
    wanted = names[(names.index(category) + 1) % 3]
    assert [plan.names[at] for at in plan.shipped.given] == [wanted] * 2
    unit = vectors.at(2, wanted) / vectors.at(2, wanted).norm()
    assert torch.allclose(plan.shipped.table[0][plan.shipped.given], unit.expand(2, -1))


def test_what_an_arm_lacks_is_said(tiny, tiny_tuned, tools):
    def plan(model, word, tools):
        return plan_arm(model, arms_of([word])[0], tools, [NOTHING_KNOWN])

    with pytest.raises(UserError, match="reads refusal tokens"):
        plan(tiny, "routed", Tools(vectors_of(tiny)))
    with pytest.raises(UserError, match="run `probe` first"):
        plan(tiny_tuned, "gated", Tools(tools.vectors))
    with pytest.raises(UserError, match="run `lowrank` first"):
        plan(tiny_tuned, "lowrank", Tools(tools.vectors))
    with pytest.raises(UserError, match="no vector for category"):
        plan(tiny_tuned, "fixed:category=nosuch", tools)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("magic", "unknown kind"), ("fixed:colour=red", "unknown key"), ("fixed:strength=much", "numbers"),
        ("fixed:strength=nan", "finite"), ("fixed:scope=here", "scope is one of"), ("random:route=nowhere", "route is one of"),
        ("ablate:operation=erase", "operation is one of"),
    ],
)  # fmt: skip
def test_a_bad_arm_is_named(text, reason):
    with pytest.raises(UserError, match=reason):
        arms_of([text])


def test_arm_names_are_canonical_and_imply_what_their_kind_says():
    arms = arms_of(
        ["gated", "random:seed=2", "random:seed=1,category=weapons", "prompt-only:text=Be brave, answer", "ablate"]
    )
    names = [arm.name for arm in arms]
    assert names == ["gated", "random:seed=2", "random:category=weapons,seed=1", "prompt-only", "ablate"]
    assert arms[0].route == "gated" and arms[0].harmful == pytest.approx(10 / 3)
    assert arms[3].text == "Be brave, answer" and arms[4].operation == "ablate"


def test_a_category_may_hold_a_comma_and_its_arms_name_reads_back():
    words = [
        "fixed:category=Hate, speech,layer=1",
        "fixed:layer=3, category=Hate, speech",
        "prompt-only:text=a, b=c",
    ]
    arms = arms_of(words)
    assert [arm.category for arm in arms[:2]] == ["Hate, speech"] * 2 and [arm.layer for arm in arms[:2]] == [1, 3]
    assert arms[2].text == "a, b=c"
    assert arms[0].name == "fixed:category=Hate, speech,layer=1"
    assert arms_of([arm.name for arm in arms[:2]]) == arms[:2]


def test_a_category_may_hold_what_would_be_a_text_and_no_key_is_given_twice():
    arms = arms_of(["fixed:category=x, text=y", "fixed:category=x,text=y,strength=2", "routed:layer=1"])
    assert [arm.category for arm in arms[:2]] == ["x, text=y", "x,text=y"]
    assert arms[1].strength == 2
    assert [arm.category for arm in arms_of([arm.name for arm in arms[:2]])] == ["x, text=y", "x,text=y"]
    assert arms_of(["prompt-only:text=a, category=b,text=c"])[0].text == "a, category=b,text=c"
    for words, reason in (("fixed:strength=1,strength=2", "strength is given twice"), ("fixed:text=a", "text"),
                          ("fixed:category=a,category=b", "category is given twice")):  # fmt: skip
        with pytest.raises(UserError, match=reason):
            arms_of([words])


def test_simulated_traces_answer_the_same(tiny_tuned, prompts, tools, tmp_path):
    from dataclasses import replace

    from interventions.backends.backend import Backend

    far = replace(tiny_tuned, backend=Backend("simulate"))
    few = prompts.head(8)
    here = generate(tiny_tuned, few, tools, tmp_path / "a.parquet", arms=arms_of(), max_new_tokens=4)
    there = generate(far, few, tools, tmp_path / "b.parquet", arms=arms_of(), max_new_tokens=4)
    assert here.drop("backend").equals(there.drop("backend")) and there["backend"][0] == "simulate"
    assert json.loads(json.dumps(there["response"].to_list()))


@pytest.mark.parametrize("bad", [0.0, float("nan")])
@pytest.mark.parametrize(
    "word", ["fixed:category=weapons", "fixed:category=weapons,unit=raw", "ablate:category=weapons", "routed", "oracle"]
)
def test_no_row_is_steered_by_a_vector_that_is_none(tiny_tuned, tools, bad, word):
    tensors = tools.vectors.tensors | {"weapons": torch.full_like(tools.vectors.tensors["weapons"], bad)}
    spoilt = replace(tools, vectors=replace(tools.vectors, tensors=tensors))
    (arm,) = arms_of([word])
    with pytest.raises(UserError, match=r"'weapons' at layer .* is (zero|not finite)"):
        plan_arm(tiny_tuned, arm, spoilt, [{"category": None, "label": None}])
