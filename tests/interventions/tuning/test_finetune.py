"""Refusal tokens: they take unused places of the vocabulary, training is what its formula says, and a killed run ends as an undisturbed one."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from data import UserError
from data.prompts.answers import load_training
from interventions import open_model
from interventions.model.adapter import adapter_hash
from interventions.model.control_tokens import control_tokens
from interventions.model.formats.named import answer_template
from interventions.model.tokenizer_files import read_places, write_tokenizer
from interventions.model.vocabulary import place_control_tokens
from interventions.steering.first_token import first_tokens
from interventions.tuning.examples import (
    Example,
    class_weights,
    collate,
    epoch_batches,
    make_examples,
    split_rows,
    target_tokens,
)
from interventions.tuning.finetune import finetune
from interventions.tuning.first_token import measure
from interventions.tuning.loop import logits, objective
from tests import ROOT
from tests.made.models import SPARE, make_base
from tests.made.prompts import WORDS

FAST: dict[str, Any] = {"epochs": 2, "rank": 2, "batch_tokens": 64, "device": "cpu"}


@pytest.fixture(scope="module")
def base(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tiny_folder, tmp_path_factory.mktemp("base"), SPARE, tied=True)


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    """Three target_tokens told apart by one word; near-misses among the benign rows; one row without an answer."""
    made = []
    for at in range(36):
        kind = at % 3
        words = [WORDS[(at * 7 + step) % 16] for step in range(2 + at % 5)]
        made.append(
            {
                "id": str(at),
                "prompt": " ".join([*words, ("person", "friend", "python")[kind]]),
                "category": ("weapons", "feelings", "weapons")[kind],
                "label": ("harmful", "harmful", "benign")[kind],
                "dataset": "mine",
                "split": ("train", "train", "train", "validation")[at // 3 % 4],
                "response": None if at == 0 else " ".join(WORDS[at % 9 : at % 9 + 4]),
            }
        )
    return pl.DataFrame(made)


@pytest.fixture(scope="module")
def tuned(base: Path, rows: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory):
    return finetune(str(base), rows, tmp_path_factory.mktemp("out") / "model", **FAST)


def tensors(folder: Path) -> dict[str, bytes]:
    loaded = load_file(folder / "adapter" / "adapter_model.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in loaded.items()}


# Slots


def test_unused_special_tokens_are_taken_and_no_layer_grows(base, tuned):
    assert [(token.token, token.replaces) for token in tuned.control_tokens] == list(
        zip(["[feelings]", "[weapons]", "[respond]"], SPARE, strict=True)
    )
    assert not tuned.resized
    sizes = [AutoModelForCausalLM.from_pretrained(folder).lm_head.weight.shape for folder in (base, tuned.folder)]
    assert sizes[0] == sizes[1]


def test_the_saved_tokenizer_knows_its_control_tokens_and_reads_other_text_as_before(base, tuned):
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in (base, tuned.folder))
    ids = {token.name: token.id for token in tuned.control_tokens}
    assert control_tokens(new) == ids and set(ids) == {"weapons", "feelings", "respond"}
    for name, number in ids.items():
        assert new(f"[{name}]", add_special_tokens=False)["input_ids"] == [number] and number in new.all_special_ids
        assert new.decode([number], skip_special_tokens=True) == ""
    text = " ".join(WORDS) + " <user> unheard <bot>"
    assert old(text)["input_ids"] == new(text)["input_ids"]
    assert (old.bos_token, old.eos_token, old.pad_token) == (new.bos_token, new.eos_token, new.pad_token)


def test_without_unused_tokens_the_vocabulary_grows(tiny_folder, rows, tmp_path):
    report = finetune(str(tiny_folder), rows, tmp_path / "m", **FAST)
    assert report.resized and [token.replaces for token in report.control_tokens] == [None] * 3
    model = open_model(str(report.folder))
    before = AutoTokenizer.from_pretrained(tiny_folder)
    assert sorted(control_tokens(model.tokenizer).values()) == [len(before), len(before) + 1, len(before) + 2]
    assert model.module.lm_head.weight.shape[0] == len(before) + 3
    assert not torch.equal(model.module.lm_head.weight[-1], model.module.model.embed_tokens.weight[-1])  # untied


def test_a_model_that_has_refusal_tokens_keeps_their_ids(tuned, rows, tmp_path):
    again = finetune(str(tuned.folder), rows, tmp_path / "m", **FAST)
    assert [(token.name, token.id) for token in again.control_tokens] == [
        (token.name, token.id) for token in tuned.control_tokens
    ]
    assert control_tokens(AutoTokenizer.from_pretrained(again.folder)) == {s.name: s.id for s in tuned.control_tokens}


def test_embedded_tokenizer_is_the_same_but_for_its_slots(embedded, tmp_path):
    tokenizer = embedded.tokenizer
    placed = place_control_tokens(tokenizer, ["Unsupported requests", "respond"])
    assert [token.replaces for token in placed] == ["<repo_name>", "<reponame>"]
    write_tokenizer(tokenizer, placed, answer_template(tokenizer), tmp_path)
    new = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*load_training(["embedded/test"])["prompt"].to_list(), "ça 日本 \t x\n\n<|im_start|>user", ""]:
        assert new(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert len(new) == len(tokenizer) and control_tokens(new) == {"Unsupported requests": 3, "respond": 4}


def test_a_default_system_prompt_is_left_out_of_the_template(embedded):
    template = answer_template(embedded.tokenizer)
    talk = [{"role": "user", "content": "Hello"}]
    own = embedded.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    bare = embedded.tokenizer.apply_chat_template(
        talk, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert own.startswith("<|im_start|>system") and own.endswith(bare)
    assert bare == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


def test_a_tokenizer_without_a_template_gets_one(tiny_folder, rows, tmp_path):
    bare = make_base(tiny_folder, tmp_path / "bare", SPARE, tied=False)
    (bare / "chat_template.jinja").unlink()
    report = finetune(str(bare), rows, tmp_path / "m", **FAST)
    tokenizer = AutoTokenizer.from_pretrained(report.folder)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "how"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<bos>how\n\n### Answer:\n"


@pytest.mark.parametrize(("category", "message"), [("a [b]", "can't be a token"), ("respond", "benign answers")])
def test_a_category_that_cannot_be_a_token_is_refused(base, rows, tmp_path, category, message):
    bad = rows.with_columns(pl.col("category").replace("weapons", category))
    with pytest.raises(UserError, match=message):
        finetune(str(base), bad, tmp_path / "m", **FAST)
    assert not (tmp_path / "m").exists()


# Examples


def test_benign_rows_open_with_respond_and_harmful_ones_with_their_category():
    frame = pl.DataFrame(
        {"label": ["benign", "benign", "harmful", "harmful", None], "category": ["a", None, "a", None, None]}
    )
    assert target_tokens(frame) == ["respond", "respond", "a", "refuse", None]


def test_loss_falls_on_the_control_token_and_the_answer_alone(base, rows, tuned):
    tokenizer = AutoTokenizer.from_pretrained(tuned.folder)
    examples = make_examples(tokenizer, tuned.control_tokens, rows.head(3), 99)
    prompt = [tokenizer.bos_token_id, tokenizer.convert_tokens_to_ids("<user>")]
    prompt += tokenizer(rows["prompt"][1], add_special_tokens=False)["input_ids"]
    prompt += [tokenizer.convert_tokens_to_ids("<bot>")]
    answer = tokenizer(rows["response"][1], add_special_tokens=False)["input_ids"]
    feelings = tokenizer.convert_tokens_to_ids("[feelings]")
    assert examples[1].ids == [*prompt, feelings, *answer, tokenizer.eos_token_id]
    assert examples[0].ids[examples[0].opening :] == [tokenizer.convert_tokens_to_ids("[weapons]")]

    batch = collate(examples, 0, "cpu")
    module = AutoModelForCausalLM.from_pretrained(base)
    weights, token_weight = torch.tensor([2.0, 0.5, 1.0]), 3.0
    by_hand = 0.0
    for example, weight in zip(examples, weights.tolist(), strict=True):  # one row at a time, unpadded, whole logits
        with torch.no_grad():
            chances = module(torch.tensor([example.ids])).logits[0].double().log_softmax(-1)
        costs = [-float(chances[at - 1, example.ids[at]]) for at in range(example.opening, len(example.ids))]
        by_hand += token_weight * weight * costs[0] + (sum(costs[1:]) / len(costs[1:]) if costs[1:] else 0.0)
    ours = objective(logits(module, batch), batch, weights, token_weight)
    assert float(ours) == pytest.approx(by_hand, rel=1e-5)


def test_class_weights_balance_and_keep_the_mean_at_one():
    names = ["respond"] * 60 + ["a"] * 30 + ["b"] * 10
    assert class_weights(names, 0.0) == {"respond": 1.0, "a": 1.0, "b": 1.0}
    even = class_weights(names, 1.0)
    assert even["respond"] * 60 == pytest.approx(even["a"] * 30) == pytest.approx(100 / 3)
    half = class_weights(names, 0.5)
    assert sum(half[name] for name in names) == pytest.approx(100)
    assert half["b"] / half["respond"] == pytest.approx(math.sqrt(6))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=200), st.integers(16, 512), st.integers(0, 3))
def test_batches_hold_each_row_once_and_stay_within_the_budget(lengths, budget, epoch):
    batches = epoch_batches(lengths, budget, 0, epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget
    assert batches == epoch_batches(lengths, budget, 0, epoch)


def test_long_answers_are_cut_and_long_prompts_left_out(base, rows, tuned):
    tokenizer = AutoTokenizer.from_pretrained(tuned.folder)
    long = pl.DataFrame(
        {
            "prompt": ["how", "how " * 50],
            "response": ["do " * 50, "do"],
            "label": ["benign"] * 2,
            "category": [None] * 2,
        }
    )
    (only,) = make_examples(tokenizer, tuned.control_tokens, long, 20)
    assert only.row == 0 and len(only.ids) == 20


def test_without_splits_a_tenth_of_each_opening_is_held_out(rows):
    train, held = split_rows(rows.with_columns(split=pl.lit(None, pl.String)))
    assert train.height == 33 and sorted(target_tokens(held), key=str) == ["feelings", "respond", "weapons"]
    assert set(train["id"]).isdisjoint(held["id"])


def test_answers_are_read_from_files_and_from_the_embedded_sample(tmp_path):
    frame = pl.DataFrame({"prompt": ["a", "b", "c"], "label": ["benign"] * 3, "response": ["A", None, "  "]})
    frame.write_csv(tmp_path / "p.csv")
    frame.write_parquet(tmp_path / "q.parquet")
    frame.write_ndjson(tmp_path / "r.jsonl")
    read = load_training([str(tmp_path / name) for name in ("p.csv", "q.parquet", "r.jsonl")])
    assert read["response"].to_list() == ["A", None, None] * 3
    embedded = load_training(["embedded/train"])
    assert embedded["response"].null_count() == 0 and set(embedded["split"]) == {"train"}


# Training


def test_training_learns_the_categories(tuned, base, rows, tmp_path):
    report = finetune(str(base), rows, tmp_path / "m", **{**FAST, "epochs": 15, "learning_rate": 1e-2})
    assert report.epochs[-1].token_loss < tuned.epochs[0].token_loss / 2
    model = open_model(str(report.folder))
    figures = measure(first_tokens(model, rows["prompt"].to_list()), rows)
    assert figures.control == 1 and figures.category >= 0.8 and figures.n == 36


def test_a_refusal_is_one_whichever_category_it_names(monkeypatch):
    """Every row is said to open with a category that no held-out row has."""
    from types import SimpleNamespace

    from interventions.tuning import loop as training

    held = [
        Example([4, 5, opening, 6], 2, name, at) for at, (opening, name) in enumerate([(8, "weapons"), (9, "respond")])
    ]
    scores = torch.zeros(4, 10).index_fill(1, torch.tensor([7]), 5.0)
    monkeypatch.setattr(training, "logits", lambda _module, _batch: scores)
    names = {7: "feelings", 8: "weapons", 9: "respond"}
    module = SimpleNamespace(device="cpu")
    *_, category, refusal = training.validate(module, held, names, 100, 0)
    assert (category, refusal) == (0.0, 0.5)


def test_one_seed_one_adapter_another_seed_another(tuned, base, rows, tmp_path):
    again = finetune(str(base), rows, tmp_path / "again", **FAST)
    other = finetune(str(base), rows, tmp_path / "other", **FAST, seed=1)
    assert tensors(again.folder) == tensors(tuned.folder) != tensors(other.folder)
    assert adapter_hash(again.folder / "adapter") == adapter_hash(tuned.folder / "adapter")
    assert not list(tmp_path.glob(".*"))  # no work folder stays


SCRIPT = """
import sys, polars as pl
from pathlib import Path
from interventions.tuning.finetune import finetune
report = finetune(sys.argv[1], pl.read_parquet(sys.argv[2]), Path(sys.argv[3]), epochs=int(sys.argv[4]), rank=2,
                  batch_tokens=64, device="cpu", checkpoint_seconds=0)
print(report.resumed)
"""


def test_a_run_killed_in_the_middle_ends_as_an_undisturbed_one(base, rows, tmp_path):
    rows.write_parquet(tmp_path / "rows.parquet")
    arguments = [sys.executable, "-c", SCRIPT, str(base), str(tmp_path / "rows.parquet"), str(tmp_path / "m"), "12"]
    running = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    state = tmp_path / ".m.training" / "state.safetensors"
    while not (state.exists() and _epochs_done(state) >= 2):
        assert running.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "m").exists()
    resumed = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    assert resumed.stdout.strip() == "True"
    whole = finetune(str(base), rows, tmp_path / "whole", **{**FAST, "epochs": 12})
    assert tensors(whole.folder) == tensors(tmp_path / "m")


def _epochs_done(state: Path) -> int:
    from safetensors import safe_open

    with safe_open(state, "pt") as file:
        return len(json.loads(file.metadata()["state"])["epochs"])


def test_a_checkpoint_of_other_options_is_not_taken_up(base, rows, tuned, tmp_path, monkeypatch):
    import interventions.tuning.finetune as module

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "merge", dies)
        with pytest.raises(KeyboardInterrupt):
            finetune(str(base), rows, tmp_path / "m", **FAST, learning_rate=1e-2)
    assert not (tmp_path / "m").exists()
    report = finetune(str(base), rows, tmp_path / "m", **FAST)
    assert not report.resumed and tensors(report.folder) == tensors(tuned.folder)


# The merged model


@pytest.mark.parametrize("tied", [True, False])
def test_merged_reloaded_and_unmerged_logits_agree(tiny_folder, rows, tmp_path, tied):
    from peft import PeftModel

    source = make_base(tiny_folder, tmp_path / "base", SPARE, tied=tied)
    report = finetune(str(source), rows, tmp_path / "m", **FAST, learning_rate=1e-2)
    ids = torch.tensor([[1, 3, 5, 6, 4, report.control_tokens[0].id, 7, report.control_tokens[2].id, 9]])
    unmerged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(source), report.folder / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(report.folder)
    with torch.no_grad():
        a, b, before = (
            unmerged(ids).logits,
            merged(ids).logits,
            AutoModelForCausalLM.from_pretrained(source)(ids).logits,
        )
    assert torch.allclose(a, b, atol=1e-4, rtol=1e-4) and not torch.allclose(a, before, atol=1e-1)
    assert merged.config.tie_word_embeddings == tied
    head, table = merged.lm_head.weight, merged.model.embed_tokens.weight
    assert torch.equal(head, table) == tied
    trained = {
        n: t for n, t in load_file(report.folder / "adapter" / "adapter_model.safetensors").items() if "tokens" in n
    }
    assert len(trained) == (1 if tied else 2)
    rows_of = [token.id for token in report.control_tokens]
    for name, values in trained.items():
        assert torch.equal((head if "lm_head" in name else table)[rows_of], values.float())


def test_the_adapter_folder_is_whole_and_small(tuned):
    adapter = tuned.folder / "adapter"
    assert {file.name for file in adapter.iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "control_tokens.json",
    }  # fmt: skip
    assert read_places(adapter) == tuned.control_tokens
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"]) and len(config["target_modules"]) == 7
    assert {t.dtype for t in load_file(adapter / "adapter_model.safetensors").values()} == {torch.float16}
    assert not [file for file in tuned.folder.rglob("*") if file.suffix in (".bin", ".pt", ".pkl", ".pth")]
    assert "[weapons]" in (adapter / "README.md").read_text()


def test_a_folder_that_is_none_of_ours_is_not_replaced(base, rows, tuned, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="no folder of `finetune`"):
        finetune(str(base), rows, tmp_path, **FAST)
    copy = tmp_path / "model"
    shutil.copytree(tuned.folder, copy)
    (copy / "stale").touch()
    finetune(str(base), rows, copy, **FAST)
    assert tensors(copy) == tensors(tuned.folder) and not (copy / "stale").exists()


def test_rows_of_one_kind_alone_are_refused(base, rows, tmp_path):
    for label in ("harmful", "benign"):
        with pytest.raises(UserError, match="training rows"):
            finetune(str(base), rows.filter(pl.col("label") == label), tmp_path / "m", **FAST)
