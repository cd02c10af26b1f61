"""Logit lens: which tokens does a category's vector write?"""

from typing import Any

import nnsight
import polars as pl
import torch

from data.errors import UserError
from interventions.methods.vectors import SteeringVectors
from interventions.model.opening import Model, decoder_path

FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")
SCHEMA = {"category": pl.String, "layer": pl.Int64, "token": pl.String, "logit": pl.Float64}


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
    norm_path = final_norm(model)
    stacked = torch.stack([vectors.tensors[name] for name in vectors.categories])  # (categories, layers, d_model)
    network = model.nnsight
    with network.session(backend=model.door.backend(network)):
        best = nnsight.save(best_tokens(network._module, norm_path, stacked, top_k))
    logits, ids = best
    names = model.tokenizer.batch_decode(ids.flatten()[:, None].tolist())
    depth, most = len(vectors.layers), ids.shape[-1]
    rows = [
        (category, layer, names[(c * depth + at) * most + k], float(logits[c, at, k]))
        for c, category in enumerate(vectors.categories)
        for at, layer in enumerate(vectors.layers)
        if stacked[c, at].any()
        for k in range(most)
    ]
    return pl.DataFrame(rows, SCHEMA, orient="row")


def final_norm(model: Model) -> str:
    """Dotted path of the norm after the last decoder block, which stands beside the list of blocks.

    Raises:
        UserError: None by a known name, or no unembedding.
    """
    parent = decoder_path(model.module, model.name).rpartition(".")[0]
    here = dict(model.module.get_submodule(parent).named_children())
    known = [name for name in FINAL_NORMS if name in here]
    if not known or model.module.get_output_embeddings() is None:
        raise UserError(f"model {model.name!r}: can't find its final norm and unembedding for the logit lens")
    return ".".join(filter(None, (parent, known[0])))


def best_tokens(module: Any, norm_path: str, vectors: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and ids of the best tokens, (…, top_k) each, on the CPU; runs where the weights are."""
    norm, head = module.get_submodule(norm_path), module.get_output_embeddings()
    scale = next(norm.parameters())
    with torch.no_grad():
        inside = norm(vectors.to(scale.device, scale.dtype)).to(head.weight.device, head.weight.dtype)
        best = head(inside).float().topk(min(top_k, head.weight.shape[0]))
    return best.values.cpu(), best.indices.cpu()
