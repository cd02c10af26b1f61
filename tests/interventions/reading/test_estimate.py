"""What is said of a model that is not loaded is what it takes once it is."""

import json
import shutil
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, MixtralConfig

from interventions.model.opening import skeleton
from interventions.reading.estimate import Rates, Sizes, job, measured, rows_that_fit, sizes_of

LLAMA_8B: dict[str, Any] = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "vocab_size": 128256}  # fmt: skip


def held(module):
    """Bytes of a loaded model's weights."""
    return sum(part.numel() * part.element_size() for part in module.parameters())


def cached(module, tokens):
    """Bytes of a loaded model's cache after so many tokens."""
    cache = DynamicCache()
    with torch.no_grad():
        module(input_ids=torch.ones((1, tokens), dtype=torch.long), past_key_values=cache, use_cache=True)
    return sum(part.numel() * part.element_size() for pair in cache for part in pair[:2] if part is not None)


def test_weights_and_cache_are_those_of_the_loaded_model(tiny_folder, embedded):
    for name, module in ((str(tiny_folder), AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)), ("smollm2", embedded.module)):  # fmt: skip
        sizes = sizes_of(skeleton(name), torch.float32, "none")
        assert sizes.weights == held(module) == 4 * sizes.parameters
        assert [sizes.cache * tokens for tokens in (5, 40)] == [cached(module, 5), cached(module, 40)]


def test_a_llama_of_8_billion_is_what_its_card_says(tmp_path):
    LlamaConfig(**LLAMA_8B).save_pretrained(tmp_path)
    sizes = sizes_of(skeleton(str(tmp_path)), torch.bfloat16, "none")
    assert (sizes.parameters, sizes.weights, sizes.cache) == (8_030_261_248, 16_060_522_496, 131_072)
    assert sizes.read == sizes.weights - 128256 * 4096 * 2  # embeddings are looked up
    assert sizes.body + 2 * sizes.head == sizes.parameters


def test_of_experts_a_token_takes_its_own(tmp_path):
    small: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "vocab_size": 50, "num_local_experts": 8}  # fmt: skip
    bodies = []
    for taken in (1, 2, 8):
        MixtralConfig(**small, num_experts_per_tok=taken).save_pretrained(tmp_path)
        bodies.append(sizes_of(skeleton(str(tmp_path)), torch.float32, "none").body)
    expert = 2 * 3 * 32 * 64  # in two layers
    assert [bodies[1] - bodies[0], bodies[2] - bodies[1]] == [expert, 6 * expert]


@pytest.mark.parametrize(("quantize", "footprint"), [("8bit", 45_216), ("4bit", 26_784)])
def test_fewer_bits_are_bitsandbytes_own(tiny_tuned_folder, quantize, footprint):
    """`footprint`: what transformers' get_memory_footprint said of this model with bitsandbytes 0.50.2, which leaves out scales."""
    module = skeleton(str(tiny_tuned_folder))
    numbers = sum(
        part.weight.numel()
        for part in module.modules()
        if isinstance(part, torch.nn.Linear) and part is not module.lm_head
    )
    rows = sum(
        part.weight.shape[0]
        for part in module.modules()
        if isinstance(part, torch.nn.Linear) and part is not module.lm_head
    )
    scales = 4 * rows if quantize == "8bit" else 4 * numbers // 64
    buffers = sum(part.numel() * 4 for part in module.buffers())
    assert sizes_of(module, torch.float32, quantize).weights == footprint - buffers + scales


def test_time_is_that_of_products_or_of_what_is_read():
    sizes = Sizes(parameters=1100, body=1000, head=100, vocabulary=10, weights=4400, read=4400, cache=8, size=4)
    fast_memory, fast_products = Rates(products=1e3, copied=1e12), Rates(products=1e12, copied=1e3)
    told = job(sizes, fast_memory, rows=4, prompts=10, prompt_tokens=5, new_tokens=3)
    assert told.prefill == pytest.approx(2 * 10 * (5 * 1000 + 100) / 1e3)
    assert told.decode == pytest.approx(3 * 3 * (2 * 4 * 1100 / 1e3))  # three batches of three steps
    told = job(sizes, fast_products, rows=4, prompts=10, prompt_tokens=5, new_tokens=3)
    assert told.decode == pytest.approx(3 * 3 * (4400 + 4 * 6.5 * 8) / 1e3)
    assert rows_that_fit(sizes, 4400 + 3 * (20 * 8 + 4 * 10), 20) == 3 and rows_that_fit(sizes, 100, 20) == 0


def test_rates_are_measured_in_a_moment():
    rates = measured("cpu", torch.float32)
    assert 1e8 < rates.products < 1e14 and 1e8 < rates.copied < 1e13


def test_status_says_what_fits_of_a_model_without_its_weights(run, tmp_path, tiny_folder):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(tiny_folder / "config.json", bare)
    code, out, _ = run(
        "--model", bare, "--host", "http://127.0.0.1:9", "--json", "status", "--prompts", 10, "--max-new-tokens", 8
    )
    told = json.loads(out)["model"]
    assert code == 0 and told["cache_a_token"] == 4 * 2 * 2 * 8 * 4  # layers, keys and values, heads, width, bytes
    assert told["rows"] > 0 and told["job"]["rows"] == 10 and told["row_tokens"] == 136
    code, out, _ = run("--model", bare, "--host", "http://127.0.0.1:9", "status", "--prompts", 10)
    assert code == 0 and "fits into" in out and "one arm: about" in out
    code, out, err = run("--model", tmp_path / "absent", "--host", "http://127.0.0.1:9", "status")
    assert code == 1 and err.startswith("error: ") and err.count("\n") == 1
