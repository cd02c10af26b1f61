"""The token that a model would open its answer with, unsteered."""

from collections.abc import Sequence

from data.contract import BATCH_TOKENS
from interventions.model.control_tokens import control_tokens
from interventions.model.kinds import check_cache
from interventions.model.model import Model
from interventions.model.prompt_format import encode
from interventions.reading.batches import pad_batch, pad_id, plan_batches
from interventions.reading.packing import common_opening
from interventions.steering.answer import Asked, answer
from interventions.steering.plans import unsteered


def first_tokens(model: Model, prompts: Sequence[str], batch_tokens: int = BATCH_TOKENS) -> list[str | None]:
    """For each prompt the most probable first token of the whole vocabulary: its name, or None if it is no control token.

    Args:
        model: An open model.
        prompts: N texts.
        batch_tokens: Padded tokens a batch.
    """
    names = {number: name for name, number in control_tokens(model.tokenizer).items()}
    check_cache(model.module, model.name)
    ids = encode(model.tokenizer, prompts).ids
    first: list[str | None] = [None] * len(ids)
    for rows in plan_batches([len(row) for row in ids], batch_tokens):
        mine = [ids[row] for row in rows]
        opening = common_opening(mine) if model.takes_masks else 0
        batch = pad_batch(mine, pad_id(model.tokenizer), model.device, opening)
        found = answer(model, batch, [unsteered(len(rows), model.d_model)], Asked(1), opening=opening)
        for row, number in zip(rows, found.tokens[:, 0, 0].tolist(), strict=True):
            first[row] = names.get(number)
    return first
