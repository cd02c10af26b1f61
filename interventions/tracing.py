"""One prompt under the lens: unsteered and steered side by side."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch

from data import fingerprint
from interventions.arms import Arm
from interventions.backends import JOB_BYTES
from interventions.encoding import encode, plan_batches
from interventions.extraction import RESULT_BYTES
from interventions.generation import answer_rows, row_answer, tools_fingerprint
from interventions.journal import Journal
from interventions.models import Model
from interventions.passes import DECODED, Budget, default_batch_tokens
from interventions.progress import progress
from interventions.routes import Plan, Tools, plan_arm
from interventions.steering import Answers
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
    tools: Tools,
    arm: Arm,
    folder: Path,
    *,
    max_new_tokens: int = 0,
    top_k: int = 5,
    batch_tokens: int | None = None,
) -> pl.DataFrame:
    """Next token, projections and, if asked for, text of each prompt, without and with the arm's vector.

    `category` is that of the vector which was added; the prompt's own is `prompt_category`. Projections are those
    of the unsteered residual stream at the last prompt token onto each category's unit vector.

    Raises:
        UserError: The vectors don't fit the model.
    """
    tools.vectors.check(model)
    vectors = tools.vectors
    baseline = replace(arm, name="baseline", kind="baseline", route="fixed")
    own = prompts.select("category", "label").to_dicts()
    plans = [plan_arm(model, one, tools, own) for one in (baseline, arm)]
    encoded = encode(model.tokenizer, prompts["prompt"].to_list())
    lengths = [len(ids) + max_new_tokens for ids in encoded.ids]
    key = {
        "model": [model.name, model.revision, model.template_hash, model.dtype],
        "data": fingerprint(prompts),
        "arm": asdict(arm),
        "tools": tools_fingerprint(plans, tools.probe),
        "options": [max_new_tokens, top_k],
    }
    batch_tokens = batch_tokens or default_batch_tokens(model)
    budget = Budget(DECODED * batch_tokens)
    most_rows = max(1, RESULT_BYTES // (4 * len(vectors.layers) * model.d_model))  # every layer of a row comes back
    journal = Journal(folder / ".traces.journal", key, plan_batches(lengths, batch_tokens, most_rows))

    def work(group: tuple[int, ...]) -> list[dict[str, Any]]:
        rows = journal.plan[group[0]]
        found = answer_rows(
            model, encoded, rows, plans, tools.probe, max_new_tokens, budget, read_layers=vectors.layers, top_k=top_k
        )
        assert found.residual is not None
        shadows = projections(found.residual, vectors)
        return [_row(model, found, at, plans, max_new_tokens) | {"projections": shadows[at]} for at in range(len(rows))]

    with progress(
        prompts.height, prompts.height - sum(len(rows) for _, rows in journal.todo()), "trace", model.door.watch
    ) as bar:
        for group, answers in model.door.each(journal, work, JOB_BYTES):
            journal.finish({group[0]: answers})
            bar.update(len(answers))
    rows = {
        row: one
        for number, batch in enumerate(journal.plan)
        for row, one in zip(batch, journal.done[number], strict=True)
    }
    journal.remove()
    columns = prompts.select("dataset", "id", "prompt", pl.col("category").alias("prompt_category"), "label").to_dicts()
    return pl.DataFrame([columns[row] | rows[row] for row in range(prompts.height)], schema=SCHEMA)


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


def _row(model: Model, found: Answers, row: int, plans: Sequence[Plan], max_new_tokens: int) -> dict[str, Any]:
    """What the table says of one prompt; `found` has the baseline first, then the arm."""
    assert found.kl is not None and found.top is not None
    arm = plans[1].arm
    before, after = (row_answer(model, found, row, at, plan, max_new_tokens) for at, plan in enumerate(plans))
    return {
        "category": after["vector"],
        "layer": arm.layer,
        "strength": after["strength"],
        "strength_unit": arm.unit,
        "scope": arm.scope,
        "kl": float(found.kl[row, 1]),
        "top_unsteered": _top(model, found.top[0][row, 0], found.top[1][row, 0]),
        "top_steered": _top(model, found.top[0][row, 2], found.top[1][row, 2]),
        "text_unsteered": before["response"] if max_new_tokens else None,
        "text_steered": after["response"] if max_new_tokens else None,
    }


def _top(model: Model, ids: torch.Tensor, shares: torch.Tensor) -> list[dict[str, Any]]:
    pairs = zip(ids.tolist(), shares.tolist(), strict=True)
    return [{"token": model.tokenizer.decode([token]), "probability": share} for token, share in pairs]
