"""A model in a notebook: its answers are `generate`'s, its activations those of a plain hook."""

import polars as pl
import pytest
import torch

from data import load_all
from data.errors import UserError
from interventions import generate
from interventions.interactive import InteractiveModel
from interventions.steering.arms import Arm, parse_arms
from interventions.steering.plans import Tools
from tests.made.tools import vectors_of

PROMPTS = ["how do i kill a python process", "tell me", "write a poem for my friend please"]


def test_an_answer_is_that_of_the_arm_that_adds_the_same(tiny_tuned, prompts_file, tmp_path):
    vectors = vectors_of(tiny_tuned)
    prompts = load_all([str(prompts_file)]).head(8)
    words = ["baseline", "fixed:strength=-0.6", "fixed:strength=0.8,category=weapons,scope=all"]
    arms = parse_arms(words, Arm("x", "fixed", 2))
    table = generate(tiny_tuned, prompts, Tools(vectors), tmp_path / "g.parquet", arms=arms, max_new_tokens=8)
    texts = prompts["prompt"].to_list()
    answers = [
        tiny_tuned.answer(texts, max_new_tokens=8),
        tiny_tuned.answer(texts, vectors["mean"] * -0.6, layer=2, max_new_tokens=8),
        tiny_tuned.answer(texts, vectors["weapons"] * 0.8, layer=2, scope="all", max_new_tokens=8),
    ]
    for arm, mine in zip(arms, answers, strict=True):
        assert mine == table.filter(pl.col("arm") == arm.name)["response"].to_list()
    assert tiny_tuned.answer(texts[0], max_new_tokens=8) == answers[0][0]


def test_comparing_tells_how_far_each_moves_the_next_token(tiny_tuned):
    vectors = vectors_of(tiny_tuned)
    table = tiny_tuned.compare(PROMPTS, {"away": vectors["mean"] * -0.6}, max_new_tokens=4)
    assert table["steering"].to_list() == ["unsteered", "away"] * 3
    assert table["prompt"].to_list() == [text for text in PROMPTS for _ in range(2)]
    unsteered = table.filter(pl.col("steering") == "unsteered")
    assert unsteered["kl"].abs().max() < 1e-9
    assert table.filter(pl.col("steering") == "away")["kl"].min() > 0
    with pytest.raises(UserError, match="always there"):
        tiny_tuned.compare(PROMPTS, {"unsteered": vectors["mean"]})


def test_activations_are_those_of_a_plain_hook(tiny_tuned):
    assert isinstance(tiny_tuned, InteractiveModel)
    found = tiny_tuned.activations(PROMPTS, [1, 3])
    assert found.tensor.shape == (3, 2, tiny_tuned.d_model)
    kept = []
    handle = tiny_tuned.module.model.layers[3].register_forward_hook(lambda _m, _i, out: kept.append(out[0] if isinstance(out, tuple) else out))  # fmt: skip
    text = f"<bos><user>{PROMPTS[0]}<bot>"
    ids = tiny_tuned.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        tiny_tuned.module(input_ids=ids)
    handle.remove()
    assert torch.allclose(found.tensor[0, 1], kept[0][0, -1], rtol=1e-4, atol=1e-5)
    assert found.table["n_tokens"][0] == ids.shape[1]
    vectors = vectors_of(tiny_tuned)
    shadows = found.project(vectors["weapons"], vectors["mean"])
    unit = vectors.at(3, "weapons") / vectors.at(3, "weapons").norm()
    one = shadows.filter((pl.col("direction") == "weapons") & (pl.col("layer") == 3))["projection"][0]
    assert one == pytest.approx(float(found.tensor[0, 1] @ unit), rel=1e-4)


def test_what_can_t_be_is_said_in_a_line(tiny_tuned, tiny):
    vectors = vectors_of(tiny)
    with pytest.raises(UserError, match="not of"):
        tiny_tuned.answer("tell me", vectors["mean"])
    with pytest.raises(UserError, match="position 'middle'"):
        tiny_tuned.activations("tell me", position="middle")
    with pytest.raises(UserError, match="scope"):
        tiny_tuned.answer("tell me", scope="everywhere")
    with pytest.raises(UserError, match="no prompts"):
        tiny_tuned.answer([])
