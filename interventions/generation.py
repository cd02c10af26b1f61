"""Steered generation in batches, resumable: prompts and vectors in, one row for each prompt and arm out."""

from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import polars as pl
import torch

from data import fingerprint
from interventions.arms import Arm
from interventions.backends import JOB_BYTES
from interventions.encoding import BATCH_TOKENS, control_tokens, encode, pad_batch, pad_id, plan_batches
from interventions.journal import Journal
from interventions.models import Model
from interventions.progress import progress
from interventions.rundir import replacing
from interventions.steering import generate_ids
from interventions.vectors import SteeringVectors

SCHEMA = {
    "dataset": pl.String, "id": pl.String, "category": pl.String, "label": pl.String, "prompt": pl.String,
    "arm": pl.String, "kind": pl.String, "layer": pl.Int64, "strength": pl.Float64, "strength_unit": pl.String,
    "scope": pl.String, "operation": pl.String, "vector": pl.String, "gate": pl.Float64,
    "control_token": pl.String, "refusal_token": pl.String, "refusal_probability": pl.Float64,
    "response": pl.String, "new_tokens": pl.Int64, "finish": pl.String,
    "model": pl.String, "backend": pl.String, "seed": pl.Int64,
}  # fmt: skip


def generate(
    model: Model,
    prompts: pl.DataFrame,
    vectors: SteeringVectors,
    path: Path,
    *,
    arms: Sequence[Arm],
    max_new_tokens: int = 32,
    batch_tokens: int = BATCH_TOKENS,
    seed: int = 0,
) -> pl.DataFrame:
    """Answer every prompt in every arm, greedily, and write the table; a killed run's finished batches are kept.

    Args:
        model: An open model.
        prompts: Rows in the shape of `data.load_all`; no arm reads their category or label.
        vectors: Steering vectors of this model.
        path: The parquet file to write.
        arms: What to compare.
        max_new_tokens: At most so many tokens an answer.
        batch_tokens: Padded tokens a batch, the new ones included.
        seed: Written into the table; greedy decoding draws nothing.

    Raises:
        UserError: The vectors don't fit the model, or an arm asks for a layer or category without a vector.
    """
    vectors.check(model)
    deltas = {arm.name: arm_delta(vectors, arm) for arm in arms}
    encoded = encode(model.tokenizer, prompts["prompt"].to_list())
    cases = [(arm, row) for arm in arms for row in range(prompts.height)]
    plan = [
        [at * prompts.height + row for row in rows]
        for at in range(len(arms))
        for rows in plan_batches([len(ids) + max_new_tokens for ids in encoded.ids], batch_tokens)
    ]
    key = {
        "model": [model.name, model.revision, model.template_hash, model.dtype],
        "data": fingerprint(prompts),
        "arms": [asdict(arm) for arm in arms],
        "vectors": [
            None if delta is None else sha256(delta.numpy().tobytes()).hexdigest() for delta in deltas.values()
        ],
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    journal = Journal(path.parent / f".{path.stem}.journal", key, plan)

    def answer(group: tuple[int, ...]) -> torch.Tensor:
        rows = journal.plan[group[0]]
        arm = cases[rows[0]][0]
        ids = [encoded.ids[cases[row][1]] for row in rows]
        batch = pad_batch(ids, pad_id(model.tokenizer), model.device)
        delta = deltas[arm.name]
        delta = None if delta is None else delta.expand(len(rows), -1)
        return generate_ids(model, batch, arm.layer, delta, arm.scope, max_new_tokens)

    left = sum(len(rows) for _, rows in journal.todo())
    with progress(len(cases), len(cases) - left, "generate", model.door.watch) as bar:
        for group, new in model.door.each(journal, answer, JOB_BYTES):  # one batch a job: a generation is long enough
            journal.finish({group[0]: [finished(model, row, max_new_tokens) for row in new.tolist()]})
            bar.update(len(new))
    answers = {
        row: noted
        for number, rows in enumerate(journal.plan)
        for row, noted in zip(rows, journal.done[number], strict=True)
    }
    columns = prompts.select("dataset", "id", "category", "label", "prompt").to_dicts()
    table = pl.DataFrame(
        [
            {**columns[row], **_arm_columns(arm), **answers[at], "gate": None, "refusal_probability": None}
            | {"model": model.name, "backend": model.backend, "seed": seed}
            for at, (arm, row) in enumerate(cases)
        ],
        schema=SCHEMA,
    )
    with replacing(path) as unfinished:
        table.write_parquet(unfinished)
    journal.remove()
    return table


def arm_delta(vectors: SteeringVectors, arm: Arm) -> torch.Tensor | None:
    """What an arm adds to every row's residual stream, (d_model,); None for the baseline."""
    if arm.kind == "baseline":
        return None
    return vectors.delta(arm.layer, arm.category, arm.strength, arm.unit)


def finished(model: Model, tokens: list[int], max_new_tokens: int) -> dict[str, Any]:
    """Cut new tokens at the first stop token, take the control token off, decode the rest."""
    stops = stop_tokens(model)
    end = next((at for at, token in enumerate(tokens) if token in stops), None)
    kept = tokens if end is None else tokens[:end]
    kept = kept[:max_new_tokens]
    names = {number: name for name, number in control_tokens(model.tokenizer).items()}
    control = names.get(kept[0]) if kept else None
    text = model.tokenizer.decode(kept[1:] if control else kept, skip_special_tokens=True)
    return {
        "control_token": control,
        "refusal_token": None if control == "respond" else control,
        "response": text,
        "new_tokens": len(kept),
        "finish": "length" if end is None else "stop",
    }


def stop_tokens(model: Model) -> set[int]:
    """Ids that end an answer."""
    config = getattr(model.module, "generation_config", None)
    ends = getattr(config, "eos_token_id", None)
    if ends is None:
        ends = model.tokenizer.eos_token_id
    return set() if ends is None else set(ends if isinstance(ends, list) else [ends])


def _arm_columns(arm: Arm) -> dict[str, Any]:
    if arm.kind == "baseline":
        none = dict.fromkeys(("layer", "strength", "strength_unit", "scope", "operation", "vector"))
        return {"arm": arm.name, "kind": arm.kind, **none}
    return {
        "arm": arm.name,
        "kind": arm.kind,
        "layer": arm.layer,
        "strength": arm.strength,
        "strength_unit": arm.unit,
        "scope": arm.scope,
        "operation": "add",
        "vector": arm.category,
    }
