"""Prompts to token ids, and token ids to batches: length-sorted, sized by tokens, padded."""

import re
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

    What a prompt says is text: a control token in it is read as its characters, so that no prompt can end its own turn.
    Those of the template and of suffixes count. A suffix's tokens follow those of the rendered prompt without merging into them, as generated tokens would.

    Args:
        tokenizer: A fast tokenizer.
        prompts: N texts.
        suffixes: With S of them, N·S rows come out, the suffixes of a prompt adjacent.

    Raises:
        UserError: A prompt gives no token at all, or more than the model has places for; or the template can't be used.
    """
    empty = tokenizer("")["input_ids"]
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id in empty else None
    endings = suffix_ids(tokenizer, suffixes) or [[]]
    ids: list[list[int]] = []
    user: list[tuple[int, int]] = []
    special = _special(tokenizer)
    before, mark, after = render(tokenizer, MARK).partition(MARK)
    framed = bool(mark) and MARK not in after
    for at in range(0, len(prompts), RENDERED):
        some = prompts[at : at + RENDERED]
        texts = rendered(tokenizer, some) if tokenizer.chat_template else list(some)
        tokens = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        for prompt, text, row, offsets in zip(some, texts, tokens["input_ids"], tokens["offset_mapping"], strict=True):
            if special is not None and special.search(prompt):
                row, offsets = _as_characters(tokenizer, text, prompt, row, offsets)
            start, stop = _user_tokens(text, before, after, offsets) if framed else (1, len(offsets))
            if bos is not None and row[:1] != [bos]:
                row, start, stop = [bos, *row], start + 1, stop + 1
            if not row:
                raise UserError("a prompt is blank, and without a chat template no token is left of it")
            span = (start, stop) if start == stop else (max(start, 1), max(stop, 2)) if len(row) > 1 else (0, 1)
            for ending in endings:
                if len(row) + len(ending) > tokenizer.model_max_length:
                    raise UserError(f"prompt {len(ids) // len(endings) + 1}, {prompt[:40]!r}…, has {len(row) + len(ending)} "
                                    f"tokens, and the model has places for {tokenizer.model_max_length}: shorten it or leave it "
                                    "out")  # fmt: skip
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


def _special(tokenizer: Any) -> re.Pattern[str] | None:
    """Finds what the tokenizer takes for a control token."""
    names = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special and token.content]
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True)))) if names else None


def _as_characters(
    tokenizer: Any, text: str, prompt: str, row: list[int], offsets: list[tuple[int, int]]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and offsets of a rendered prompt with the control tokens in the user's words read as characters.

    Control tokens cut a text into pieces that are read each for itself: the pieces between those of the template are
    read anew, as if there were none but those.
    """
    known = {at for at, token in tokenizer.added_tokens_decoder.items() if token.special}
    words = prompt if prompt in text else prompt.strip()  # many templates strip it
    spans = [found.span() for found in re.finditer(re.escape(words), text)] if words else []
    kept = [
        at
        for at, (token, (a, b)) in enumerate(zip(row, offsets, strict=True))
        if token in known and not any(a < stop and b > start for start, stop in spans)
    ]
    ids: list[int] = []
    places: list[tuple[int, int]] = []
    begin = 0
    for at in [*kept, None]:
        a, b = (len(text), len(text)) if at is None else offsets[at]
        piece = tokenizer(
            text[begin:a], add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True
        )
        ids += piece["input_ids"]
        places += [(begin + x, begin + y) for x, y in piece["offset_mapping"]]
        if at is not None:
            ids.append(row[at])
            places.append((a, b))
        begin = b
    return ids, places
