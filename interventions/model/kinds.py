"""Kinds of models: what one remembers beside keys and values, which masks it takes, and how far its positions go."""

import logging
from typing import Any

import torch
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from data.errors import UserError, cause_of
from interventions.traced.next_token import of_row

logger = logging.getLogger(__name__)

PLACES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
# Of a generation_config: what changes which token transformers' `generate` takes without sampling, and what changes nothing.
PLAIN = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0, "num_beams": 1,
          "bad_words_ids": None, "suppress_tokens": None, "begin_suppress_tokens": None, "forced_bos_token_id": None,
          "forced_eos_token_id": None, "sequence_bias": None, "encoder_repetition_penalty": 1.0}  # fmt: skip
BEAMS = "num_beams"  # which is no processor of logits


def keeps_state(module: Any) -> bool:
    """Whether a model remembers more than keys and values: recurrent, state-space and convolutional layers.

    Padding runs through such a memory, and a cache of keys and values is none of it.
    """
    kinds = set(getattr(module.config.get_text_config(), "layer_types", None) or ())
    return bool(getattr(type(module), "_is_stateful", False)) or any(
        "attention" not in kind or kind.startswith("linear") for kind in kinds - {"moe", "mlp", "dense", "sparse"}
    )


def is_alibi(config: Any) -> bool:
    """Whether positions are a bias on attention, which is made of a mask of two dimensions alone."""
    return bool(getattr(config, "alibi", False)) or config.model_type in ("bloom", "mpt")


def check_cache(module: Any, name: str) -> None:
    """Can a model decode over a cache of keys and values, as all steering here does?

    Raises:
        UserError: It remembers more.
    """
    if keeps_state(module):
        raise UserError(f"model {name!r} ({type(module).__name__}) remembers more than keys and values, so that its prompts can be "
                        "read (extract, vectors, probe, diff, bake) and not yet answered here; pass another --model")  # fmt: skip


def places_of(config: Any, name: str) -> int:
    """Tokens that a row may have, those that rotary embeddings are stretched to included.

    Where the embedding's frequencies depend on the longest row of a forward pass (`dynamic`, `longrope`), up to where they
    begin to: there a row gives what it gives alone.
    """
    text = config.get_text_config()
    places = next((size for size in (getattr(text, field, None) for field in PLACES) if size), VERY_LARGE_INTEGER)
    rope = getattr(text, "rope_parameters", None)
    ropes = [rope, *(part for part in rope.values() if isinstance(part, dict))] if isinstance(rope, dict) else []
    whole = places
    for one in ropes:
        first, factor = one.get("original_max_position_embeddings") or places, one.get("factor") or 1
        whole = max(whole, int(first * factor))
    turns = []
    for one in ropes:
        if one.get("rope_type") == "dynamic":
            turns.append(places)
        elif one.get("rope_type") == "longrope":
            turns.append(one.get("original_max_position_embeddings") or text.original_max_position_embeddings)
    if not turns:
        return int(whole)
    logger.warning("%s: its positions are counted otherwise in rows of more than %d tokens, and with them all that are read "
                   "together: longer rows, answers included, are refused", name, min(turns))  # fmt: skip
    return int(min(turns))


def asked_of_decoding(generation: Any) -> dict[str, Any]:
    """What a generation_config asks of greedy decoding: field -> value, but for what changes nothing."""
    asked = {name: getattr(generation, name, plain) for name, plain in PLAIN.items()}
    return {name: value for name, value in asked.items() if value not in (PLAIN[name], None)}


def rules_of(module: Any, name: str) -> dict[str, Any]:
    """What of a model's generation_config can be followed: field -> value, all but beams.

    Raises:
        UserError: It asks for something that transformers can't do.
    """
    rules = {field: value for field, value in asked_of_decoding(module.generation_config).items() if field != BEAMS}
    one, size = torch.zeros(1, dtype=torch.long), module.config.get_text_config().vocab_size
    try:
        of_row(rules, one, one, 1)(one[None], torch.zeros(1, size))  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise UserError(
            f"{name}: its generation_config can't be followed ({cause_of(error)}): leave --generation-config out"
        ) from None
    return rules


def warn_of_rules(generation: Any, name: str, follow: bool) -> None:
    """Say what a model's generation_config asks of greedy decoding that is not followed."""
    asked = asked_of_decoding(generation)
    left = [f"{field} {value}" for field, value in asked.items() if not follow or field == BEAMS]
    if left:
        more = "" if follow else "; --generation-config follows it"
        logger.warning("%s: its generation_config has %s, which transformers' generate and lm-eval follow in greedy decoding: "
                       "answers here are the plain most probable tokens%s", name, ", ".join(left), more)  # fmt: skip
