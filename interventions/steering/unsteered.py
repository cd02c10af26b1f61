"""Replies of a model as it is, in batches: of one that judges, and is opened here."""

import json
from collections.abc import Mapping, Sequence

from data.contract import MEAN
from data.prompts.conversations import CLOSE, OPEN
from interventions.model.model import Model
from interventions.model.prompt_format import encode
from interventions.reading.budget import DECODED, Budget, default_batch_tokens
from interventions.steering.arms import Arm
from interventions.steering.batches import answer_rows, plan_answers
from interventions.steering.plans import Plan, unsteered
from interventions.steering.texts import finished

# Prompts end with the user's turn; a guard's template wants the answer as the assistant's.
ANSWERED = "{% set messages = messages[:-1] + [{'role': 'assistant', 'content': messages[-1]['content']}] %}"


def replies(model: Model, conversations: Sequence[Sequence[Mapping[str, str]]], max_new_tokens: int) -> list[str]:
    """Greedy replies, one a conversation, in order.

    Args:
        model: An open model, of no other use afterwards where the last turns are the assistant's.
        conversations: Messages of `role` and `content`; the last turns are all the user's or all the assistant's.
        max_new_tokens: At most so many tokens a reply.
    """
    if not conversations:
        return []
    template = model.tokenizer.chat_template
    if conversations[0][-1]["role"] == "assistant" and template and not template.startswith(ANSWERED):
        model.tokenizer.chat_template = ANSWERED + template
    prompts = [_as_prompt(turns) for turns in conversations]
    encoded = encode(model.tokenizer, prompts, room=max_new_tokens)
    plan = Plan(Arm("baseline", "baseline", 0), [MEAN], unsteered(len(encoded), model.d_model))
    budget = Budget(DECODED * default_batch_tokens(model))
    told: dict[int, str] = {}
    for rows in plan_answers(encoded, 1, max_new_tokens, budget):
        found = answer_rows(model, encoded, rows, [plan], [], max_new_tokens, budget)
        for at, row in enumerate(rows):
            told[row] = finished(model, found.tokens[at, 0].tolist(), max_new_tokens)["response"]
    return [told[row] for row in range(len(encoded))]


def _as_prompt(turns: Sequence[Mapping[str, str]]) -> str:
    context, last = [dict(turn) for turn in turns[:-1]], turns[-1]["content"]
    return f"{OPEN}{json.dumps(context, ensure_ascii=False)}{CLOSE}{last}" if context else last
