"""A trace's figures are those of plain forward passes, whatever the arm changes: the residual stream or the prompt."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from commands.trace import trace_table
from data import load_all
from interventions.model.prompt_format import encode
from interventions.steering.arms import Arm, parse_arms
from interventions.steering.generate import generate
from interventions.steering.plans import Tools
from interventions.steering.trace import trace
from tests.made.tools import vectors_of
from tests.oracles import last_logits, plain

BASE = Arm("fixed", "fixed", 2, "weapons", 4.0, unit="unit")
INSTRUCTION = "please write me the best poem"


@pytest.fixture(scope="module")
def prompts(prompts_file):
    return load_all([str(prompts_file)]).head(6)


@pytest.mark.parametrize("batch_tokens", [1, 1000])
def test_an_instruction_is_traced_as_it_answers(tiny, prompts, tmp_path, batch_tokens):
    (arm,), tools = parse_arms([f"prompt-only:text={INSTRUCTION}"], BASE), Tools(vectors_of(tiny))
    table = trace(tiny, prompts, tools, tmp_path, arms=[arm], max_new_tokens=5, batch_tokens=batch_tokens).table
    arms = [Arm("baseline", "baseline", 2), arm]
    answers = generate(tiny, prompts, tools, tmp_path / "g.parquet", arms=arms, max_new_tokens=5)
    for at, (text, row) in enumerate(zip(prompts["prompt"], table.to_dicts(), strict=True)):
        p, q = (softmax(last_logits(tiny, ids).numpy())
                for ids in encode(tiny.tokenizer, [text, f"{INSTRUCTION}\n\n{text}"]).ids)  # fmt: skip
        assert row["kl"] == pytest.approx(rel_entr(p, q).sum(), rel=1e-3) and row["kl"] > 1e-3
        for side, shares in (("unsteered", p), ("steered", q)):
            assert np.allclose([one["probability"] for one in row[f"top_{side}"]], np.sort(shares)[::-1][:5], rtol=1e-3)
        turn = [{"role": "user", "content": f"{INSTRUCTION}\n\n{text}"}]
        ids = tiny.tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert row["rendered"].split() == tiny.tokenizer.convert_ids_to_tokens(ids)  # its tokens are words
        said = [answers.filter(arm=name)["response"][at] for name in ("baseline", "prompt-only")]
        assert [row["text_unsteered"], row["text_steered"]] == said
        assert row["layer"] is None and row["category"] is None and row["strength"] is None


def test_a_vector_is_traced_as_a_plain_hook_adds_it(tiny, prompts, tmp_path):
    vectors = vectors_of(tiny)
    table = trace(tiny, prompts, Tools(vectors), tmp_path, arms=[BASE], batch_tokens=40).table
    encoded = encode(tiny.tokenizer, prompts["prompt"].to_list())
    delta = vectors.delta(2, "weapons", 4.0, "unit")
    for ids, row in zip(encoded.ids, table.to_dicts(), strict=True):
        p, q = (softmax(plain(tiny, ids, 2, "generated", 1, delta=d)[1].numpy()) for d in (None, delta))
        assert row["kl"] == pytest.approx(rel_entr(p, q).sum(), rel=1e-3)
        assert (row["layer"], row["category"], row["strength_unit"]) == (2, "weapons", "unit")


def test_what_is_no_number_is_missing_and_said_once(tiny_tuned, prompts, tmp_path, caplog):
    """An addition beyond float32 makes every logit NaN."""
    arm, tools = replace(BASE, strength=1e39, unit="raw"), Tools(vectors_of(tiny_tuned))
    table = trace(tiny_tuned, prompts, tools, tmp_path, arms=[arm], max_new_tokens=2).table
    assert table["kl"].null_count() == table.height and "nan" not in str(table.to_dicts())
    assert {one["probability"] for row in table["top_steered"] for one in row} == {None}
    assert trace_table(table)["next, steered"].to_list() == ["–"] * table.height
    assert ["KL divergence" in line for line in caplog.messages] == [True]
    caplog.clear()
    arms = [Arm("baseline", "baseline", 2), arm]
    answers = generate(tiny_tuned, prompts, tools, tmp_path / "g.parquet", arms=arms, max_new_tokens=2)
    lost = answers["refusal_probability"].is_null()
    assert lost.to_list() == (answers["arm"] == "fixed").to_list() and not answers["refusal_probability"].is_nan().any()
    assert ["6 of 12" in line for line in caplog.messages] == [True]
