"""Equal KL: strengths against scipy's root finder, KL against plain hooks one row at a time."""

import math
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from data import load_all
from interventions.model.prompt_format import encode
from interventions.steering.compared.equal_kl import SLOPE, HarmlessKL, equal_kl
from interventions.steering.plans import Tools
from tests.made.tools import arms_of, lowrank_of, probe_of, vectors_of
from tests.oracles import cut, divergence, forced, forced_arm, plain

WORDS = ["fixed:category=weapons", "prompt-only:text=tell me", "gated:benign=-6,harmful=4", "logit-bias:strength=-4"]


@settings(max_examples=100, deadline=None)
@given(power=st.floats(0.8, 3), scale=st.floats(1e-3, 50), top=st.floats(1.2, 40), start=st.floats(0.05, 5),
       budget=st.sampled_from([0.25, 0.5, 1.0]))  # fmt: skip
def test_the_strength_is_where_scipy_finds_it(power, scale, top, start, budget):
    def cost(size):
        return top * -math.expm1(-scale * size**power / top)  # a power that saturates

    [found, other] = equal_kl(lambda sizes: {at: cost(size) for at, size in sizes.items()}, [start, 3 * start], budget)
    for one in (found, other):
        if one.why_not:
            assert one.tries == 12 or not 1e-6 < cast(float, brentq(lambda s: cost(s) - budget, 1e-12, 1e12)) < 1e6
        else:
            root = cast(float, brentq(lambda s: cost(s) - budget, 1e-9, 1e9))
            assert abs(one.kl / budget - 1) <= 0.05 and one.kl == cost(one.strength) and one.tries <= 12
            assert cost(root) == pytest.approx(budget) and (one.strength < root) == (one.kl < cost(root))


@pytest.mark.parametrize("power", [1, SLOPE, 2])
def test_few_tries_suffice_where_kl_is_a_power(power):
    [found] = equal_kl(lambda sizes: {at: 3 * size**power for at, size in sizes.items()}, [1.0])
    assert found.tries == (2 if power == SLOPE else 3)
    assert 3 * found.strength**power == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize(("cost", "why"), [
    (lambda _: 0.0, "at most 0 nats"), (lambda s: 0.3 * math.tanh(s), "at most 0.3 nats"), (lambda _: math.nan, "at least inf"),
    (lambda s: 2 + s, "at least 2"), (lambda s: 0.1 if s < 0.7 else 3.0, "KL jumps there"),
])  # fmt: skip
def test_what_reaches_no_budget_says_why(cost, why):
    [found] = equal_kl(lambda sizes: {at: cost(size) for at, size in sizes.items()}, [1.0])
    assert why in found.why_not and found.tries <= 12


@pytest.fixture(scope="module")
def measured(tiny_tuned, prompts_file):
    prompts = load_all([str(prompts_file)]).filter(label="benign").head(9)
    tools = Tools(vectors_of(tiny_tuned), probe_of(tiny_tuned), lowrank_of(tiny_tuned))
    return prompts, tools, HarmlessKL.of(tiny_tuned, prompts, tools, tokens=5, batch_tokens=40)


def test_kl_is_that_of_plain_hooks_over_the_unsteered_answer(tiny_tuned, measured):
    prompts, tools, kl = measured
    arms = arms_of(WORDS)
    found = kl.means(arms)
    for row, text in enumerate(prompts["prompt"]):
        ids, led = (encode(tiny_tuned.tokenizer, [words]).ids[0] for words in (text, f"tell me\n\n{text}"))
        tokens = plain(tiny_tuned, ids, 2, "generated", 5)[0]
        given_tokens = tokens[: len(cut(tiny_tuned, tokens)) + 1]
        assert kl.answers[row] == given_tokens
        own = forced(tiny_tuned, ids, given_tokens, 2, "generated")
        for at, arm in enumerate(arms):
            if arm.does.instructs:
                theirs = forced(tiny_tuned, led, given_tokens, 2, "generated")
            else:
                theirs = forced_arm(tiny_tuned, arm, tools, ids, given_tokens)
            assert found[row, at] == pytest.approx(divergence(own, theirs).mean(), rel=1e-3, abs=1e-6)
    assert np.allclose(kl(arms), np.percentile(found, 95, axis=0))


def test_a_vector_is_brought_to_the_budget(measured):
    *_, kl = measured
    [found] = equal_kl(lambda sizes: dict(enumerate(kl(arms_of([f"fixed:strength={sizes[0]}"])))), [1.0], 0.05)
    assert not found.why_not and kl(arms_of([f"fixed:strength={found.strength}"]))[0] == pytest.approx(found.kl)
