"""Token ids to batches: sorted by length, sized by tokens, padded."""

from collections.abc import Sequence
from typing import Any

import torch


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
    """A token id to pad with, one that the embedding has a row for; masked out, so any of them will do."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None and candidate < getattr(tokenizer, "table_rows", candidate + 1):
            return candidate
    return 0
