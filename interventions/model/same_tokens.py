"""Two models that read the same token ids: a base beside what was fine-tuned from it."""

import copy
from collections.abc import Sequence
from dataclasses import replace

from data.errors import UserError
from interventions.model.formats.choice import rendering_of
from interventions.model.model import Model
from interventions.model.prompt_format import encode, suffix_ids


def reading_as(base: Model, tuned: Model, prompts: Sequence[str]) -> Model:
    """The base model with the fine-tuned one's tokenizer and template.

    A control token takes, in the base, the slot that became it: a token of the base's vocabulary that it hardly knows.

    Args:
        base: What the other was tuned from.
        tuned: The fine-tuned model.
        prompts: What they will read.

    Raises:
        UserError: The models differ in depth or width, or the base's vocabulary lacks an id or knows it as another
            ordinary token.
    """
    for what, one, two in (("layers", base.n_layers, tuned.n_layers), ("d_model", base.d_model, tuned.d_model)):
        if one != two:
            raise UserError(
                f"model {base.name!r} has {what} {one}, {tuned.name!r} {two}; only models of one shape compare"
            )
    used = sorted({token for row in encode(tuned.tokenizer, prompts).ids for token in row})
    if used and used[-1] >= vocabulary(base):
        raise UserError(
            f"model {base.name!r} knows no token id {used[-1]}, which {tuned.name!r} reads in these prompts"
        )
    special = tuned.tokenizer.added_tokens_decoder
    plain = [token for token in used if token not in special]
    names = [model.tokenizer.convert_ids_to_tokens(plain) for model in (base, tuned)]
    odd = next((pair for pair in zip(plain, *names, strict=True) if pair[1] != pair[2]), None)
    if odd is not None:
        raise UserError(f"token id {odd[0]} is {odd[1]!r} to {base.name!r} and {odd[2]!r} to {tuned.name!r}: that is not "
                        "the model it was tuned from; pass another --against")  # fmt: skip
    return replace(base, tokenizer=tuned.tokenizer)


def knows(base: Model, tuned: Model, suffixes: Sequence[str]) -> bool:
    """Whether the base's vocabulary has a place for each of these texts' tokens, as the fine-tuned model splits them."""
    return max((max(ids) for ids in suffix_ids(tuned.tokenizer, suffixes)), default=0) < vocabulary(base)


def splitting_alone(base: Model, tuned: Model) -> Model:
    """The base model with the fine-tuned one's template and its own tokenizer, as arXiv 2603.13359's code compares.

    The base splits a control token into pieces, of which `]` is the last for every category: what is read there is
    another token than the fine-tuned model's. Kept to show what that does.
    """
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.chat_template, tokenizer.rendering = tuned.tokenizer.chat_template, rendering_of(tuned.tokenizer)
    return replace(base, tokenizer=tokenizer)


def vocabulary(model: Model) -> int:
    """How many token ids the model can read; its embedding may have more rows than its tokenizer has tokens."""
    return model.module.get_input_embeddings().num_embeddings
