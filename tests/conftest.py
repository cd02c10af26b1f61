"""Tiny random models, built in the test run, and the embedded one."""

import os
import sys
from pathlib import Path

import pytest
import torch

os.environ.setdefault(
    "HF_HUB_VERBOSITY", "critical"
)  # as the command line does, before anything imports the hub's client

WORDS = [
    "how",
    "do",
    "i",
    "kill",
    "a",
    "python",
    "process",
    "person",
    "please",
    "tell",
    "me",
    "the",
    "best",
    "painter",
    "ever",
    "write",
    "poem",
    "for",
    "my",
    "friend",
]


CONTROL = ("[weapons]", "[feelings]", "[respond]")


def make_tiny(folder: Path, more_tokens: tuple[str, ...] = (), seed: int = 0) -> Path:
    """A 4-layer random Llama with a word-level tokenizer and a chat template, as a model folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {
        word: at
        for at, word in enumerate(["<unk>", "<bos>", "<eos>", "<user>", "<bot>", *dict.fromkeys(WORDS), *more_tokens])
    }
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<eos>",
        additional_special_tokens=["<user>", "<bot>", *more_tokens],
    )
    tokenizer.chat_template = (
        "<bos>{% for m in messages %}<user>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    module = LlamaForCausalLM(config)
    with torch.no_grad():  # wide enough that greedy choices are not near-ties
        for parameter in module.parameters():
            parameter.mul_(3)
    module.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model without refusal tokens."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_tuned_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with refusal tokens for the two categories of `prompts_file`."""
    return make_tiny(tmp_path_factory.mktemp("tuned"), CONTROL)


@pytest.fixture(scope="session")
def tiny_base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `tiny_tuned` might have been tuned from: free slots where it has refusal tokens, other weights."""
    return make_tiny(tmp_path_factory.mktemp("base"), ("<slot0>", "<slot1>", "<slot2>"), seed=1)


@pytest.fixture(scope="session")
def tiny_tuned(tiny_tuned_folder: Path):
    from interventions import open_model

    return open_model(str(tiny_tuned_folder))


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path):
    from interventions import open_model

    return open_model(str(tiny_folder))


@pytest.fixture(scope="session")
def embedded():
    from interventions import open_model

    return open_model("smollm2")


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty prompts of mixed lengths in two categories and benign, without splits."""
    import json
    import random

    random_ = random.Random(1)
    rows = []
    for at in range(40):
        text = " ".join(random_.choices(WORDS, k=random_.randint(1, 12)))
        kind = at % 4
        rows.append(
            {
                "id": f"p{at}",
                "prompt": text,
                "category": ("weapons", "feelings", None, "weapons")[kind],
                "label": ("harmful", "harmful", "benign", "benign")[kind],
            }
        )
    path = tmp_path_factory.mktemp("data") / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process: (exit status, stdout, stderr)."""

    import cli

    def call(*words, **environment):
        monkeypatch.setattr(sys, "argv", ["cli.py", *map(str, words)])
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out = capsys.readouterr()
        for name in environment:
            monkeypatch.delenv(name)
        return stop.value.code, out.out, out.err

    return call
