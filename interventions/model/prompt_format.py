"""Prompts to token ids, and token ids to batches: length-sorted, sized by tokens, padded."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data.errors import UserError
from data.prompts.conversations import parted
from interventions.model.formats.choice import MARK, render_all, rendering_of

RENDERED = 512  # prompts tokenized at once: their offsets take ten times the memory of their ids


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
    """The prompt in the tokenizer's format, generation prompt included; bare without a template."""
    return render_all(tokenizer, [prompt])[0]


def encode(tokenizer: Any, prompts: Sequence[str], suffixes: Sequence[str] = (), room: int = 0) -> Encoded:
    """Render and tokenize prompts.

    What a prompt says is text: a control token in it is read as its characters, so that no prompt can end its own turn, unless the
    tokenizer's format lets them through. Those of the template and of suffixes count. A suffix's tokens follow those of the rendered prompt without merging into them, as generated tokens would.

    Args:
        tokenizer: A fast tokenizer.
        prompts: N texts.
        suffixes: With S of them, N·S rows come out, the suffixes of a prompt adjacent.
        room: New tokens that are to follow.

    Raises:
        UserError: A prompt gives no token at all, or more than the model has places for; or the template can't be used.
    """
    empty = tokenizer("")["input_ids"]
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id in empty else None
    endings = suffix_ids(tokenizer, suffixes) or [[]]
    ids: list[list[int]] = []
    user: list[tuple[int, int]] = []
    special = None if rendering_of(tokenizer).format.control_tokens else _special(tokenizer)
    frames = _Frames(tokenizer)
    for at in range(0, len(prompts), RENDERED):
        some = prompts[at : at + RENDERED]
        texts = render_all(tokenizer, some)
        tokens = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        for prompt, text, row, offsets in zip(some, texts, tokens["input_ids"], tokens["offset_mapping"], strict=True):
            context, own = parted(prompt)
            said = [turn["content"] for turn in context] + [own]
            if special is not None and any(map(special.search, said)):
                row, offsets = _as_characters(tokenizer, text, said, row, offsets)
            first = tokenizer.bos_token_id
            while first is not None and row[:2] == [first, first]:
                row, offsets = row[1:], offsets[1:]
            frame = frames.of(prompt, own)
            start, stop = _user_tokens(text, *frame, offsets) if frame else (1, len(offsets))
            if bos is not None and row[:1] != [bos]:
                row, start, stop = [bos, *row], start + 1, stop + 1
            if not row:
                raise UserError("a prompt is blank, and without a chat template no token is left of it")
            span = (start, stop) if start == stop else (max(start, 1), max(stop, 2)) if len(row) > 1 else (0, 1)
            for ending in endings:
                _check_row(tokenizer, row + ending, prompt, len(ids) // len(endings) + 1, room)
                ids.append(row + ending)
                user.append(span)
    return Encoded(ids, user)


def shown(tokenizer: Any, ids: Sequence[int]) -> str:
    """Token ids as text with every control token: what a model reads."""
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _check_row(tokenizer: Any, row: list[int], prompt: str, number: int, room: int) -> None:
    """Has the model a place for each token, and an embedding?"""
    most, rows = tokenizer.model_max_length, getattr(tokenizer, "table_rows", None)
    called = f"prompt {number}, {prompt[:40]!r}…,"
    if len(row) > most:
        raise UserError(
            f"{called} has {len(row)} tokens, and the model has places for {most}: shorten it or leave it out"
        )
    if len(row) + room - 1 > most:
        raise UserError(f"{called} has {len(row)} tokens, and with {room} new ones goes beyond the model's {most} places: "
                        f"--max-new-tokens {most + 1 - len(row)} is the most")  # fmt: skip
    if rows and max(row) >= rows:
        odd = tokenizer.convert_ids_to_tokens(max(row))
        raise UserError(f"{called} holds the token {odd!r}, {max(row)}, and the model has embeddings for 0 to {rows - 1}: the "
                        "tokenizer is another model's, or was given tokens that the model was not")  # fmt: skip


class _Frames:
    """What a format puts before and behind a prompt, which depends on what stands before the prompt alone."""

    def __init__(self, tokenizer: Any) -> None:
        """Of a tokenizer."""
        self.tokenizer = tokenizer
        self.known: dict[str, tuple[str, str] | None] = {}

    def of(self, prompt: str, own: str) -> tuple[str, str] | None:
        """The two; None where they can't be told."""
        context = prompt.removesuffix(own) if own else prompt
        if context not in self.known:
            before, mark, after = render(self.tokenizer, context + MARK).partition(MARK)
            self.known[context] = (before, after) if mark and MARK not in after else None
            for turn in parted(context + MARK)[0]:
                if self.tokenizer.chat_template is None or turn["content"].strip() not in before + after:
                    raise UserError(f"the prompt format leaves out what stands before a prompt ({turn['content'][:40]!r}): pass "
                                    "--prompt-format or --template")  # fmt: skip
        return self.known[context]


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
    tokenizer: Any, text: str, said: Sequence[str], row: list[int], offsets: list[tuple[int, int]]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and offsets of a rendered prompt with the control tokens in the user's words read as characters.

    Control tokens cut a text into pieces that are read each for itself: the pieces between those of the template are
    read anew, as if there were none but those.
    """
    known = {at for at, token in tokenizer.added_tokens_decoder.items() if token.special}
    words = [prompt if prompt in text else prompt.strip() for prompt in said]  # many templates strip it
    spans = [found.span() for word in words if word for found in re.finditer(re.escape(word), text)]
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
