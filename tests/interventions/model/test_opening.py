"""Decoder blocks are found in other architectures, and a model without any is refused."""

from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from data.errors import UserError
from interventions import open_model
from interventions.model.blocks import decoder_path


def test_blocks_of_other_decoders_are_found():
    small: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 20,
    }
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=20))
    assert decoder_path(gpt2, "gpt2") == "transformer.h"
    assert decoder_path(GPTNeoXForCausalLM(GPTNeoXConfig(**small)), "neox") == "gpt_neox.layers"


def test_a_model_whose_blocks_cannot_be_told_is_refused():
    bert = BertModel(BertConfig(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32))
    bert.encoder.layer = torch.nn.ModuleList()
    with pytest.raises(UserError, match="decoder blocks"):
        decoder_path(bert, "bert")


def test_an_absent_model_is_one_clear_line(tmp_path):
    for name in ("no/such-model-here", str(tmp_path)):
        with pytest.raises(UserError) as caught:
            open_model(name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_type_of_weights_that_is_none_is_said(tiny_folder):
    with pytest.raises(UserError, match="'int8' is none of float32, bfloat16, float16"):
        open_model(str(tiny_folder), dtype="int8")


def test_the_embedded_model_speaks(embedded):
    assert embedded.n_layers == 30 and embedded.d_model == 576 and embedded.default_layer() == 17
    ids = embedded.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = embedded.module(ids).logits[0, -1].argmax()
    assert embedded.tokenizer.decode(best) == " Paris"
