"""Forward passes of rows that each have an arm of their own, and the cache that they share while they decode.

Unlike the sessions of `traced.answering`, one pass is one trace: between two of them rows may join and leave. The cache stays in
this process, so that these run here alone.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nnsight
import torch
from transformers import DynamicCache

from interventions.traced.blocks import Batch, Blocks, Network, hidden
from interventions.traced.caching import cached, keys_values
from interventions.traced.edits import LayerEdit, LowRankEdit, RowEdits, Turn, apply_edit
from interventions.traced.gating import LAST, Marks, States, added, begun

Edits = dict[int, LayerEdit]
NOTHING = Marks([], (), {})


@dataclass(frozen=True)
class Reading:
    """What a pass is read for beside its logits.

    Attributes:
        marks: What gates read.
        units: Layer -> (categories, d_model) unit vectors to project on; empty where nobody asks.
        columns: How many of the last columns are projected.
    """

    marks: Marks = NOTHING
    units: Mapping[int, torch.Tensor] | None = None
    columns: int = 1


@dataclass(frozen=True)
class Passed:
    """What came of a pass over n rows: logits (n, vocabulary) float32, the gates' states, projections (n, columns, layers, categories)."""

    logits: torch.Tensor
    states: States
    projections: torch.Tensor | None


def run(
    network: Network,
    sites: Blocks,
    inputs: Batch,
    past: DynamicCache,
    edits: Edits,
    *,
    first: bool = False,
    wide: bool = False,
    reading: Reading | None = None,
) -> Passed:
    """One pass, which grows the cache.

    Args:
        network: The nnsight model.
        sites: All that writes to the stream, in the order of the forward pass.
        inputs: Columns that the cache lacks, and a mask of all.
        past: The rows' cache.
        edits: What is done at each layer, of `stacked`.
        first: Whether these are prompts, or ends of them.
        wide: Whether all their positions are edited.
        reading: What else is wanted.
    """
    reading = reading or Reading()
    marks, units = reading.marks, reading.units or {}
    read = {number for number, _ in marks.blocks}
    blocks = [site for site in sites if site[0] in edits or site[0] in read or site[0] in units]
    rows = len(inputs["input_ids"])
    every, width = torch.arange(rows), inputs["attention_mask"].shape[1]
    columns = slice(width - inputs["input_ids"].shape[1], width)
    with torch.no_grad(), network.trace(inputs, past_key_values=past, use_cache=True, logits_to_keep=1):
        out: dict[str, Any] = nnsight.save({})
        states, shadows = begun(marks, rows), []
        for number, block in blocks:
            here = hidden(block.output)
            if number in read:
                added(states, marks, number, here, every, columns)
                states[number, LAST] = here[:, -1, :].float()
            if number in edits:
                apply_edit(here, edits[number], every, first, wide)
            if number in units:
                shadows.append(here[:, -reading.columns :, :].float() @ units[number].to(here.device).T)
        out["states"], out["logits"] = states, network.output.logits[:, -1, :].float()
        if shadows:
            out["projections"] = torch.stack([shadow.cpu() for shadow in shadows], dim=2)
    return Passed(out["logits"], out["states"], out.get("projections"))


def stacked(rows: Sequence[RowEdits], width: int, device: torch.device) -> Edits:
    """Edits of single rows as those of a batch; what a row does not edit is left alone."""
    found: Edits = {}
    for layer in sorted({layer for row in rows for layer in row.layers}):
        own = [row.layers.get(layer) for row in rows]
        zero = torch.zeros(1, width, device=device)
        no = torch.zeros(1, dtype=torch.bool, device=device)
        units = [None if edit is None else edit.unit for edit in own]
        found[layer] = LayerEdit(
            torch.cat([zero if edit is None else edit.add for edit in own]),
            torch.cat([zero if unit is None else unit for unit in units])
            if any(u is not None for u in units)
            else None,
            _together([edit.lowrank if edit else [] for edit in own], device),
            _together([edit.turns if edit else [] for edit in own], device),
            torch.cat([no if edit is None else edit.later for edit in own]),
        )
    return found


def _together(
    own: Sequence[Sequence[tuple[Any, torch.Tensor]]], device: torch.device
) -> list[tuple[Any, torch.Tensor]]:
    """Maps, or rotations, of single rows with their strengths in the batch; the same one once."""
    found: dict[tuple[int, str], tuple[LowRankEdit | Turn, torch.Tensor]] = {}
    for at, pairs in enumerate(own):
        for one, share in pairs:
            key = id(one.plane if isinstance(one, Turn) else one.U), repr(one[-2:])
            found.setdefault(key, (one, torch.zeros(len(own), device=device)))[1][at] = share.to(device)[0]
    return list(found.values())


@dataclass
class Batched:
    """Rows that decode together.

    Attributes:
        past: Keys and values of all columns but those of the last tokens.
        mask: (rows, columns) int64; 0 where a row has none.
        places: (rows, 1) position of each row's last token that is in the cache.
    """

    past: DynamicCache
    mask: torch.Tensor
    places: torch.Tensor

    def kept(self, rows: Sequence[int]) -> "Batched":
        """Some of its rows, without the columns that none of them has."""
        at = torch.tensor(list(rows), device=self.mask.device)
        mask = self.mask[at]
        start = int(mask.any(0).int().argmax())
        layers = [[part[at.to(part.device), :, start:] for part in pair] for pair in keys_values(self.past)]
        return Batched(cached(layers), mask[:, start:], self.places[at])

    def joined(self, other: "Batched") -> "Batched":
        """Both, their last columns side by side; what stands before the shorter is masked."""
        width = max(self.mask.shape[1], other.mask.shape[1])
        layers = [
            [_beside(mine, others, width, 2) for mine, others in zip(pair, own, strict=True)]
            for pair, own in zip(keys_values(self.past), keys_values(other.past), strict=True)
        ]
        return Batched(cached(layers), _beside(self.mask, other.mask, width, 1), torch.cat([self.places, other.places]))


def _beside(one: torch.Tensor, other: torch.Tensor, width: int, axis: int) -> torch.Tensor:
    """Rows of two tensors, both as wide along an axis, with zeros before the shorter."""
    shape = list(one.shape)
    shape[0], shape[axis] = len(one) + len(other), width
    whole = one.new_zeros(shape)
    whole[: len(one)].narrow(axis, width - one.shape[axis], one.shape[axis]).copy_(one)
    whole[len(one) :].narrow(axis, width - other.shape[axis], other.shape[axis]).copy_(other)
    return whole
