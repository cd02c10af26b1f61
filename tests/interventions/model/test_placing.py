"""Weights spread by a device map give the same numbers as weights in one place; in fewer bits they give others, and records say so."""

import json
import sys

import nnsight
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from data.errors import UserError
from interventions import open_model
from interventions.carried.bake import bake_add
from interventions.model.placing.device_map import devices_named, read_map
from tests.made.prompts import split_prompts

PLACES = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "disk",
    "model.layers.1": "cpu",
    "model.layers.2": "disk",
    "model.layers.3": "cpu",
    "model.norm": "disk",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}
ARMS = ("baseline", "fixed", "fixed:scope=all", "fixed:layers=all", "routed", "gated", "ablate", "ablate:scope=all", "lowrank",
        "affine", "angular", "random", "wrong-category", "prompt-only", "logit-bias:strength=2", "oracle")  # fmt: skip


@pytest.fixture
def places(tmp_path):
    (tmp_path / "map.json").write_text(json.dumps(PLACES))
    return tmp_path / "map.json"


def test_blocks_on_disk_put_out_what_transformers_computes_in_memory(tiny_folder):
    plain = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    ids = torch.tensor([[1, 3, 7, 9, 12, 4]])
    with torch.no_grad():
        wanted = plain(ids, output_hidden_states=True)
    model = open_model(str(tiny_folder), device_map=PLACES)
    with torch.no_grad(), model.nnsight.trace({"input_ids": ids}, use_cache=False):
        read = nnsight.save([model.layers[layer].output.clone() for layer in range(3)])
        logits = model.nnsight.output.logits.save()
    assert next(model.layers[2]._module.parameters()).is_meta
    for layer in range(3):
        assert torch.equal(read[layer], wanted.hidden_states[layer + 1])
    assert torch.equal(logits, wanted.logits)


def test_a_run_is_the_same_with_blocks_on_disk_and_one_goes_on_with_the_other(run, tmp_path, tiny_tuned_folder, places):
    split_prompts(tmp_path / "mine.jsonl", 48)
    arms = [word for arm in ARMS for word in ("--arm", arm)]
    shared = ("--model", tiny_tuned_folder, "--data", tmp_path / "mine.jsonl")
    words = ["extract", "vectors", "probe", "lowrank", "--epochs", 1, "vectors", "--method", "affine", "vectors", "--method", "angular",
             "sweep", "--strengths=-1,2", "--layers", "1-2", "generate", "--max-new-tokens", 4, *arms, "trace", "--max-new-tokens", 4, "--arm", "gated"]  # fmt: skip
    for name, more in (("plain", ()), ("map", ("--device-map", places))):
        code, _, err = run("--run", tmp_path / name, *shared, *more, *words)
        assert code == 0, err
    for file in ("vectors", "probe", "lowrank", "activations/prompts"):
        one, other = (load_file(tmp_path / name / f"{file}.safetensors") for name in ("plain", "map"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one), file
    for file in ("sweep", "generations", "traces", "logit_lens"):
        one, other = (pl.read_parquet(tmp_path / name / f"{file}.parquet") for name in ("plain", "map"))
        assert one.height and one.equals(other), file
    code, _, err = run("--run", tmp_path / "plain", *shared, "--device-map", places, "extract", "vectors", "probe")
    assert code == 0 and "again" not in err


def test_what_takes_all_weights_in_memory_says_so(run, tmp_path, tiny_tuned_folder, places):
    model = open_model(str(tiny_tuned_folder), device_map=PLACES)
    with pytest.raises(UserError, match=r"bake takes all weights in memory.*leave out --device-map"):
        bake_add(model, tmp_path / "baked", 1, torch.ones(32))
    code, _, err = run("--model", tiny_tuned_folder, "--device-map", "auto", "finetune", "--out", tmp_path / "out")
    assert code == 1 and "leave out --device-map" in err.splitlines()[-1]


def test_auto_goes_to_disk_where_memory_is_short(tiny_folder, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 70_000})())
    short = open_model(str(tiny_folder), device_map="auto")
    assert any(part.is_meta for part in short.module.parameters())
    monkeypatch.undo()
    assert not any(part.is_meta for part in open_model(str(tiny_folder), device_map="auto").module.parameters())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("nonsense", r"device map 'nonsense' is not there.*balanced"),
        ({"": "disk"}, "everything on disk"),
        ({**PLACES, "model.embed_tokens": "disk"}, "embeddings on no device"),
        ({"model.layers.0": "disk", "model.embed_tokens": "cpu"}, "the device map does not suit it"),
        ({**PLACES, "lm_head": 7}, "device map 'cuda:7' is not there"),
        ("absent.json", "no device map can be read"),
    ],
)
def test_a_map_that_does_not_go_is_one_line(tiny_folder, given, told):
    with pytest.raises(UserError, match=told) as caught:
        open_model(str(tiny_folder), device_map=given)
    assert "\n" not in str(caught.value)


def test_a_map_and_a_device_contradict_one_another(tiny_folder):
    with pytest.raises(UserError, match="pass one of them"):
        open_model(str(tiny_folder), device="cpu", device_map="auto")


def test_the_device_that_computes_is_named_first():
    assert devices_named(read_map({"a": "disk", "b": "cpu", "c": 1})) == ["cuda:1", "cpu"]
    assert str(read_map({"a": "disk", "b": "cpu"})) == "{'b': 'cpu', 'a': 'disk'}"


def test_quantised_weights_are_other_weights_in_every_record(run, tmp_path, tiny_tuned_folder):
    pytest.importorskip("bitsandbytes")
    split_prompts(tmp_path / "mine.jsonl", 48)
    shared = ("--run", tmp_path / "run", "--model", tiny_tuned_folder, "--data", tmp_path / "mine.jsonl")
    assert run(*shared, "--quantize", "4bit", "extract", "vectors")[0] == 0
    code, _, err = run(*shared, "vectors")
    assert code == 0 and "again" not in err  # later commands take it from the record
    assert "held in 4bit" in run(*shared, "bake")[2].splitlines()[-1]
    assert "held in 4bit" in run(*shared, "probe", "lowrank")[2].splitlines()[-1]
    code, _, err = run(*shared, "--quantize", "none", "extract")
    assert code == 0 and "quantize changed" in err
    with pytest.raises(UserError, match="none of none, 8bit, 4bit"):
        open_model(str(tiny_tuned_folder), quantize="3bit")


def test_without_bitsandbytes_one_line_says_what_to_install(tiny_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="--quantize needs bitsandbytes: pip install"):
        open_model(str(tiny_folder), quantize="4bit")
