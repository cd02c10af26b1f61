"""Prompts to token ids, and token ids to batches: length-sorted, sized by tokens, padded."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from data.errors import UserError

BATCH_TOKENS = 2048
RENDERED = 512  # prompts tokenized at once: their offsets take ten times the memory of their ids
RESPOND = "respond"
MARK = "\ue000"  # for private use, so that no template holds it
CONTROL_TOKEN = re.compile(r"\[([^\W\d_][^\[\]\n]*)\]")  # a name in brackets that begins with a letter
# Special tokens that are there to be taken (Llama 3, Gemma, Mistral, Qwen) or that only mark the source files of
# pre-training data (StarCoder, SmolLM).
UNUSED = re.compile(
    r"<\|reserved_special_token_\d+\|>|<\|reserved_\d+\|>|<\|extra_\d+\|>|<unused_?\d+>|<(special|SPECIAL)_\d+>"
    r"|\[control_\d+\]|<(repo_name|reponame|file_sep|filename|gh_stars|issue_\w+|jupyter_\w+|empty_output)>"
)


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
    message = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)


def encode(tokenizer: Any, prompts: Sequence[str], suffixes: Sequence[str] = ()) -> Encoded:
    """Render and tokenize prompts.

    A suffix's tokens follow those of the rendered prompt without merging into them, as generated tokens would.

    Args:
        tokenizer: A fast tokenizer.
        prompts: N texts.
        suffixes: With S of them, N·S rows come out, the suffixes of a prompt adjacent.

    Raises:
        UserError: A prompt gives no token at all.
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
        texts = [render(tokenizer, prompt) for prompt in some]
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


def plan_batches(lengths: Sequence[int], batch_tokens: int, most_rows: int | None = None) -> list[list[int]]:
    """Split rows into batches, longest first, of at most `batch_tokens` padded tokens and `most_rows` rows each.

    A function of its arguments alone. A row longer than the budget is a batch of its own.
    """
    batches: list[list[int]] = []
    width = 0
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        rows = len(batches[-1]) + 1 if batches else 1
        if batches and rows * width <= batch_tokens and (most_rows is None or rows <= most_rows):
            batches[-1].append(row)
        else:
            batches.append([row])
            width = max(lengths[row], 1)
    return batches


def pad_batch(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu", opening: int = 0
) -> dict[str, torch.Tensor]:
    """Pad rows to one length, before their first token or, if they share one, behind their opening.

    Padding shifts nothing: `position_ids` = cumsum(mask) − 1, clamped at 0.

    Args:
        rows: Token ids.
        pad: A token id to pad with.
        device: Where the tensors go.
        opening: How many first tokens are the same in all rows: the batch's first columns.

    Returns:
        `input_ids`, `attention_mask`, `position_ids`, each (rows, tokens).
    """
    width = max(map(len, rows))
    gaps = [width - len(row) for row in rows]
    ids = torch.tensor([[*row[:opening], *[pad] * gap, *row[opening:]] for row, gap in zip(rows, gaps, strict=True)])
    mask = torch.tensor([[1] * opening + [0] * gap + [1] * (width - opening - gap) for gap in gaps])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def pad_id(tokenizer: Any) -> int:
    """A token id to pad with; masked out, so any will do."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return candidate
    return 0


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """The model's control tokens, name without brackets -> id: none, unless there is one to respond.

    Other models write tokens of other use in brackets, too: `[PAD]`, `[TOOL_CALLS]`.
    """
    found = bracketed_tokens(tokenizer)
    return found if RESPOND in found else {}


def bracketed_tokens(tokenizer: Any) -> dict[str, int]:
    """Added tokens written in brackets, name without them -> id, but for what the tokenizer or its template uses."""
    roles = {str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    template = tokenizer.chat_template or ""
    found = {}
    for number, token in tokenizer.added_tokens_decoder.items():
        text, match = token.content, CONTROL_TOKEN.fullmatch(token.content)
        if match and text not in roles and text not in template and not UNUSED.fullmatch(text):
            found[match[1]] = number
    return found
