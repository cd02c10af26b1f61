"""Prompts to token ids, and token ids to batches: length-sorted, sized by tokens, padded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data.errors import UserError
from interventions.model.foreign.rendering import rendered

RENDERED = 512  # prompts tokenized at once: their offsets take ten times the memory of their ids
MARK = "\ue000"  # for private use, so that no template holds it


@dataclass(frozen=True)
class Encoded:
    """Token ids of rendered prompts.

    Attributes:
        ids: One list of token ids a row, exactly one BOS where the model has one.
        user: For each row the tokens [start, stop) that hold the user's text; never position 0. Empty where a template
            leaves nothing of it.
    """

    ids: list[list[int]]
    user: list[tuple[int, int]]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.ids)


def render(tokenizer: Any, prompt: str) -> str:
    """The prompt in the tokenizer's chat template, generation prompt included; bare without a template."""
    if not tokenizer.chat_template:
        return prompt
    return rendered(tokenizer, [prompt])[0]


def encode(tokenizer: Any, prompts: Sequence[str], suffixes: Sequence[str] = ()) -> Encoded:
    """Render and tokenize prompts.

    A suffix's tokens follow those of the rendered prompt without merging into them, as generated tokens would.

    Args:
        tokenizer: A fast tokenizer.
        prompts: N texts.
        suffixes: With S of them, N·S rows come out, the suffixes of a prompt adjacent.

    Raises:
        UserError: A prompt gives no token at all, or the template can't be used.
    """
    empty = tokenizer("")["input_ids"]
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id in empty else None
    endings = suffix_ids(tokenizer, suffixes) or [[]]
    ids: list[list[int]] = []
    user: list[tuple[int, int]] = []
    before, mark, after = render(tokenizer, MARK).partition(MARK)
    framed = bool(mark) and MARK not in after
    for at in range(0, len(prompts), RENDERED):
        some = prompts[at : at + RENDERED]
        texts = rendered(tokenizer, some) if tokenizer.chat_template else list(some)
        tokens = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        for text, row, offsets in zip(texts, tokens["input_ids"], tokens["offset_mapping"], strict=True):
            start, stop = _user_tokens(text, before, after, offsets) if framed else (1, len(offsets))
            if bos is not None and row[:1] != [bos]:
                row, start, stop = [bos, *row], start + 1, stop + 1
            if not row:
                raise UserError("a prompt is blank, and without a chat template no token is left of it")
            span = (start, stop) if start == stop else (max(start, 1), max(stop, 2)) if len(row) > 1 else (0, 1)
            for ending in endings:
                ids.append(row + ending)
                user.append(span)
    return Encoded(ids, user)


def suffix_ids(tokenizer: Any, suffixes: Sequence[str]) -> list[list[int]]:
    """Token ids of texts that follow a rendered prompt."""
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in suffixes]


def _user_tokens(text: str, before: str, after: str, offsets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Tokens that overlap the user's text: what stands between the template's own, whatever words it shares with it."""
    start, stop = len(before), len(text) - len(after)
    if start > stop or not (text.startswith(before) and text.endswith(after)):
        return 1, len(offsets)  # the template says other things of this prompt: every token but the first counts
    inside = [i for i, (a, b) in enumerate(offsets) if a < stop and b > start and start < stop]
    return (inside[0], inside[-1] + 1) if inside else (1, 1)
