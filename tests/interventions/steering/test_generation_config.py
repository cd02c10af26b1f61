"""Answers that follow a generation_config are those of transformers' own `generate`, each prompt alone."""

import json
import shutil
from dataclasses import replace

import polars as pl
import pytest

from data import UserError, load_all
from data.store.rundir import records
from interventions import open_model
from interventions.model.prompt_format import encode
from interventions.steering.arms import Arm
from interventions.steering.generate import generate
from interventions.steering.plans import Tools
from tests.made.tools import vectors_of
from tests.oracles import cut, plain, said

MOST, LAYER, STRENGTH = 14, 1, -8.0
RULES = [
    {"repetition_penalty": 1.6},
    {"no_repeat_ngram_size": 1, "num_beams": 1},
    {"min_new_tokens": 9, "repetition_penalty": 1.2},
    {"min_length": 30},
    {"bad_words_ids": [[23], [12, 13]], "suppress_tokens": [15, 16], "sequence_bias": [[[20], 4.0]]},
    {"begin_suppress_tokens": [2, 23], "forced_eos_token_id": 2, "encoder_repetition_penalty": 1.4},
]


def model_asking(folder, tmp_path, **asked):
    """A copy of a model whose generation_config asks for something."""
    copy = shutil.copytree(folder, tmp_path / "model")
    path = copy / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | asked))
    return copy


@pytest.mark.parametrize("asked", RULES, ids=lambda asked: "+".join(asked))
def test_answers_are_those_of_generate_row_by_row(tiny_tuned_folder, prompts_file, tmp_path, asked):
    model = open_model(str(model_asking(tiny_tuned_folder, tmp_path, **asked)), follow=True)
    assert dict(model.rules) == {name: value for name, value in asked.items() if name != "num_beams"}
    prompts, tools = load_all([str(prompts_file)])[:12], Tools(vectors_of(model))
    arms = [Arm("baseline", "baseline", LAYER), Arm("fixed", "fixed", LAYER, strength=STRENGTH, unit="raw")]
    table = generate(model, prompts, tools, tmp_path / "followed.parquet", arms=arms, max_new_tokens=MOST)
    unruled = replace(model, rules={})
    other = generate(unruled, prompts, tools, tmp_path / "plain.parquet", arms=arms, max_new_tokens=MOST)
    assert not table["response"].equals(other["response"])
    delta = tools.vectors.at(LAYER) * STRENGTH
    for arm, change in (("baseline", None), ("fixed", delta)):
        rows = table.filter(pl.col("arm") == arm).iter_rows(named=True)
        for ids, row in zip(encode(model.tokenizer, prompts["prompt"].to_list()).ids, rows, strict=True):
            tokens, _ = plain(model, ids, LAYER, "generated", MOST, delta=change)
            assert (row["refusal_token"], row["response"]) == said(model, cut(model, tokens)), arm


def test_what_cannot_be_followed_is_refused(tiny_tuned_folder, tmp_path):
    folder = model_asking(tiny_tuned_folder, tmp_path, repetition_penalty=-2.0)
    open_model(str(folder))
    with pytest.raises(UserError, match=r"generation_config can't be followed .*--generation-config"):
        open_model(str(folder), follow=True)


def test_the_command_follows_it_where_it_is_asked_to_and_says_so_where_not(
    run, tiny_tuned_folder, prompts_file, tmp_path, caplog
):
    folder = model_asking(tiny_tuned_folder, tmp_path, repetition_penalty=1.6)
    own = ("--run", tmp_path / "run", "--model", folder, "--data", prompts_file)
    words = ("generate", "--arm", "baseline", "--max-new-tokens", MOST)
    assert run(*own, "extract", "vectors", *words)[0] == 0 and "--generation-config follows it" in caplog.text
    first = pl.read_parquet(tmp_path / "run" / "generations.parquet")
    code, _, err = run(*own, *words, "--generation-config")
    assert code == 0 and "generations is made again: generation_config changed" in err, err
    second = pl.read_parquet(tmp_path / "run" / "generations.parquet")
    assert not first["response"].equals(second["response"])
    kept = records(tmp_path / "run")["generations"]
    assert kept["key"]["generation_config"] == {"repetition_penalty": 1.6}


def test_in_a_sandbox_it_is_refused(run, tiny_tuned_folder, prompts_file, tmp_path):
    folder = model_asking(tiny_tuned_folder, tmp_path, repetition_penalty=1.6)
    code, _, err = run("--run", tmp_path / "run", "--model", folder, "--data", prompts_file, "--limit", 4, "--simulate", "--sandbox",
                       "generate", "--arm", "baseline", "--generation-config", "--max-new-tokens", 3)  # fmt: skip
    assert code == 1 and "leave --generation-config out" in err.splitlines()[-1]
