"""One prompt under the lens: unsteered and steered side by side."""

from typing import Any

import polars as pl
import torch

from interventions.arms import Arm
from interventions.encoding import BATCH_TOKENS, encode, pad_batch, pad_id, plan_batches
from interventions.generation import arm_delta, finished
from interventions.models import Model
from interventions.steering import generate_ids, next_token_logits
from interventions.vectors import SteeringVectors

TOP = pl.List(pl.Struct({"token": pl.String, "probability": pl.Float64}))
SCHEMA = {
    "dataset": pl.String, "id": pl.String, "prompt": pl.String, "prompt_category": pl.String, "label": pl.String,
    "category": pl.String, "layer": pl.Int64, "strength": pl.Float64, "strength_unit": pl.String, "scope": pl.String,
    "kl": pl.Float64, "top_unsteered": TOP, "top_steered": TOP,
    "text_unsteered": pl.String, "text_steered": pl.String,
    "projections": pl.List(pl.Struct({"category": pl.String, "layer": pl.Int64, "value": pl.Float64})),
}  # fmt: skip


def trace(
    model: Model,
    prompts: pl.DataFrame,
    vectors: SteeringVectors,
    arm: Arm,
    *,
    max_new_tokens: int = 0,
    top_k: int = 5,
    batch_tokens: int = BATCH_TOKENS,
) -> pl.DataFrame:
    """Next token, projections and, if asked for, text of each prompt, without and with the arm's vector.

    `category` is that of the vector which was added; the prompt's own is `prompt_category`. Projections are those
    of the unsteered residual stream at the last prompt token onto each category's unit vector.

    Raises:
        UserError: The vectors don't fit the model.
    """
    vectors.check(model)
    delta = arm_delta(vectors, arm)
    assert delta is not None
    encoded = encode(model.tokenizer, prompts["prompt"].to_list())
    rows: dict[int, dict[str, Any]] = {}
    lengths = [len(ids) + max_new_tokens for ids in encoded.ids]
    for numbers in plan_batches(lengths, batch_tokens):
        batch = pad_batch([encoded.ids[row] for row in numbers], pad_id(model.tokenizer), model.device)
        edit = delta.expand(len(numbers), -1)
        before, residual = next_token_logits(model, batch, arm.layer, None, arm.scope, vectors.layers)
        after, _ = next_token_logits(model, batch, arm.layer, edit, arm.scope)
        assert residual is not None
        kl = divergence(before, after)
        texts: list[list[str | None]] = [[None] * len(numbers)] * 2
        if max_new_tokens:
            texts = [
                [
                    finished(model, row, max_new_tokens)["response"]
                    for row in generate_ids(model, batch, arm.layer, change, arm.scope, max_new_tokens).tolist()
                ]
                for change in (None, edit)
            ]
        shadows = projections(residual, vectors)
        for at, row in enumerate(numbers):
            rows[row] = {
                "category": arm.category,
                "layer": arm.layer,
                "strength": arm.strength,
                "strength_unit": arm.unit,
                "scope": arm.scope,
                "kl": float(kl[at]),
                "top_unsteered": _top(model, before[at], top_k),
                "top_steered": _top(model, after[at], top_k),
                "text_unsteered": texts[0][at],
                "text_steered": texts[1][at],
                "projections": shadows[at],
            }
    own = prompts.select("dataset", "id", "prompt", pl.col("category").alias("prompt_category"), "label").to_dicts()
    return pl.DataFrame([{**own[row], **rows[row]} for row in range(prompts.height)], schema=SCHEMA)


def divergence(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """KL(before ‖ after) in nats of next-token logits, (rows, vocabulary) each -> (rows,), in float64."""
    p, q = before.double().log_softmax(-1), after.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def projections(residual: torch.Tensor, vectors: SteeringVectors) -> list[list[dict[str, Any]]]:
    """h · v/‖v‖ for every category and layer; residual (rows, layers, d_model)."""
    names, layers = vectors.categories, vectors.layers
    stacked = torch.stack([vectors.tensors[name] for name in names]).double()  # (categories, layers, d_model)
    unit = stacked / stacked.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    values = torch.einsum("rld,cld->rcl", residual.double(), unit).tolist()
    return [
        [
            {"category": name, "layer": layer, "value": row[c][at]}
            for c, name in enumerate(names)
            for at, layer in enumerate(layers)
        ]
        for row in values
    ]


def _top(model: Model, logits: torch.Tensor, k: int) -> list[dict[str, Any]]:
    best = logits.double().softmax(-1).topk(min(k, len(logits)))
    return [
        {"token": model.tokenizer.decode([token]), "probability": probability}
        for token, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
