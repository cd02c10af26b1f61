"""Damaged and hostile model folders: one line, nothing drawn at random, no code run, nothing waited for."""

import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.errors import UserError
from interventions import open_model
from interventions.model import embedded
from interventions.model.foreign import rendering
from interventions.model.foreign.checkpoint import folder_revision
from interventions.model.prompt_format import render
from tests.faults.suite import MODELS, Cases


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_folder, tmp_path / "model")


def set_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def set_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def split_up(folder: Path, index: dict[str, str] | dict[str, int]) -> None:
    (folder / "model.safetensors").rename(folder / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


NORM, DOWN = "model.layers.1.input_layernorm.weight", "model.layers.2.mlp.down_proj.weight"
DAMAGES = {
    "one weight missing": (lambda f: set_weights(f, lambda w: w.pop(NORM)), f"lacks weights of its model, {NORM}"),
    "half of them missing": (
        lambda f: set_weights(f, lambda w: [w.pop(name) for name in sorted(w)[::2]]),
        "and 19 more",
    ),
    "one too many": (
        lambda f: set_weights(f, lambda w: w.update({"model.layers.9.mlp.up_proj.weight": torch.ones(2)})),
        "no place for, model.layers.9.mlp.up_proj.weight",
    ),
    "another shape": (
        lambda f: set_weights(f, lambda w: w.update({DOWN: torch.ones(32, 65)})),
        f"{DOWN} is (32, 65) in the checkpoint, (32, 64) in its config",
    ),
    "fewer layers than the config": (lambda f: set_config(f, num_hidden_layers=5), "lacks weights of its model, model.layers.4"),
    "more layers than the config": (lambda f: set_config(f, num_hidden_layers=3), "no place for, model.layers.3"),
    "an index of one": (lambda f: split_up(f, {"model.embed_tokens.weight": "x.safetensors"}), "names 1 weights, the file has 39"),
    "an index of a truncated shard": (
        lambda f: (split_up(f, {"a": "x.safetensors"}), (f / "x.safetensors").write_bytes(b"12345678")),
        "x.safetensors: not a readable file of weights",
    ),
    "an index of a file that is not there": (
        lambda f: split_up(f, {"model.embed_tokens.weight": "y.safetensors"}),
        "should be in 'y.safetensors', which is no file",
    ),
    "an index that points elsewhere": (
        lambda f: split_up(f, {"model.embed_tokens.weight": "../model/x.safetensors"}),
        "which is no file of that folder",
    ),
    "an index of numbers": (lambda f: split_up(f, {"model.embed_tokens.weight": 1}), "which is no file of that folder"),
    "an index that is none": (
        lambda f: (f / "model.safetensors.index.json").write_text("[]"),
        "no index of weights",
    ),
    "a truncated file": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
        "not a model folder that transformers can read",
    ),
    "an empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), "not a model folder"),
    "zeros": (lambda f: (f / "model.safetensors").write_bytes(bytes(10_000)), "not a model folder"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "not a model folder"),
    "a config that is none": (lambda f: (f / "config.json").write_text("[1]"), "not a model folder"),
    "a config of words": (lambda f: set_config(f, hidden_size="large"), ""),
    "a million layers": (lambda f: set_config(f, num_hidden_layers=1_000_000), "num_hidden_layers is 1000000"),
    "no layer": (lambda f: set_config(f, num_hidden_layers=0), "num_hidden_layers is 0"),
    "a negative width": (lambda f: set_config(f, hidden_size=-32), "hidden_size is -32"),
    "a width beyond memory": (lambda f: set_config(f, hidden_size=1 << 40), f"hidden_size is {1 << 40}"),
    "a vocabulary beyond memory": (lambda f: set_config(f, vocab_size=1 << 40), f"vocab_size is {1 << 40}"),
    "possible sizes, but not of these weights": (
        lambda f: set_config(f, hidden_size=1 << 17, num_hidden_layers=1000),
        "far larger than its weights",
    ),
    "a tokenizer that is none": (lambda f: (f / "tokenizer.json").write_text("{}"), ""),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_in_a_line(folder: Path, damage: str, case: Cases) -> None:
    do, words = DAMAGES[damage]
    do(folder)
    with case(MODELS):
        start = time.monotonic()
        with pytest.raises(UserError) as refused:
            open_model(str(folder))
        assert words in str(refused.value)
        assert "\n" not in str(refused.value)
        assert time.monotonic() - start < 20


def test_a_whole_folder_opens_whatever_it_leaves_out_on_purpose(folder: Path) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # as old checkpoints have it

    set_weights(folder, change)
    assert open_model(str(folder)).n_layers == 4
    set_config(folder, tie_word_embeddings=True)
    set_weights(folder, lambda weights: weights.pop("lm_head.weight"))
    model = open_model(str(folder))
    assert model.module.lm_head.weight is model.module.model.embed_tokens.weight


def test_the_command_line_says_it_in_a_line(folder: Path, tmp_path: Path, run, prompts_file: Path) -> None:
    set_weights(folder, lambda weights: weights.pop(NORM))
    code, out, told = run("--run", tmp_path / "run", "--model", folder, "--data", prompts_file, "extract")
    assert (code, out, told.count("error: ")) == (1, "", 1)
    assert NORM in told.splitlines()[-1]


CODE = """open({mark!r}, "w").write("ran")
from transformers import LlamaConfig, LlamaForCausalLM
class Config(LlamaConfig): model_type = "mine"
class Model(LlamaForCausalLM): config_class = Config
"""


@pytest.mark.parametrize("kind", ["model_type of its own", "a known model_type", "a tokenizer"])
def test_no_code_of_a_folder_runs_and_nothing_is_asked(folder: Path, tmp_path: Path, kind: str) -> None:
    mark = tmp_path / "mark"
    (folder / "evil.py").write_text(CODE.format(mark=str(mark)))
    if kind == "a tokenizer":
        path = folder / "tokenizer_config.json"
        own = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
        path.write_text(json.dumps(json.loads(path.read_text()) | own))
    else:
        own = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoModel": "evil.Model"}
        set_config(folder, auto_map=own, **({"model_type": "mine"} if kind.startswith("model") else {}))
    words = [sys.executable, "cli.py", "--run", tmp_path / "run", "--model", folder, "extract", "--limit", "2"]
    told = subprocess.run(words, input="y\n" * 9, capture_output=True, text=True, timeout=120, check=False)
    assert not mark.exists()
    assert "[y/N]" not in told.stdout + told.stderr
    if told.returncode:
        assert told.stderr.count("\n") == 1
        assert "needs code of its own, which this tool never runs" in told.stderr
    assert told.returncode == (1 if kind.startswith("model") else told.returncode)


def test_a_template_that_does_not_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 1.0)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a * b %}{% endfor %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(loop)
    start = time.monotonic()
    with pytest.raises(UserError, match="does not end within 1 s"):
        open_model(str(folder))
    assert time.monotonic() - start < 15


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('no such luck') }}", "fails on a prompt: no such luck"),
        ("{{ messages[7].content }}", "fails on a prompt"),
        ("{{ ().__class__.__bases__[0].__subclasses__() }}", "fails on a prompt"),
        ("{% for a in range(9) %}", "fails on a prompt"),
        ("{% for a in range(90000) %}{{ messages[0].content }}xxxxxxxxxxxxxxxxxxxx{% endfor %}", "1.9 MB of a prompt"),
        ("{# " + "x" * (1 << 20) + " #}{{ messages[0].content }}", "chat_template.jinja: no file of at most 1 MB"),
    ],
)
def test_a_template_that_fails_or_is_far_too_large(folder: Path, template: str, words: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError) as refused:
        open_model(str(folder))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ 9 ** (9 ** 9) }}", "more than a prompt takes"),
        ("{{ 'x' * 99999999999 }}", "more than a prompt takes"),
        ("{% set n = namespace(x=9 ** 9) %}{% for a in range(40) %}{% set n.x = n.x * n.x %}{% endfor %}", "more than a prompt takes"),
        ("{% set n = namespace(x='x' * 9999) %}{% for a in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}", "memory"),
        ("{{ 'x'.center(99999999999) }}", "memory"),
        ("{{ '%099999999999d' % 1 }}", "memory|fails on a prompt"),
    ],
)  # fmt: skip
def test_a_template_that_takes_all_memory_or_never_gives_up_the_interpreter(
    folder: Path, template: str, words: str
) -> None:
    (folder / "chat_template.jinja").write_text(template + "{{ messages[0].content }}")
    before = resource.getrlimit(resource.RLIMIT_AS)
    start = time.process_time()
    with pytest.raises(UserError, match=words) as refused:
        open_model(str(folder))
    assert "\n" not in str(refused.value)
    assert time.process_time() - start < 15
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_products_of_a_size_that_templates_have_are_as_ever(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(
        "{{ '-' * 3 }}{{ 2 ** 10 * 2.5 }}{{ 2 * -1 }} {{ messages[0].content }}"
    )
    assert render(open_model(str(folder)).tokenizer, "hi") == "---2560.0-2 hi"


def test_a_converted_model_that_changed_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path
) -> None:
    made = []

    def convert(_gguf: Path, unfinished: Path) -> None:
        made.append(unfinished)
        shutil.copytree(tiny_folder, unfinished, dirs_exist_ok=True)

    monkeypatch.setenv("REFUSAL_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "_gguf_file", lambda: tmp_path / "x.gguf")
    monkeypatch.setattr(embedded, "_convert", convert)
    folder = embedded.embedded_folder(embedded.BASE)
    assert embedded.embedded_folder(embedded.BASE) == folder
    assert len(made) == 1
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (bytes(len(whole)), whole[:-1], b""):
        weights.write_bytes(damaged)
        assert embedded.embedded_folder(embedded.BASE) == folder
        assert weights.read_bytes() == whole
    (folder / "digest").unlink()
    embedded.embedded_folder(embedded.BASE)
    assert len(made) == 5
    assert (folder / "digest").read_text() == folder_revision(folder)
