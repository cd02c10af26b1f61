"""Steered generation in batches, resumable: prompts and vectors in, one row for each prompt and arm out."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import polars as pl
import torch

from data import fingerprint
from data.store.journal import Journal
from data.store.progress import progress
from data.store.rundir import replacing
from interventions.backends.backend import JOB_BYTES
from interventions.gates.probe import Probe
from interventions.model.opening import Model
from interventions.model.prompt_format import (
    BATCH_TOKENS,
    Encoded,
    control_tokens,
    encode,
    pad_batch,
    pad_id,
    plan_batches,
)
from interventions.reading.budget import DECODED, Budget, default_batch_tokens
from interventions.reading.packing import common_opening
from interventions.steering.answer import Answers, Gate, answer
from interventions.steering.arms import Arm
from interventions.steering.plans import Plan, Tools, plan_arm, refusals

logger = logging.getLogger(__name__)

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
    tools: Tools,
    path: Path,
    *,
    arms: Sequence[Arm],
    max_new_tokens: int = 32,
    batch_tokens: int | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """Answer every prompt in every arm, greedily, and write the table; a killed run's finished batches are kept.

    Args:
        model: An open model.
        prompts: Rows in the shape of `data.load_all`; no arm but `oracle` reads their category or label.
        tools: Steering vectors of this model, and what else the arms draw on.
        path: The parquet file to write.
        arms: What to compare.
        max_new_tokens: At most so many tokens an answer.
        batch_tokens: Padded tokens a batch, default 2048, on a GPU as many as its memory holds; up to four times as
            many are decoded at once, new ones included.
        seed: Written into the table; greedy decoding draws nothing.

    Raises:
        UserError: The tools don't fit the model, or an arm asks for what isn't there.
    """
    for tool in (tools.vectors, tools.probe, tools.lowrank):
        if tool is not None:
            tool.check(model)
    texts = prompts["prompt"].to_list()
    own = prompts.select("category", "label").to_dicts()
    plans = [plan_arm(model, arm, tools, own) for arm in arms]
    variants = variants_of(model, texts, plans)
    budget = Budget(DECODED * (batch_tokens or default_batch_tokens(model)))
    plan = [
        [number * len(texts) + row for row in rows]
        for number, (encoded, mine) in enumerate(variants)
        for rows in plan_answers(encoded, len(mine), max_new_tokens, budget)
    ]
    key = {
        "model": [model.name, model.revision, model.template_hash, model.dtype],
        "data": fingerprint(prompts),
        "arms": [asdict(arm) for arm in arms],
        "tools": tools_fingerprint(plans, tools.probe),
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    journal = Journal(path.parent / f".{path.stem}.journal", key, plan)

    def work(group: tuple[int, ...]) -> list[list[dict[str, Any]]]:
        number, rows = (
            divmod(journal.plan[group[0]][0], len(texts))[0],
            [at % len(texts) for at in journal.plan[group[0]]],
        )
        encoded, mine = variants[number]
        found = answer_rows(model, encoded, rows, mine, tools.probe, max_new_tokens, budget)
        return [
            [row_answer(model, found, at, arm, plan, max_new_tokens) for arm, plan in enumerate(mine)]
            for at in range(len(rows))
        ]

    total, left = len(variants) * len(texts), sum(len(rows) for _, rows in journal.todo())
    with progress(total, total - left, "generate", model.door.watch) as bar:
        for group, answers in model.door.each(journal, work, JOB_BYTES):  # one batch a job: a generation is long enough
            journal.finish({group[0]: answers})
            bar.update(len(answers))
    table = _table(model, prompts, arms, variants, journal, seed)
    if refusals(model).ids:
        warn_of_overflow("refusal probability", table["refusal_probability"].null_count(), table.height)
    with replacing(path) as unfinished:
        table.write_parquet(unfinished)
    journal.remove()
    return table


def plan_answers(encoded: Encoded, arms: int, max_new_tokens: int, budget: Budget) -> list[list[int]]:
    """Batches of rows whose arms decode at once within the budget; or, of many arms, in turns.

    Decoding costs little more for many rows than for one, up to what memory holds.
    """
    tokens = budget.tokens // min(max(arms, 1), DECODED)
    return plan_batches([len(ids) + max_new_tokens for ids in encoded.ids], tokens)


def answer_rows(
    model: Model,
    encoded: Encoded,
    rows: Sequence[int],
    plans: Sequence[Plan],
    probe: Probe | None,
    max_new_tokens: int,
    budget: Budget | None = None,
    **options: Any,
) -> Answers:
    """`steering.answer` for some rows of encoded prompts, in as many portions as memory asks for."""
    ids = [encoded.ids[row] for row in rows]
    lengths = [len(row) + max_new_tokens for row in ids]

    def work(tokens: int) -> Answers:
        parts = plan_batches(lengths, tokens)
        found = []
        for part in parts:
            mine = [ids[at] for at in part]
            opening = common_opening(mine) if model.takes_masks else 0
            found.append(
                answer(
                    model,
                    pad_batch(mine, pad_id(model.tokenizer), model.device, opening),
                    [plan.for_rows([rows[at] for at in part]).shipped() for plan in plans],
                    max_new_tokens=max_new_tokens,
                    refusal_ids=refusals(model).ids,
                    stops=sorted(stop_tokens(model)),
                    gate=gate_of(plans, probe),
                    together=tokens,
                    opening=opening,
                    **options,
                )
            )
        return Answers.joined(found, parts)

    return (budget or Budget(DECODED * BATCH_TOKENS)).spend(work, min(lengths), model.door.is_far)


def gate_of(plans: Sequence[Plan], probe: Probe | None) -> Gate | None:
    """The probe as a trace needs it, if an arm is gated."""
    if probe is None or all(plan.arm.route != "gated" for plan in plans):
        return None
    return Gate(probe.layer, probe.weight, probe.mean, probe.bias, probe.threshold)


def row_answer(model: Model, found: Answers, row: int, arm: int, plan: Plan, max_new_tokens: int) -> dict[str, Any]:
    """What the tables say of one row in one arm."""
    steers = plan.arm.steers
    gated = plan.arm.route == "gated" and found.gate is not None
    return finished(model, found.tokens[row, arm].tolist(), max_new_tokens) | {
        "refusal_probability": None if found.refusal is None else finite(found.refusal[row, arm]),
        "vector": plan.names[int(found.vector[row, arm])] if steers and plan.arm.kind != "lowrank" else None,
        "strength": float(found.strength[row, arm]) if steers or plan.bias else None,
        "gate": finite(found.gate[row]) if gated and found.gate is not None else None,
    }


def finite(value: torch.Tensor) -> float | None:
    """A figure for a table; null where the steering, or the model's type, went beyond what its numbers hold."""
    return float(value) if bool(value.isfinite()) else None


def warn_of_overflow(what: str, lost: int, among: int) -> None:
    """Say once, for a whole table, how many of its rows have a figure that is no number; nothing if none has."""
    if lost:
        logger.warning(
            "%s: not a number in %d of %d, written as missing; try a weaker --strength, or --dtype float32",
            what, lost, among,
        )  # fmt: skip


def variants_of(model: Model, texts: list[str], plans: list[Plan]) -> list[tuple[Encoded, list[Plan]]]:
    """Prompts as they are for most arms; each `prompt-only` arm puts an instruction before them."""
    plain = [plan for plan in plans if plan.arm.kind != "prompt-only"]
    variants = [(encode(model.tokenizer, texts), plain)] if plain else []
    for plan in plans:
        if plan.arm.kind == "prompt-only":
            instructed = [f"{plan.arm.text}\n\n{text}" for text in texts]
            variants.append((encode(model.tokenizer, instructed), [plan]))
    return variants


def tools_fingerprint(plans: list[Plan], probe: Probe | None) -> str:
    """What the vectors, the low-rank map and the probe are, whatever their files are called."""
    digest = sha256()
    for plan in plans:
        digest.update(plan.table.numpy().tobytes())
        for name in ("U", "V", "z", "mean") if plan.lowrank else ():
            digest.update(plan.lowrank[name].numpy().tobytes())  # type: ignore[index]
    for part in (probe.weight, probe.mean, probe.bias, probe.threshold) if probe else ():
        digest.update(part.numpy().tobytes())
    return digest.hexdigest()


def _table(
    model: Model,
    prompts: pl.DataFrame,
    arms: Sequence[Arm],
    variants: list[tuple[Encoded, list[Plan]]],
    journal: Journal,
    seed: int,
) -> pl.DataFrame:
    """One row for each arm and prompt, arm by arm."""
    answers: dict[tuple[str, int], dict[str, Any]] = {}
    for number, batch in enumerate(journal.plan):
        for at, noted in zip(batch, journal.done[number], strict=True):
            variant, row = divmod(at, prompts.height)
            for plan, one in zip(variants[variant][1], noted, strict=True):
                answers[plan.arm.name, row] = one
    columns = prompts.select("dataset", "id", "category", "label", "prompt").to_dicts()
    whole = {"model": model.name, "backend": model.backend, "seed": seed}
    return pl.DataFrame(
        [
            columns[row] | arm_columns(arm) | answers[arm.name, row] | whole
            for arm in arms
            for row in range(prompts.height)
        ],
        schema=SCHEMA,
    )


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


def arm_columns(arm: Arm) -> dict[str, Any]:
    """What the tables say of an arm; null where it has no such thing."""
    named = {"arm": arm.name, "kind": arm.kind}
    if not arm.steers:
        return named | {
            "layer": None,
            "strength_unit": arm.unit if arm.kind == "logit-bias" else None,
            "scope": None,
            "operation": None,
        }
    return named | {"layer": arm.layer, "strength_unit": arm.unit, "scope": arm.scope, "operation": arm.operation}
