"""Nothing twice: what rows begin with is computed once, and what follows a row hangs on it as a tree.

What all rows of a batch begin with (a template's opening, a system prompt) is their *opening*; padding stands behind it
(`encoding.pad_batch`), so that one row's pass serves all. Suffixes share their row, and with each other what they begin
with, under a mask of who sees whom.
"""

from collections.abc import Sequence

import torch

from interventions.reading.batches import pad_batch
from interventions.reading.budget import PASS_TOKENS
from interventions.traced.caching import row_mask, tail_mask


def common_opening(rows: Sequence[Sequence[int]], most: int | None = None) -> int:
    """How many tokens all rows begin with, if computing them once is worth a pass of its own; else 0.

    Args:
        rows: Token ids. At least one of each row's stays behind the opening.
        most: Take no more than so many.
    """
    if not rows:
        return 0
    first, last = min(map(list, rows)), max(map(list, rows))  # in the order of lists; all others lie between them
    shared = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    shared = min(shared, min(map(len, rows)) - 1, shared if most is None else most)
    return shared if (len(rows) - 1) * shared > PASS_TOKENS else 0


def pack_batch(
    rows: Sequence[Sequence[int]],
    endings: Sequence[Sequence[int]],
    pad: int,
    device: torch.device | str = "cpu",
    opening: int = 0,
) -> tuple[dict[str, torch.Tensor], list[int]]:
    """A padded batch in which each row is followed by every ending, as if each ending alone followed it.

    The endings share one computation of the row, and with each other what they begin with: they hang on it as a tree,
    whose every token sees the row and its own ancestors and stands as many positions behind the row as it is deep.

    Returns:
        `input_ids`, `position_ids` (rows, tokens) and `attention_mask` (rows, 1, tokens, tokens), boolean; and the
        place of each ending's last token. Padding sees itself alone, since a softmax over nothing is not a number.
    """
    batch = pad_batch(rows, pad, opening=opening)
    width, tree = batch["input_ids"].shape[1], branches(endings)
    places = {branch: width + at for at, branch in enumerate(tree)} | {(): width - 1}
    tail = torch.tensor([branch[-1] for branch in tree], dtype=torch.long).expand(len(rows), -1)
    deep = torch.tensor([len(branch) for branch in tree], dtype=torch.long)
    ids = torch.cat([batch["input_ids"], tail], dim=1)
    positions = torch.cat([batch["position_ids"], batch["position_ids"][:, -1:] + deep], dim=1)
    seen = torch.tensor([[branch[: len(other)] == other for other in tree] for branch in tree]).view(
        len(tree), len(tree)
    )
    real = batch["attention_mask"]
    row = torch.nn.functional.pad(row_mask(real), (0, len(tree)))  # which does not see its tail
    mask = torch.cat([row, tail_mask(real, seen)], dim=2)
    packed = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return {name: tensor.to(device) for name, tensor in packed.items()}, [places[tuple(ending)] for ending in endings]


def branches(endings: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """The tokens of the endings' tree, each by the path to it, parents before their children."""
    return list(dict.fromkeys(tuple(ending[:depth]) for ending in endings for depth in range(1, len(ending) + 1)))
