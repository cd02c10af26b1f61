"""What is compared with what, on which job, and the ratio that must hold."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        group: Whose job both ways do.
        work: What is done.
        mine: `worker.task`.
        other: `worker.task`.
        bound: The least ratio other / mine; of a `cost`, the greatest mine / other; None where nothing is asked.
        cost: Whether the ratio is mine / other.
        same: How the results are compared: `rows`, `mean`, `entries`, or nothing.
    """

    group: str
    work: str
    mine: str
    other: str
    bound: float | None = None
    cost: bool = False
    same: str = ""

    def ratio(self, seconds: dict[str, float]) -> float:
        """Of one turn."""
        mine, other = seconds[self.mine], seconds[self.other]
        return mine / other if self.cost else other / mine


ROWS = [
    Row("pairs", "contrastive extraction", "ours.pairs", "published.pairs", 6, same="rows"),
    Row("pairs", "contrastive extraction", "ours.pairs", "steering-vectors.pairs", 6, same="mean"),
    Row("pairs", "contrastive extraction", "ours.pairs", "transformer-lens.pairs", same="rows"),
    Row("plain", "extraction at 0.6 of the depth", "ours.plain", "published.plain", 2.5, same="rows"),
    Row("plain", "extraction at 0.6 of the depth", "ours.plain", "hooks.plain", 0.95, same="rows"),
    Row("plain", "extraction at 0.6 of the depth", "ours.plain", "hooks.shared", 0.95, same="rows"),
    Row("tags", "six tags on each prompt", "ours.pairs", "ours.apart", 3, same="rows"),
    Row("gated", "gated, routed generation", "ours.gated", "published.gated", 8, same="entries"),
    Row("batch", "steered generation of one batch", "ours.steered", "published.unsteered", 0.95),
    Row("batch", "unsteered generation of one batch", "ours.unsteered", "published.unsteered", same="entries"),
    Row("sweep", "first-token sweep of 8 strengths", "ours.sweep", "ours.baseline", 1.6, cost=True),
]  # fmt: skip

NAMES = {
    "published.pairs": "published way (batches of 4, whole forward passes, twice)",
    "published.plain": "published way (batches of 4, whole forward passes)",
    "published.gated": "published way (one at a time, a second forward pass for the gate)",
    "published.unsteered": "unsteered `generate` of transformers, same batch and length",
    "steering-vectors.pairs": "`steering-vectors`, batches of 8",
    "transformer-lens.pairs": "TransformerLens, batches of 8, stopped at the layer",
    "hooks.plain": "hand-written hook loop, same batches",
    "hooks.shared": "hand-written hook loop, same batches, the opening computed once",
    "ours.apart": "six passes of ours",
    "ours.baseline": "one baseline pass of ours",
}


def agreement(row: Row, mine: np.ndarray, other: np.ndarray) -> str:
    """How far two results are from each other, in words."""
    if row.same == "mean":
        mine = (mine[0::2].astype(float) - mine[1::2]).mean(0)[None]
        other = other[None]
    if row.same == "entries":
        return f"{float((mine == other).mean()):.1%} of {mine.size} equal"
    gaps = np.linalg.norm(mine.astype(float) - other, axis=-1) / np.linalg.norm(other.astype(float), axis=-1)
    return f"relative difference at most {gaps.max():.1e}"


def jobs(prompts: dict[str, Any], extraction: dict[str, Any], generation: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The job of each group.

    Args:
        prompts: `extraction` and `generation`: `prompts` and `rendered` each.
        extraction: `model`, `layer`, `tags` (the last is the respond token's).
        generation: `model`, `layer`, `tools`, `tokens`, `benign`, `harmful`, `strengths`.
    """
    tags = extraction.pop("tags")
    reading, writing = extraction | prompts["extraction"], generation | prompts["generation"]
    strengths = writing.pop("strengths")
    return {
        "pairs": reading | {"tags": [tags[0], tags[-1]]},
        "plain": reading,
        "tags": reading | {"tags": tags},
        "gated": writing,
        "batch": writing,
        "sweep": writing | {"strengths": strengths},
    }
