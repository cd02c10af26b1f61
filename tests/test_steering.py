"""Steered runs give what a plain PyTorch forward hook gives that adds the same vector."""

import pytest
import torch

from data import load_all
from interventions.encoding import encode, pad_batch, pad_id
from interventions.generation import finished, stop_tokens
from interventions.steering import SCOPES, generate_ids, next_token_logits
from interventions.tracing import divergence

STEPS = 8


def plain(model, ids, layer, delta, scope, steps):
    """One row, no padding, no cache of ours: transformers' own generate under a hand-written hook."""
    calls = {"n": 0}

    def hook(_module, _inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        first = calls["n"] == 0
        calls["n"] += 1
        if (scope == "prompt-last" and first) or scope == "generated":
            hidden[:, -1] += delta
        elif (scope == "prompt" and first) or scope == "all":
            hidden += delta

    handle = model.layers[layer].register_forward_hook(hook)
    row = torch.tensor([ids])
    with torch.no_grad():
        out = model.module.generate(
            input_ids=row, attention_mask=torch.ones_like(row), max_new_tokens=steps, do_sample=False
        )
    handle.remove()
    return out[0, len(ids) :].tolist()


def cut(model, tokens):
    end = next((at for at, token in enumerate(tokens) if token in stop_tokens(model)), len(tokens))
    return tokens[:end]


@pytest.mark.parametrize("scope", SCOPES)
def test_rows_of_a_batch_are_steered_each_by_its_own_vector(tiny, prompts_file, scope):
    prompts = load_all([str(prompts_file)])["prompt"].to_list()[:12]
    encoded = encode(tiny.tokenizer, prompts)
    torch.manual_seed(1)
    delta = torch.randn(12, tiny.d_model) * torch.linspace(-6, 6, 12)[:, None]
    new = generate_ids(tiny, pad_batch(encoded.ids, pad_id(tiny.tokenizer)), 2, delta, scope, STEPS)
    for row, ids in enumerate(encoded.ids):
        assert cut(tiny, new[row].tolist()) == cut(tiny, plain(tiny, ids, 2, delta[row], scope, STEPS))


@pytest.mark.parametrize("scope", SCOPES)
def test_embedded_model_steered_as_by_a_plain_hook(embedded, scope):
    prompts = load_all(["embedded/test"])["prompt"].to_list()[:8]
    encoded = encode(embedded.tokenizer, prompts)
    torch.manual_seed(2)
    delta = torch.randn(8, embedded.d_model) * torch.linspace(0.5, 3, 8)[:, None]
    new = generate_ids(embedded, pad_batch(encoded.ids, pad_id(embedded.tokenizer)), 17, delta, scope, STEPS)
    for row, ids in enumerate(encoded.ids):
        assert cut(embedded, new[row].tolist()) == cut(embedded, plain(embedded, ids, 17, delta[row], scope, STEPS))


def test_unsteered_generation_is_transformers_own(tiny, prompts_file):
    encoded = encode(tiny.tokenizer, load_all([str(prompts_file)])["prompt"].to_list()[:6])
    batch = pad_batch(encoded.ids, pad_id(tiny.tokenizer))
    with torch.no_grad():
        wanted = tiny.module.generate(**batch, max_new_tokens=STEPS, do_sample=False)
    assert (
        generate_ids(tiny, batch, 0, None, "generated", STEPS).tolist()
        == wanted[:, batch["input_ids"].shape[1] :].tolist()
    )


@pytest.mark.parametrize("scope", SCOPES)
def test_next_token_logits_and_activations_are_a_hooks(tiny, prompts_file, scope):
    encoded = encode(tiny.tokenizer, load_all([str(prompts_file)])["prompt"].to_list()[:5])
    delta = torch.randn(5, tiny.d_model, generator=torch.Generator().manual_seed(3))
    logits, residual = next_token_logits(tiny, pad_batch(encoded.ids, 0), 1, delta, scope, [0, 1, 3])
    assert residual is not None and residual.shape == (5, 3, tiny.d_model)
    for row, ids in enumerate(encoded.ids):
        kept = []

        def steer(_module, _inputs, output, row=row):
            hidden = output[0] if isinstance(output, tuple) else output
            if scope in ("prompt", "all"):
                hidden += delta[row]
            else:
                hidden[:, -1] += delta[row]

        def keep(_module, _inputs, output, kept=kept):
            kept.append((output[0] if isinstance(output, tuple) else output)[0, -1].clone())

        handles = [tiny.layers[1].register_forward_hook(steer)]
        handles += [tiny.layers[at].register_forward_hook(keep) for at in (0, 1, 3)]
        with torch.no_grad():
            wanted = tiny.module(input_ids=torch.tensor([ids])).logits[0, -1]
        for handle in handles:
            handle.remove()
        assert torch.allclose(logits[row], wanted, rtol=1e-4, atol=1e-4)
        assert torch.allclose(residual[row], torch.stack(kept), rtol=1e-4, atol=1e-4)


def test_divergence_is_the_textbook_sum():
    import numpy as np
    from scipy.special import rel_entr, softmax

    random = np.random.default_rng(0)
    a, b = random.normal(size=(4, 50)), random.normal(size=(4, 50))
    wanted = rel_entr(softmax(a, axis=1), softmax(b, axis=1)).sum(1)
    assert np.allclose(divergence(torch.tensor(a), torch.tensor(b)).numpy(), wanted)


def test_text_ends_at_the_stop_token(tiny):
    stop, word = tiny.tokenizer.eos_token_id, tiny.tokenizer.convert_tokens_to_ids("poem")
    answer = finished(tiny, [word, word, stop, word], 4)
    assert answer["response"] == "poem poem" and answer["finish"] == "stop" and answer["new_tokens"] == 2
    assert finished(tiny, [word] * 4, 4)["finish"] == "length"
