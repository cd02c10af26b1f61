"""One prefill for all arms: keys and values of prompts, computed in passes of like lengths and branched arm by arm.

Runs inside a trace, wherever that is: plain functions of tensors and of an nnsight model.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from interventions.traced.blocks import Batch, Network, hidden, is_apart
from interventions.traced.gating import Marks, States, added, ended, summed

Part = tuple[torch.Tensor, int]
ROOM = 32  # columns


class GrowingLayer(DynamicLayer):
    """Keys and values with room for more columns: a step writes its own, where `DynamicLayer` copies all before it.

    Attributes:
        room: How many columns more to make room for when what there is does not suffice.
        rooms: Keys and values with room behind.
    """

    room = ROOM

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        """Append columns; gives all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        end = length + key_states.shape[-2]
        if not self.has_room(end):
            rooms = []
            for old, new in ((self.keys, key_states), (self.values, value_states)):
                room = new.new_empty(*new.shape[:2], end + self.room, new.shape[-1])
                if length and old is not None:
                    room[:, :, :length] = old
                rooms.append(room)
            self.rooms, self.room = tuple(rooms), ROOM
        for room, new in zip(self.rooms, (key_states, value_states), strict=True):
            room[:, :, length:end] = new
        self.keys, self.values = (room[:, :, :end] for room in self.rooms)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, and their room."""
        length = self.get_seq_length()
        if self.has_room(length):
            self.rooms = tuple(room[indices.to(room.device)] for room in self.rooms)
            self.keys, self.values = (room[:, :, :length] for room in self.rooms)

    def has_room(self, columns: int) -> bool:
        """Whether so many columns fit into what was made for them."""
        rooms, keys = getattr(self, "rooms", None), self.keys
        if rooms is None or keys is None:
            return False
        return rooms[0].data_ptr() == keys.data_ptr() and rooms[0].shape[2] >= columns


def cached(layers: Iterable[Sequence[torch.Tensor]] = (), room: int = ROOM, apart: bool = False) -> DynamicCache:
    """A cache of each layer's keys and values, (rows, heads, columns, depth), which are copied.

    Args:
        layers: Keys and values of each layer; none gives an empty cache.
        room: How many columns to leave room for.
        apart: Whether it travels to the model's process, which knows transformers' own classes alone.
    """
    if apart:
        return DynamicCache([(pair[0], pair[1]) for pair in layers])
    cache = DynamicCache()
    cache.layer_class_to_replicate = GrowingLayer
    for pair in layers:
        layer = GrowingLayer()
        layer.room = room
        layer.update(pair[0], pair[1])
        cache.layers.append(layer)
    return cache


def keys_values(cache: DynamicCache) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of each layer, (rows, heads, columns, depth)."""
    return [(pair[0], pair[1]) for pair in cache if pair[0] is not None and pair[1] is not None]


def cropped(cache: DynamicCache, columns: int) -> None:
    """Keep so many columns; a pass apart has added none to this copy."""
    cache.crop(min(columns - cache.get_seq_length(), 0))


def prefill_parts(batch: Batch, opening: int, passes: Sequence[Sequence[int]], looks: bool) -> list[Part]:
    """For each pass over some rows: their numbers, and how many columns they need behind the opening; the last only if it `looks`."""
    beyond = 0 if looks else 1
    width = batch["input_ids"].shape[1] - beyond
    if width <= opening:
        return []
    lengths = batch["attention_mask"].sum(-1) - beyond - opening
    if len(passes) == 1:
        return [(torch.arange(len(lengths)), width - opening)]
    return [(torch.tensor(rows), max(int(lengths[rows].max()), 1)) for rows in passes]


def prefill(
    network: Network, batch: Batch, opening: int, parts: Sequence[Part], marks: Marks, states: States, looks: bool
) -> tuple[DynamicCache, torch.Tensor | None]:
    """A cache of every column but the last; and, if it `looks`, unsteered logits of the last, (rows, vocabulary) float32.

    Args:
        network: The nnsight model.
        batch: Of `encoding.pad_batch`, B rows.
        opening: How many first columns are the same in all rows; they are computed once.
        parts: Of `prefill_parts`.
        marks: What is read on the way.
        states: Of `gating.begun`; what is read is added.
        looks: Whether the last column is read too, in the same passes.
    """
    ids, mask, positions = batch["input_ids"], batch["attention_mask"], batch["position_ids"]
    rows, width, apart = len(ids), ids.shape[1] - (0 if looks else 1), is_apart(network)
    first = cached(apart=apart)
    if opening:
        inputs = {
            "input_ids": ids[:1, :opening],
            "attention_mask": mask[:1, :opening],
            "position_ids": positions[:1, :opening],
        }
        with network.trace(inputs, past_key_values=first, use_cache=True, logits_to_keep=1):
            for number, block in summed(marks, slice(opening)):
                added(states, marks, number, hidden(block.output), torch.arange(rows), slice(opening))
            first = network.output.past_key_values
    caches, ends = [], []
    for of, own in parts:
        at = of.to(ids.device)
        inputs = {
            "input_ids": ids[at, width - own : width],
            "attention_mask": torch.cat([mask[at, :opening], mask[at, width - own : width]], dim=1),
            "position_ids": positions[at, width - own : width],
        }
        cache = repeated(first, len(of), own + (ROOM if len(parts) == 1 else 0), apart)
        columns = slice(width - own, width)
        read = marks.blocks if looks else summed(marks, columns)
        with network.trace(inputs, past_key_values=cache, use_cache=True, logits_to_keep=1):
            for number, block in read:
                here = hidden(block.output)
                added(states, marks, number, here, of, columns)
                if looks:
                    ended(states, number, here, of)
            if looks:
                ends.append(network.output.logits[:, -1, :].float().to(ids.device))
            cache = network.output.past_key_values
        caches.append(cache)
    if not caches:
        return repeated(first, rows, apart=apart), None
    whole = caches[0] if len(caches) == 1 else merged(caches, parts, rows, opening, width, apart)
    if not looks:
        return whole, None
    cropped(whole, width - 1)
    return whole, torch.cat(ends)[torch.cat([of for of, _ in parts]).argsort().to(ids.device)]


def repeated(cache: DynamicCache, rows: int, room: int = ROOM, apart: bool = False) -> DynamicCache:
    """A cache of one row as one of many, with room for so many columns more."""
    return cached(([part.expand(rows, -1, -1, -1) for part in pair] for pair in keys_values(cache)), room, apart)


def merged(
    caches: Sequence[DynamicCache], parts: Sequence[Part], rows: int, opening: int, width: int, apart: bool = False
) -> DynamicCache:
    """The parts' caches as one, padded behind the opening as the whole batch is; what is masked there is zero."""
    layers = []
    for pairs in zip(*map(keys_values, caches), strict=True):
        layer = []
        for which in (0, 1):
            _, heads, _, depth = pairs[0][which].shape
            whole = pairs[0][which].new_zeros(rows, heads, width, depth)
            for (of, own), pair in zip(parts, pairs, strict=True):
                at = of.to(whole.device)
                whole[at, :, :opening] = pair[which][:, :, :opening]
                whole[at, :, width - own :] = pair[which][:, :, opening:]
            layer.append(whole)
        layers.append(tuple(layer))
    return cached(layers, apart=apart)


def branched(cache: DynamicCache, whose: torch.Tensor, place: torch.Tensor, width: int) -> DynamicCache:
    """A cache of rows that go on alone after a step that they took side by side.

    Args:
        cache: Of B rows: `width` columns of their prompts, then one for each way to go on.
        whose: (rows,) which of the B each continues.
        place: (rows,) which way it took.
        width: Columns that all ways share.
    """
    layers = []
    for pair in keys_values(cache):
        ways = []
        for part in pair:
            own = part[whose.to(part.device), :, width + place.to(part.device)]
            ways.append(torch.cat([part[whose.to(part.device), :, :width], own[:, :, None]], dim=2))
        layers.append(tuple(ways))
    return cached(layers)


# Who sees whom in packed rows.


def row_mask(real: torch.Tensor) -> torch.Tensor:
    """Who sees whom in a padded row: boolean (rows, 1, tokens, tokens) of `real` (rows, tokens), 1 for real tokens."""
    width = real.shape[1]
    earlier = torch.ones(width, width, dtype=torch.bool, device=real.device).tril()
    return ((earlier & real.bool()[:, None, :]) | torch.eye(width, dtype=torch.bool, device=real.device))[:, None]


def tail_mask(real: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Whom a row's tail sees: boolean (rows, 1, tail, tokens + tail); the row, and of itself what `seen` (tail, tail) says."""
    rows, tail = len(real), len(seen)
    return torch.cat([real.bool()[:, None].expand(-1, tail, -1), seen.bool().expand(rows, -1, -1)], dim=2)[:, None]
