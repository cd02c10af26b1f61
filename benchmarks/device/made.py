"""What is measured on: a random Llama of a shape, prompts of made-up words; nothing comes from outside."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from tests.made.models import CONTROL

PLACES = 2048  # that the model has
WORDS = (16, 48)  # of a prompt


class Shape(NamedTuple):
    layers: int
    width: int
    heads: int
    pairs: int  # heads of keys and values
    feed: int
    vocabulary: int
    tied: bool

    @property
    def weights(self) -> int:
        head = self.width // self.heads
        block = self.width * (2 * self.width + 2 * self.pairs * head + 3 * self.feed)
        return self.layers * block + self.vocabulary * self.width * (1 if self.tied else 2)


SHAPES = {
    "8b": Shape(32, 4096, 32, 8, 14336, 128256, False),
    "1b": Shape(16, 2048, 32, 8, 8192, 128256, True),
    "135m": Shape(30, 576, 9, 3, 1536, 49152, True),
    "tiny": Shape(4, 128, 4, 2, 256, 512, False),
}


@dataclass(frozen=True)
class Setup:
    """What every engine is opened with.

    Attributes:
        folder: The model.
        device: torch's name.
        dtype: Of the weights.
        prompts: Texts, which a template is put around.
        ids: Their tokens.
        new_tokens: Of each answer.
        memory: Share of a GPU's memory that a vLLM engine may take.
        eager: Whether plain vLLM runs without graphs and compilation, as nnsight's does.
    """

    folder: Path
    device: str
    dtype: str
    prompts: list[str]
    ids: list[list[int]]
    new_tokens: int
    memory: float
    eager: bool


def make_model(folder: Path, shape: Shape, device: str, dtype: str) -> None:
    """A random Llama of a shape, with a tokenizer of made-up words; no token ends an answer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    named = ["<unk>", "<pad>", "<user>", "<bot>", *CONTROL]
    words = [f"w{at}" for at in range(min(4000, shape.vocabulary - len(named)))]
    core = Tokenizer(models.WordLevel({word: at for at, word in enumerate([*named, *words])}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", additional_special_tokens=named[2:]
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<user> {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.feed,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.pairs,
        max_position_embeddings=PLACES,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    with torch.device(device):
        module = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    module.save_pretrained(folder, max_shard_size="4GB")


def make_prompts(many: int, shape: Shape) -> list[str]:
    chosen, most = random.Random(0), min(4000, shape.vocabulary - 8)
    return [" ".join(f"w{chosen.randrange(most)}" for _ in range(chosen.randint(*WORDS))) for _ in range(many)]


def on_gpu(device: str) -> bool:
    return device.partition(":")[0] == "cuda"
