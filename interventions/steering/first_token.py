"""The token, or the words, that a model would open its answer with, unsteered."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from data.contract import BATCH_TOKENS
from interventions.model.control_tokens import control_tokens
from interventions.model.kinds import check_cache
from interventions.model.model import Model
from interventions.model.prompt_format import encode
from interventions.reading.batches import pad_batch, pad_id, plan_batches
from interventions.reading.budget import DECODED, Budget
from interventions.reading.packing import common_opening
from interventions.steering.answer import Asked, answer
from interventions.steering.arms import baseline
from interventions.steering.batches import answer_rows, plan_answers
from interventions.steering.plans import Plan, unsteered
from interventions.steering.texts import finished
from interventions.traced.gating import Gate

OPENING_TOKENS = 16  # enough to tell a refusal by
GAIN = 0.1  # of what reads a log-probability: a sigmoid, which tells 0 from −800 still


class FirstPositions(NamedTuple):
    """What opens the answers to N prompts.

    Attributes:
        most_probable: Of each the most probable token of the whole vocabulary: its name, or None if it is no control token.
        names: The control tokens.
        log_probabilities: (N, control tokens) theirs, nats, float64.
    """

    most_probable: list[str | None]
    names: list[str]
    log_probabilities: np.ndarray


def first_positions(model: Model, prompts: Sequence[str], batch_tokens: int = BATCH_TOKENS) -> FirstPositions:
    """Look at the first generated position of each prompt.

    Args:
        model: An open model.
        prompts: N texts.
        batch_tokens: Padded tokens a batch.
    """
    check_cache(model.module, model.name)
    known = control_tokens(model.tokenizer)
    names = {number: name for name, number in known.items()}
    nothing, one = torch.zeros(1), torch.ones(1)
    readers = [Gate((), one, nothing, nothing, one, tokens=(number,), gain=GAIN) for number in names]
    ids = encode(model.tokenizer, prompts).ids
    first: list[str | None] = [None] * len(ids)
    shares = np.zeros((len(ids), len(names)))
    for rows in plan_batches([len(row) for row in ids], batch_tokens):
        mine = [ids[row] for row in rows]
        opening = common_opening(mine) if model.takes_masks else 0
        batch = pad_batch(mine, pad_id(model.tokenizer), model.device, opening)
        found = answer(model, batch, [unsteered(len(rows), model.d_model)], Asked(1, gates=readers), opening=opening)
        for row, number in zip(rows, found.tokens[:, 0, 0].tolist(), strict=True):
            first[row] = names.get(number)
        if found.gates is not None:
            shares[rows] = torch.logit(found.gates.double()).numpy() / GAIN
    return FirstPositions(first, list(known), shares)


def first_tokens(model: Model, prompts: Sequence[str], batch_tokens: int = BATCH_TOKENS) -> list[str | None]:
    """For each prompt the most probable first token: its name, or None if it is no control token."""
    return first_positions(model, prompts, batch_tokens).most_probable


def first_texts(model: Model, prompts: Sequence[str], tokens: int = OPENING_TOKENS) -> list[str]:
    """The first words of each answer, greedily.

    Args:
        model: An open model.
        prompts: N texts.
        tokens: New tokens, at most.
    """
    encoded, texts = encode(model.tokenizer, prompts), [""] * len(prompts)
    budget = Budget(DECODED * BATCH_TOKENS)
    plan = Plan(baseline(0), [], unsteered(len(prompts), model.d_model))
    for rows in plan_answers(encoded, 1, tokens, budget):
        found = answer_rows(model, encoded, rows, [plan], [], tokens, budget)
        for row, new in zip(rows, found.tokens[:, 0].tolist(), strict=True):
            texts[row] = finished(model, new, tokens)["response"]
    return texts
