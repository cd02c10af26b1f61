"""Made-up models: tiny random Llamas, as folders that transformers opens."""

from pathlib import Path

import torch

from tests.made.prompts import WORDS

CONTROL = ("[weapons]", "[feelings]", "[respond]")
SPARE = ["<|reserved_special_token_0|>", "<repo_name>", "<file_sep>"]


def make_tiny(folder: Path, more_tokens: tuple[str, ...] = (), seed: int = 0, head: int = 8) -> Path:
    """A 4-layer random Llama of four heads so wide, with a word-level tokenizer and a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {
        word: at for at, word in enumerate(["<unk>", "<bos>", "<eos>", "<user>", "<bot>", *WORDS, *more_tokens])
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
        hidden_size=4 * head,
        intermediate_size=8 * head,
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


def make_base(tiny_folder: Path, folder: Path, spare: list[str], *, tied: bool) -> Path:
    """The tiny Llama with spare special tokens in its vocabulary, tied or not."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>", "<bot>", *spare]})
    module = AutoModelForCausalLM.from_pretrained(tiny_folder)
    torch.manual_seed(1)
    module.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if tied:
        module.config.tie_word_embeddings = True
        module.tie_weights()
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tied(tiny_folder: Path, folder: Path) -> Path:
    """A tiny Llama of other weights whose unembedding is its embedding."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(tiny_folder)
    config.tie_word_embeddings = True
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(folder)
    return folder


def make_windowed(tiny_folder: Path, folder: Path) -> Path:
    """A tiny Mistral each of whose tokens sees the last four alone, so that suffixes share nothing."""
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    MistralForCausalLM(
        MistralConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            sliding_window=4,
        )
    ).save_pretrained(folder)
    return folder
