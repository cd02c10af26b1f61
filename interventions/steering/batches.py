"""Answers to encoded prompts in portions that fit into memory."""

from collections.abc import Sequence
from typing import Any

import torch

from data.contract import BATCH_TOKENS
from data.prompts.conversations import instructed
from interventions.model.control_tokens import refusal_tokens
from interventions.model.model import Model
from interventions.model.prompt_format import Encoded, encode
from interventions.reading.batches import pad_batch, pad_id, plan_batches
from interventions.reading.budget import DECODED, Budget
from interventions.reading.packing import common_opening
from interventions.reading.residual import WEIGHTS
from interventions.steering.answer import Answers, Asked, answer
from interventions.steering.plans import Plan
from interventions.steering.texts import stop_tokens
from interventions.traced.gating import LAST, Gate


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
    gates: Sequence[Gate],
    max_new_tokens: int,
    budget: Budget | None = None,
    **more: Any,
) -> Answers:
    """`answer` for some rows of encoded prompts, in as many portions as memory asks for."""
    ids = [encoded.ids[row] for row in rows]
    lengths = [len(row) + max_new_tokens for row in ids]
    asked = Asked(max_new_tokens, refusal_tokens(model).ids, sorted(stop_tokens(model)), **more)

    def work(tokens: int) -> Answers:
        parts = plan_batches(lengths, tokens)
        found = []
        for part in parts:
            mine, chosen = [ids[at] for at in part], [rows[at] for at in part]
            opening = common_opening(mine) if model.takes_masks else 0
            found.append(
                answer(
                    model,
                    pad_batch(mine, pad_id(model.tokenizer), model.device, opening),
                    [plan.for_rows(chosen) for plan in plans],
                    asked._replace(gates=[gate.for_rows(chosen) for gate in gates]),
                    together=tokens,
                    opening=opening,
                    weights=weights_of(encoded, chosen, opening, gates),
                )
            )
        return Answers.joined(found, parts)

    return (budget or Budget(DECODED * BATCH_TOKENS)).spend(work, min(lengths), model.backend.is_remote)


def weights_of(encoded: Encoded, rows: Sequence[int], opening: int, gates: Sequence[Gate]) -> dict[str, torch.Tensor]:
    """What gates read beside the last position, as weights of a padded batch's columns."""
    positions = {position for gate in gates for _, position in gate.reads} - {LAST}
    return {position: WEIGHTS[position](encoded, rows, opening) for position in sorted(positions)}


def variants_of(model: Model, texts: list[str], plans: list[Plan], room: int = 0) -> list[tuple[Encoded, list[Plan]]]:
    """Prompts as they are for most arms; each `prompt-only` arm puts an instruction before them; `room` new tokens follow."""
    plain = [plan for plan in plans if not plan.arm.does.instructs]
    variants = [(encode(model.tokenizer, texts, room=room), plain)] if plain else []
    for plan in plans:
        if plan.arm.does.instructs:
            put = [instructed(plan.arm.text, text) for text in texts]
            variants.append((encode(model.tokenizer, put, room=room), [plan]))
    return variants
