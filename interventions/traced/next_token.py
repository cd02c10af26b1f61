"""The next token: which one greedy decoding takes, as a generation_config asks for it, and how far one distribution lies from another.

Runs inside a session, wherever that is: tuples and plain functions of tensors.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import transformers
from transformers import LogitsProcessorList

from interventions.traced.blocks import Batch

# Field of a generation_config -> transformers' processor, in the order in which its `generate` applies them.
PROCESSORS = {
    "sequence_bias": "SequenceBiasLogitsProcessor",
    "encoder_repetition_penalty": "EncoderRepetitionPenaltyLogitsProcessor",
    "repetition_penalty": "RepetitionPenaltyLogitsProcessor",
    "no_repeat_ngram_size": "NoRepeatNGramLogitsProcessor",
    "bad_words_ids": "NoBadWordsLogitsProcessor",
    "min_length": "MinLengthLogitsProcessor",
    "min_new_tokens": "MinNewTokensLengthLogitsProcessor",
    "forced_bos_token_id": "ForcedBOSTokenLogitsProcessor",
    "forced_eos_token_id": "ForcedEOSTokenLogitsProcessor",
    "suppress_tokens": "SuppressTokensLogitsProcessor",
    "begin_suppress_tokens": "SuppressTokensAtBeginLogitsProcessor",
}


class Processed(NamedTuple):
    """Of rows that decode: each one's prompt, without padding, and transformers' processors of its logits, as if it were alone."""

    prompts: list[torch.Tensor]
    processors: list[LogitsProcessorList]


def processed(
    rules: Mapping[str, Any], batch: Batch, whose: torch.Tensor, ending: torch.Tensor, steps: int
) -> Processed:
    """The processors of some rows.

    Args:
        rules: Fields of `PROCESSORS`, each with its value; empty for none.
        batch: Padded prompts.
        whose: (slots,) the row of the batch that each is of.
        ending: Ids that end an answer.
        steps: New tokens, at most.
    """
    if not rules:
        return Processed([], [])
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    prompts = [ids[row][mask[row]] for row in whose.tolist()]
    return Processed(prompts, [of_row(rules, prompt, ending, steps) for prompt in prompts])


def of_row(rules: Mapping[str, Any], prompt: torch.Tensor, ending: torch.Tensor, steps: int) -> LogitsProcessorList:
    """The processors of one row."""
    ends, device, length = ending.tolist(), str(prompt.device), len(prompt)
    before = {"min_new_tokens": (length,), "forced_eos_token_id": (length + steps,)}
    after = {
        "encoder_repetition_penalty": (prompt[None],),
        "bad_words_ids": (ends or None,),
        "min_length": (ends, device),
        "min_new_tokens": (ends, device),
        "forced_eos_token_id": (device,),
        "suppress_tokens": (device,),
        "begin_suppress_tokens": (length, device),
    }
    asked = [field for field in PROCESSORS if field in rules and (ends or not field.startswith("min"))]
    return LogitsProcessorList(
        getattr(transformers, PROCESSORS[field])(*before.get(field, ()), rules[field], *after.get(field, ()))
        for field in asked
    )


def most_probable(logits: torch.Tensor, rules: Processed, rows: torch.Tensor, so_far: torch.Tensor) -> torch.Tensor:
    """The next token of every row, greedily: (rows, 1).

    Args:
        logits: (rows, vocabulary), not changed.
        rules: Of `processed`.
        rows: (rows,) which of its rows each is.
        so_far: (rows, n) their new tokens.
    """
    if not rules.processors:
        return logits.argmax(-1)[:, None]
    found: list[torch.Tensor] = []
    for at, row in enumerate(map(int, rows.tolist())):
        ids = torch.cat([rules.prompts[row], so_far[at].to(rules.prompts[row].device)])[None]
        scores = logits[at : at + 1].float().to(ids.device)
        found.append(rules.processors[row](ids, scores.clone()).argmax(-1))  # pyright: ignore[reportArgumentType]
    return torch.stack(found)


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p ‖ q) = Σ p (log p − log q), nats, of log probabilities (…, vocabulary): (…,)."""
    return (p.exp() * (p - q)).sum(-1)
