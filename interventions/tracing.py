"""One prompt under the lens: unsteered and steered side by side."""

from collections.abc import Iterable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import polars as pl
import torch

from data import fingerprint
from interventions.arms import Arm
from interventions.backends import JOB_BYTES
from interventions.encoding import BATCH_TOKENS, encode, pad_batch, pad_id, plan_batches
from interventions.extraction import RESULT_BYTES
from interventions.generation import arm_delta, finished
from interventions.journal import Journal
from interventions.models import Model
from interventions.progress import progress
from interventions.rundir import replacing
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
    path: Path,
    *,
    max_new_tokens: int = 0,
    top_k: int = 5,
    batch_tokens: int = BATCH_TOKENS,
) -> pl.DataFrame:
    """Next token, projections and, if asked for, text of each prompt, without and with the arm's vector.

    `category` is that of the vector which was added; the prompt's own is `prompt_category`. Projections are those
    of the unsteered residual stream at the last prompt token onto each category's unit vector.

    Args:
        model: An open model.
        prompts: Rows in the shape of `data.load_all`.
        vectors: Steering vectors of this model.
        arm: What is added.
        path: The parquet file to write; a killed run's finished batches are kept beside it.
        max_new_tokens: Also generate so many.
        top_k: Most probable next tokens to keep.
        batch_tokens: Padded tokens a batch, the new ones included.

    Raises:
        UserError: The vectors don't fit the model.
    """
    vectors.check(model)
    delta = arm_delta(vectors, arm)
    assert delta is not None
    encoded = encode(model.tokenizer, prompts["prompt"].to_list())
    row_bytes = 4 * (model.module.config.get_text_config().vocab_size + len(vectors.layers) * model.d_model)
    plan = plan_batches(
        [len(ids) + max_new_tokens for ids in encoded.ids], batch_tokens, max(1, RESULT_BYTES // row_bytes)
    )
    key = {
        "model": [model.name, model.revision, model.template_hash, model.dtype],
        "data": fingerprint(prompts),
        "arm": asdict(arm),
        "vectors": _digest(vectors.at(layer, name) for name in vectors.categories for layer in vectors.layers),
        "delta": _digest([delta]),
        "max_new_tokens": max_new_tokens,
        "top_k": top_k,
    }
    journal = Journal(path.parent / f".{path.stem}.journal", key, plan)

    def look(group: tuple[int, ...]) -> list[dict[str, Any]]:
        ids = [encoded.ids[row] for row in journal.plan[group[0]]]
        batch = pad_batch(ids, pad_id(model.tokenizer), model.device)
        return _look(model, batch, vectors, arm, delta, max_new_tokens, top_k)

    left = sum(len(rows) for _, rows in journal.todo())
    with progress(prompts.height, prompts.height - left, "trace", model.door.watch) as bar:
        for group, seen in model.door.each(journal, look, JOB_BYTES):  # one batch a job: what comes back is large
            journal.finish({group[0]: seen})
            bar.update(len(seen))
    found = {
        row: seen
        for number, rows in enumerate(journal.plan)
        for row, seen in zip(rows, journal.done[number], strict=True)
    }
    steered_by = {"category": arm.category, "layer": arm.layer, "strength": arm.strength, "strength_unit": arm.unit}
    own = prompts.select("dataset", "id", "prompt", pl.col("category").alias("prompt_category"), "label").to_dicts()
    rows = [{**own[row], **steered_by, "scope": arm.scope, **found[row]} for row in range(prompts.height)]
    table = pl.DataFrame(rows, schema=SCHEMA)
    with replacing(path) as unfinished:
        table.write_parquet(unfinished)
    journal.remove()
    return table


def _look(
    model: Model,
    batch: dict[str, torch.Tensor],
    vectors: SteeringVectors,
    arm: Arm,
    delta: torch.Tensor,
    max_new_tokens: int,
    top_k: int,
) -> list[dict[str, Any]]:
    """What is seen of each row of one batch."""
    rows = len(batch["input_ids"])
    edit = delta.expand(rows, -1)
    before, residual = next_token_logits(model, batch, arm.layer, None, arm.scope, vectors.layers)
    after, _ = next_token_logits(model, batch, arm.layer, edit, arm.scope)
    assert residual is not None
    texts: list[list[str | None]] = [[None] * rows] * 2
    if max_new_tokens:
        texts = [
            [
                finished(model, row, max_new_tokens)["response"]
                for row in generate_ids(model, batch, arm.layer, change, arm.scope, max_new_tokens).tolist()
            ]
            for change in (None, edit)
        ]
    kl, shadows = divergence(before, after), projections(residual, vectors)
    return [
        {
            "kl": float(kl[row]),
            "top_unsteered": _top(model, before[row], top_k),
            "top_steered": _top(model, after[row], top_k),
            "text_unsteered": texts[0][row],
            "text_steered": texts[1][row],
            "projections": shadows[row],
        }
        for row in range(rows)
    ]


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


def _digest(tensors: Iterable[torch.Tensor]) -> str:
    digest = sha256()
    for tensor in tensors:
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _top(model: Model, logits: torch.Tensor, k: int) -> list[dict[str, Any]]:
    best = logits.double().softmax(-1).topk(min(k, len(logits)))
    return [
        {"token": model.tokenizer.decode([token]), "probability": probability}
        for token, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
