"""What the tables say of an answer: its text, its control token, why it ended, what it was steered with."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import torch

from interventions.model.control_tokens import control_tokens
from interventions.model.model import Model
from interventions.steering.answer import Answers
from interventions.steering.arms import Arm
from interventions.steering.plans import Plan

PART = "\ufffd"  # what a character decodes to whose last token is not there yet

logger = logging.getLogger(__name__)
Row: TypeAlias = dict[str, Any]  # of a table: column -> value
Verdicts: TypeAlias = Callable[[Sequence[str]], Sequence[str | None]]  # texts -> each one's, None where it can't say
Said = TypeVar("Said")


def row_answer(model: Model, found: Answers, row: int, arm: int, plan: Plan, max_new_tokens: int) -> Row:
    """What the tables say of one row in one arm."""
    steers = plan.arm.steers
    gate = plan.shipped.gate if found.gates is not None else -1
    return finished(model, found.tokens[row, arm].tolist(), max_new_tokens) | {
        "refusal_probability": None if found.refusal is None else finite(found.refusal[row, arm]),
        "vector": plan.names[int(found.vector[row, arm])] if steers and plan.arm.has_vectors else None,
        "strength": float(found.strength[row, arm]) if steers or plan.arm.does.biases else None,
        "gate": finite(found.gates[row, gate]) if found.gates is not None and gate >= 0 else None,
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


def finished(model: Model, tokens: list[int], max_new_tokens: int) -> Row:
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


def judged(
    model: Model, tokens: list[list[list[int]]], max_new_tokens: int, judge: Callable[[Sequence[str]], Sequence[Said]]
) -> list[list[Said]]:
    """What is said of each answer's text, all read at once: new tokens (rows, arms, tokens) -> (rows, arms)."""
    texts = [finished(model, one, max_new_tokens)["response"] for row in tokens for one in row]
    said = iter(judge(texts))
    return [[next(said) for _ in row] for row in tokens]


def token_columns(tokenizer: Any, tokens: list[int], answer: Row) -> Row:
    """An answer's new tokens, a control token and no stop token among them, and where in `response` each of them ends, in characters.

    A character of several tokens ends with the last of them; a token that shows nothing ends where the one before does.
    """
    ids = tokens[: answer["new_tokens"]]
    text, first = answer["response"], int(answer["control_token"] is not None)
    ends = [0] * first + ends_in(tokenizer, ids[first:], text)
    return {"token_ids": ids, "token_ends": [*ends[:-1], len(text)] if ends else []}


def ends_in(tokenizer: Any, ids: list[int], text: str) -> list[int]:
    """Where in `text`, which they decode to, each token ends."""
    if not ids:
        return []
    start = read = (
        0  # tokens from `start` on are decoded together, so that what depends on the one before comes out right
    )
    pieces, ends = [""], []
    for at in range(1, len(ids) + 1):
        old, new = (tokenizer.decode(ids[start:stop], skip_special_tokens=True) for stop in (read, at))
        if not new.endswith(PART) and new.startswith(old):
            pieces.append(new[len(old) :])
            start, read = read, at
        ends.append(sum(map(len, pieces)))
    if text.startswith("".join(pieces)):
        return ends
    every = [tokenizer.decode(ids[:at], skip_special_tokens=True).rstrip(PART) for at in range(1, len(ids) + 1)]
    return [
        next((at for at, (a, b) in enumerate(zip(one, text, strict=False)) if a != b), min(len(one), len(text)))
        for one in every
    ]


def stop_tokens(model: Model) -> set[int]:
    """Ids that end an answer."""
    config = getattr(model.module, "generation_config", None)
    ends = getattr(config, "eos_token_id", None)
    if ends is None:
        ends = model.tokenizer.eos_token_id
    return set() if ends is None else set(ends if isinstance(ends, list) else [ends])


def arm_columns(arm: Arm) -> Row:
    """What the tables say of an arm; null where it has no such thing."""
    named = {"arm": arm.name, "kind": arm.kind}
    if not arm.steers:
        return named | {
            "layer": None,
            "strength_unit": arm.unit if arm.does.biases else None,
            "scope": None,
            "operation": None,
        }
    return named | {"layer": arm.its_layer, "strength_unit": arm.unit, "scope": arm.scope, "operation": arm.operation}
