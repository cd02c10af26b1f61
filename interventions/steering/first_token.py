"""The token, or the words, that a model would open its answer with, unsteered."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from data.contract import BATCH_TOKENS
from data.store.journal import Journal
from interventions.backends.batches import run_batches
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


def first_positions(
    model: Model, prompts: Sequence[str], batch_tokens: int = BATCH_TOKENS, journal: Path | None = None
) -> FirstPositions:
    """Look at the first generated position of each prompt.

    Args:
        model: An open model.
        prompts: N texts.
        batch_tokens: Padded tokens a batch.
        journal: Where finished batches are noted, for a killed run to go on with; whoever needs them no longer removes it.
    """
    check_cache(model.module, model.name)
    known = control_tokens(model.tokenizer)
    names = {number: name for name, number in known.items()}
    nothing, one = torch.zeros(1), torch.ones(1)
    readers = [Gate((), one, nothing, nothing, one, tokens=(number,), gain=GAIN) for number in names]
    ids = encode(model.tokenizer, prompts).ids
    plan = plan_batches([len(row) for row in ids], batch_tokens)

    def work(rows: list[int]) -> list[tuple[str | None, list[float]]]:
        mine = [ids[row] for row in rows]
        opening = common_opening(mine) if model.takes_masks else 0
        batch = pad_batch(mine, pad_id(model.tokenizer), model.device, opening)
        found = answer(model, batch, [unsteered(len(rows), model.d_model)], Asked(1, gates=readers), opening=opening)
        shares = np.zeros((len(rows), 0)) if found.gates is None else torch.logit(found.gates.double()).numpy() / GAIN
        first = [names.get(number) for number in found.tokens[:, 0, 0].tolist()]
        return list(zip(first, shares.tolist(), strict=True))

    if journal is None:
        noted = {row: seen for rows in plan for row, seen in zip(rows, work(rows), strict=True)}
    else:
        key = {"model": model.identity, "prompts": hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()}
        noted = dict(enumerate(run_batches(model.backend, Journal(journal, key, plan), work, "first tokens")))
    shares = [noted[row][1] for row in range(len(ids))]
    return FirstPositions(
        [noted[row][0] for row in range(len(ids))], list(known), np.array(shares).reshape(len(ids), len(names))
    )


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
