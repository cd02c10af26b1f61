"""Logit lens: which tokens does a category's vector write?"""

from operator import attrgetter

import polars as pl
import torch

from data.store.tables import LOGIT_LENS
from interventions.backends.ndif.result import expect
from interventions.methods.vectors import SteeringVectors
from interventions.model.blocks import final_norm, head_path
from interventions.model.model import Model
from interventions.traced.lens import best_tokens


def logit_lens(model: Model, vectors: SteeringVectors, top_k: int = 10) -> pl.DataFrame:
    """The tokens with the highest logits when each vector is read as a last residual stream: unembedding(norm(v)).

    The logit lens (nostalgebraist 2020) with the vector in the residual stream's place. An RMSNorm scales a vector to
    one length and weighs its dimensions, centring nothing, so that the tokens and their logits don't depend on the
    vector's length, and up to one factor are what a small step along it adds to the logits of any residual stream.

    Args:
        model: The vectors' model. A far one computes where its weights are: vectors go, the best tokens come back.
        vectors: The vectors; where one is zero it says nothing and has no rows.
        top_k: Tokens for each category and layer, best first.

    Raises:
        UserError: The vectors are another model's, or the model has no final norm or unembedding by a known name.
    """
    vectors.check(model)
    norm_path = final_norm(model.module, model.name)
    stacked = torch.stack([vectors.tensors[name] for name in vectors.categories])  # (categories, layers, d_model)
    backend = model.backend.nnsight(model.nnsight)
    modules = model.layers[-1], attrgetter(norm_path)(model.nnsight), attrgetter(head_path(model.module))(model.nnsight)
    logits, ids = best_tokens(model.nnsight, backend, modules, stacked, top_k)
    shape = (*stacked.shape[:-1], min(top_k, model.module.config.get_text_config().vocab_size))
    logits, ids = expect(logits, shape, "logits"), expect(ids, shape, "tokens", whole=True)
    names = model.tokenizer.batch_decode(ids.flatten()[:, None].tolist())
    depth, most = len(vectors.layers), ids.shape[-1]
    rows = [
        (category, layer, names[(c * depth + at) * most + k], float(logits[c, at, k]))
        for c, category in enumerate(vectors.categories)
        for at, layer in enumerate(vectors.layers)
        if stacked[c, at].any()
        for k in range(most)
    ]
    return pl.DataFrame(rows, LOGIT_LENS, orient="row")
