"""Prompts to token ids, and token ids to batches: length-sorted, sized by tokens, padded on the left."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

BATCH_TOKENS = 2048
CONTROL_TOKEN = re.compile(r"\[([^\W\d_][^\[\]\n]*)\]")  # a name in brackets that begins with a letter


@dataclass(frozen=True)
class Encoded:
    """Token ids of rendered prompts.

    Attributes:
        ids: One list of token ids a row, exactly one BOS where the model has one.
        user: For each row the tokens [start, stop) that hold the user's text; never position 0.
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
    """
    opening = tokenizer("")["input_ids"]
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id in opening else None
    endings = suffix_ids(tokenizer, suffixes) or [[]]
    ids: list[list[int]] = []
    user: list[tuple[int, int]] = []
    for prompt in prompts:
        text = render(tokenizer, prompt)
        tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        row, offsets = list(tokens["input_ids"]), tokens["offset_mapping"]
        start, stop = _user_tokens(text, prompt, offsets)
        if bos is not None and row[:1] != [bos]:
            row, start, stop = [bos, *row], start + 1, stop + 1
        span = (max(start, 1), max(stop, 2)) if len(row) > 1 else (0, 1)
        for ending in endings:
            ids.append(row + ending)
            user.append(span)
    return Encoded(ids, user)


def suffix_ids(tokenizer: Any, suffixes: Sequence[str]) -> list[list[int]]:
    """Token ids of texts that follow a rendered prompt."""
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in suffixes]


def _user_tokens(text: str, prompt: str, offsets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Tokens that overlap the user's text; templates may strip it."""
    at = text.rfind(prompt)
    wanted = prompt
    if at < 0:
        wanted = prompt.strip()
        at = text.rfind(wanted)
    if at < 0:  # the template rewrote the text: every token but the first counts
        return 1, len(offsets)
    inside = [i for i, (a, b) in enumerate(offsets) if a < at + len(wanted) and b > at]
    return inside[0], inside[-1] + 1


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


def pad_batch(rows: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """Left-pad rows to one length: `input_ids`, `attention_mask`, `position_ids`, each (rows, tokens).

    Left padding shifts nothing: `position_ids` = cumsum(mask) − 1, clamped at 0.
    """
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def pack_batch(
    rows: Sequence[Sequence[int]], endings: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu"
) -> tuple[dict[str, torch.Tensor], list[int]]:
    """A left-padded batch in which each row is followed by every ending, as if each ending alone followed it.

    The endings share one computation of the row: a block mask lets each see the row and itself, and its
    positions go on from the row's.

    Returns:
        `input_ids`, `position_ids` (rows, tokens) and `attention_mask` (rows, 1, tokens, tokens), boolean; and the
        place of each ending's last token. Padding sees itself alone, since a softmax over nothing is not a number.
    """
    batch = pad_batch(rows, pad)
    width, tail = batch["input_ids"].shape[1], [token for ending in endings for token in ending]
    owner = torch.tensor([-1] * width + [at for at, ending in enumerate(endings) for _ in ending])
    offsets = torch.tensor([step for ending in endings for step in range(1, len(ending) + 1)], dtype=torch.long)
    ends, at = [], width
    for ending in endings:
        at += len(ending)
        ends.append(at - 1 if ending else width - 1)
    ids = torch.cat([batch["input_ids"], torch.tensor(tail, dtype=torch.long).expand(len(rows), -1)], dim=1)
    positions = torch.cat([batch["position_ids"], batch["position_ids"][:, -1:] + offsets], dim=1)
    real = torch.cat([batch["attention_mask"].bool(), torch.ones(len(rows), len(tail), dtype=torch.bool)], dim=1)
    related = (owner[None, :] == -1) | (owner[None, :] == owner[:, None])
    earlier = torch.ones(len(owner), len(owner)).tril().bool()
    mask = (related & earlier)[None] & real[:, None, :] | torch.eye(len(owner)).bool()[None]
    packed = {"input_ids": ids, "attention_mask": mask[:, None], "position_ids": positions}
    return {name: tensor.to(device) for name, tensor in packed.items()}, ends


def pad_id(tokenizer: Any) -> int:
    """A token id to pad with; masked out, so any will do."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return candidate
    return 0


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """The model's control tokens: added tokens written in brackets, name without brackets -> id."""
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    return {match[1]: number for text, number in added.items() if (match := CONTROL_TOKEN.fullmatch(text))}
