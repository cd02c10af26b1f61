"""The logit lens is transformers' own final norm and unembedding, applied to a vector."""

from dataclasses import replace

import pytest
import torch

from data.errors import UserError
from interventions.backends.backend import open_backend
from interventions.methods.lens import logit_lens
from tests.made.tools import vectors_of


def test_the_best_tokens_are_those_of_the_last_residual_stream(tiny):
    vectors = vectors_of(tiny)
    table = logit_lens(tiny, vectors, top_k=4)
    assert table.height == 2 * 4 * 4
    for category in vectors.categories:
        for layer in vectors.layers:
            v = vectors.at(layer, category).double()
            gain = tiny.module.model.norm.weight.double()
            normed = gain * v / (v.pow(2).mean() + tiny.module.config.rms_norm_eps).sqrt()
            wanted = (tiny.module.lm_head.weight.double() @ normed).topk(4)
            rows = table.filter(category=category, layer=layer)
            assert torch.allclose(torch.tensor(rows["logit"].to_list()).double(), wanted.values, atol=1e-4)
            assert rows["token"].to_list() == tiny.tokenizer.batch_decode(wanted.indices[:, None])


def test_length_changes_nothing_and_a_zero_vector_says_nothing(tiny):
    vectors = vectors_of(tiny)
    longer = replace(vectors, tensors={name: 100 * v for name, v in vectors.tensors.items()})
    one, two = logit_lens(tiny, vectors), logit_lens(tiny, longer)
    assert one["token"].equals(two["token"])
    assert torch.allclose(torch.tensor(one["logit"].to_list()), torch.tensor(two["logit"].to_list()), rtol=1e-3)
    vectors.tensors["weapons"][2] = 0
    left = logit_lens(tiny, vectors)
    assert left.filter(category="weapons")["layer"].unique().to_list() == [0, 1, 3]


def test_it_is_the_same_through_another_door(tiny):
    vectors = vectors_of(tiny)
    assert logit_lens(replace(tiny, backend=open_backend("simulate")), vectors).equals(logit_lens(tiny, vectors))


def test_other_models_vectors_are_refused(tiny):
    with pytest.raises(UserError, match="those of 'other'"):
        logit_lens(tiny, replace(vectors_of(tiny), metadata=vectors_of(tiny).metadata | {"model": "other"}))
