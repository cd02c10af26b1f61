"""Forward passes that read the residual stream, each thing in them computed once and nothing behind the deepest layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from data.errors import UserError
from interventions.backends.ndif.result import expect
from interventions.model.model import Model
from interventions.model.prompt_format import Encoded, encode, suffix_ids
from interventions.reading.batches import pad_batch, pad_id
from interventions.reading.budget import passes
from interventions.reading.packing import branches, common_opening, pack_batch
from interventions.traced.blocks import Batch
from interventions.traced.residual import Along, Pass, keep, parted_moments, read, sizes, whole, whole_moments


@dataclass(frozen=True)
class Source:
    """What is read, unit by unit: a row, or a prompt with all its suffixes behind it.

    Attributes:
        encoded: Token ids of each unit.
        endings: Token ids of the suffixes that share each unit's computation; none where units are rows.
        positions: `last`, `mean`, `instruction` or `suffix`; of several each unit has a row.
    """

    encoded: Encoded
    endings: list[list[int]]
    positions: tuple[str, ...]

    @classmethod
    def of(cls, model: Model, texts: Sequence[str], suffixes: Sequence[str], *positions: str) -> "Source":
        """Suffixes share their prompt's computation where the model takes a mask for it; elsewhere all is spelled out.

        Raises:
            UserError: A mean over the tokens of a prompt that has none.
        """
        if suffixes and model.takes_masks:
            return cls(encode(model.tokenizer, texts), suffix_ids(model.tokenizer, suffixes), positions)
        encoded = encode(model.tokenizer, texts, suffixes)
        nothing = [at for at, (start, stop) in enumerate(encoded.user) if start == stop]
        if nothing and any(position in WEIGHTS for position in positions):
            raise UserError(f"prompt {texts[nothing[0]]!r} has no token to take the mean of; leave it out, or use "
                            "--position last")  # fmt: skip
        return cls(encoded, [], positions)

    @property
    def rows_each(self) -> int:
        """Rows of the artefact that come of one unit."""
        return len(self.endings) or len(self.positions)

    @property
    def tail(self) -> int:
        """Tokens that the suffixes put behind each unit."""
        return len(branches(self.endings))

    def computed(self, model: Model, units: Sequence[int] | None = None) -> list[int]:
        """Tokens that each of some units, or of all, takes beside the opening they share."""
        units = range(len(self.encoded)) if units is None else units
        more = self.tail - self.opening(model)
        return [len(self.encoded.ids[unit]) + more for unit in units]

    @property
    def row_lengths(self) -> list[int]:
        """Tokens of each row of the artefact."""
        tails = [len(ending) for ending in self.endings] or [0] * len(self.positions)
        return [len(ids) + tail for ids in self.encoded.ids for tail in tails]

    def read(
        self,
        model: Model,
        plan: Sequence[Sequence[int]],
        layers: Sequence[int],
        tokens: int,
        along: Along | None = None,
    ) -> list[torch.Tensor]:
        """Residuals of batches of units, in passes of at most so many tokens: for each batch (rows, layers, d_model); or, along
        directions, their projections (rows, layers, directions)."""
        opening = self.opening(model)
        parts = [self._parts(model, units, tokens) for units in plan]
        found = iter(self._read(model, [part for some in parts for part in some], layers, opening, along=along))
        results = []
        for units, some in zip(plan, parts, strict=True):
            states = torch.cat([next(found).unflatten(0, (len(part), -1)) for part in some])
            place = {unit: at for at, unit in enumerate(unit for part in some for unit in part)}
            results.append(states[[place[unit] for unit in units]].flatten(0, 1))
        return results

    def sums(
        self,
        model: Model,
        plan: Sequence[Sequence[int]],
        layers: Sequence[int],
        tokens: int,
        member: Sequence[int],
        groups: int,
    ) -> torch.Tensor:
        """The same, added up where the model is: float64 (groups, layers, d_model + 1), with the sum of norms behind.

        Args:
            model: An open model.
            plan: Batches of units.
            layers: Ascending block numbers.
            tokens: At most so many a pass.
            member: For each row of the artefact its group, or -1.
            groups: How many there are.
        """
        parts = [part for units in plan for part in self._parts(model, units, tokens)]
        each = torch.tensor(member).view(-1, self.rows_each)
        members = [(each[part].flatten() == torch.arange(groups)[:, None]).double() for part in parts]
        (found,) = self._read(model, parts, layers, self.opening(model), members)
        return found

    def moments(
        self,
        model: Model,
        plan: Sequence[Sequence[int]],
        layers: Sequence[int],
        tokens: int,
        groups: torch.Tensor,
    ) -> torch.Tensor:
        """Means and squared deviations of groups, added up where the model is: float64 (2, groups, layers, d_model).

        Args:
            model: An open model.
            plan: Batches of units.
            layers: Ascending block numbers.
            tokens: At most so many a pass.
            groups: bool (groups, rows of the artefact); a row may be of several.
        """
        parts = [part for units in plan for part in self._parts(model, units, tokens)]
        each = groups.view(len(groups), -1, self.rows_each)
        members = [each[:, part].flatten(1).double() for part in parts]
        (found,) = self._read(model, parts, layers, self.opening(model), members, squares=True)
        return found

    def _parts(self, model: Model, units: Sequence[int], tokens: int) -> list[list[int]]:
        """Units in passes of at most so many tokens."""
        return [[units[at] for at in part] for part in passes(model, self.computed(model, units), tokens)]

    def opening(self, model: Model) -> int:
        """What all units share, where the model lets them: whichever batches travel together, bits stay the same."""
        return self._opening if model.takes_masks else 0

    @cached_property
    def _opening(self) -> int:
        """A mean's tokens are each row's own."""
        weighed = any(position in WEIGHTS for position in self.positions)
        most = min((start for start, _ in self.encoded.user), default=0) if weighed else None
        return common_opening(self.encoded.ids, most)

    def _weights(self, units: Sequence[int], opening: int) -> torch.Tensor:
        """(units, tokens), or of several positions (units, positions, tokens)."""
        found = [
            WEIGHTS[position](self.encoded, units, opening)
            if position in WEIGHTS
            else last_weights(self.encoded, units)
            for position in self.positions
        ]
        return torch.stack(found, dim=1) if len(found) > 1 else found[0]

    def _read(
        self,
        model: Model,
        plan: Sequence[Sequence[int]],
        layers: Sequence[int],
        opening: int,
        members: Sequence[torch.Tensor] | None = None,
        squares: bool = False,
        along: Along | None = None,
    ) -> list[torch.Tensor]:
        padding = pad_id(model.tokenizer)
        rows = [[self.encoded.ids[unit] for unit in units] for units in plan]
        if self.endings:
            packed = [pack_batch(ids, self.endings, padding, model.device, opening) for ids in rows]
            batches, ends = [batch for batch, _ in packed], [ends for _, ends in packed]
            return read_residual(model, batches, layers, None, ends, opening, members, squares, along)
        ends = len(self.positions) == 1 and self.positions[0] not in WEIGHTS
        weights = None if ends else [self._weights(units, opening) for units in plan]
        batches = [pad_batch(ids, padding, model.device, opening) for ids in rows]
        return read_residual(model, batches, layers, weights, None, opening, members, squares, along)


def read_residual(
    model: Model,
    batches: Sequence[Batch],
    layers: Sequence[int],
    weights: Sequence[torch.Tensor] | None = None,
    ends: Sequence[Sequence[int]] | None = None,
    opening: int = 0,
    members: Sequence[torch.Tensor] | None = None,
    squares: bool = False,
    along: Along | None = None,
) -> list[torch.Tensor]:
    """Forward passes, one a batch, each stopped after the deepest of `layers`; they travel together.

    Args:
        model: An open model.
        batches: Batches of `encoding.pad_batch`.
        layers: Ascending block numbers.
        weights: For each batch (rows, tokens), summing to 1 a row: the mean to take; or (rows, means, tokens), several
            of them; None reads the last token.
        ends: For each batch, of `packing.pack_batch`, the positions to read instead.
        opening: How many first columns are the same in all rows of all batches; they are computed once, and neither
            `weights` nor `ends` may fall on them.
        members: For each batch float64 (groups, rows · ends), which rows count to which sum; None keeps them all.
        squares: Whether members are told by means and squared deviations.
        along: Directions to project on.

    Returns:
        For each batch float32 (rows, layers, d_model), on the CPU; with `ends` or several means (rows · ends, layers,
        d_model), those of a row adjacent. With `members` float64 (groups, layers, d_model + 1) alone, as `traced.residual.read` adds up;
        with `squares` too float64 (2, groups, layers, d_model), means and squared deviations. Along directions (…, layers, directions).
    """
    nothing = [None] * len(batches)
    first = {name: batches[0][name][:1, :opening] for name in ("input_ids", "position_ids")}
    passes = [
        Pass(
            _behind(batch, opening),
            None if mean is None else mean[..., opening:],
            None if places is None else [place - opening for place in places],
            member,
        )
        for batch, mean, places, member in zip(
            batches, weights or nothing, ends or nothing, members or nothing, strict=True
        )
    ]
    if model.backend.engine is not None:
        kept: list[torch.Tensor] = []
        for states, one in zip(model.backend.engine.read(layers, passes), passes, strict=True):
            shape = (len(one.batch["input_ids"]) * one.each, len(layers), model.d_model)
            keep(kept, expect(states, shape, "activations"), one.members, squares, along)
        return [whole_moments(*parted_moments(kept, sizes(passes)))] if squares else kept
    blocks, beyond = [model.layers[layer] for layer in layers], list(model.layers)[max(layers) + 1 :]
    backend = model.backend.nnsight(model.nnsight)
    found = read(model.nnsight, backend, blocks, beyond, first, passes, squares, along)
    if not isinstance(found, list):
        raise UserError("activations came back in another form than they were asked for; is this an NDIF server?")
    if members is not None and squares:
        shape, parts = (len(layers), model.d_model), found if len(found) == 3 else (None, None, None)
        groups = (len(members[0]), *shape)
        names = {"a mean of activations": shape, "means of activations": groups, "squares of activations": groups}
        return [whole_moments(*(expect(part, names[name], name) for part, name in zip(parts, names, strict=True)))]
    if members is not None:
        shape, (centre, left) = (len(layers), model.d_model + 1), found if len(found) == 2 else (None, None)
        parts = (
            expect(centre, shape, "a mean of activations"),
            expect(left, (len(members[0]), *shape), "sums of activations"),
        )
        return [whole(*parts, sizes(passes))]
    rows = [len(batch["input_ids"]) * one.each for batch, one in zip(batches, passes, strict=True)]
    if len(found) != len(rows):
        raise UserError(
            f"{len(rows)} passes were asked for and {len(found)} came back; is this an NDIF server? try another --host"
        )
    width, what = (model.d_model, "activations") if along is None else (along.weights.shape[1], "projections")
    return [
        expect(states, (count, len(layers), width), what).float() for states, count in zip(found, rows, strict=True)
    ]


def last_weights(encoded: Encoded, rows: Sequence[int]) -> torch.Tensor:
    """(rows, tokens) weights of a batch padded behind its opening that read each row's last token."""
    weights = torch.zeros(len(rows), max(len(encoded.ids[row]) for row in rows))
    weights[:, -1] = 1.0
    return weights


def mean_weights(encoded: Encoded, rows: Sequence[int], opening: int = 0) -> torch.Tensor:
    """(rows, tokens) weights of a batch padded behind its opening that average over each row's user tokens."""
    return _weights(encoded, rows, opening, lambda start, stop: range(start, stop))


def instruction_weights(encoded: Encoded, rows: Sequence[int], opening: int = 0) -> torch.Tensor:
    """The same, that read the last token of the user's text (arXiv 2507.11878)."""
    return _weights(encoded, rows, opening, lambda start, stop: range(max(start, stop - 1), stop))


def _weights(
    encoded: Encoded, rows: Sequence[int], opening: int, places: Callable[[int, int], Sequence[int]]
) -> torch.Tensor:
    width = max(len(encoded.ids[row]) for row in rows)
    weights = torch.zeros(len(rows), width)
    for at, row in enumerate(rows):
        gap, chosen = width - len(encoded.ids[row]), places(*encoded.user[row])
        for place in chosen:
            weights[at, place if place < opening else place + gap] = 1 / len(chosen)
    return weights


WEIGHTS = {"mean": mean_weights, "instruction": instruction_weights}  # of the positions that are sums over tokens


def _behind(batch: Batch, opening: int) -> Batch:
    """The batch without its first columns, which its mask still sees."""
    mask = batch["attention_mask"]
    own = {name: batch[name][:, opening:] for name in ("input_ids", "position_ids")}
    return own | {"attention_mask": mask if mask.ndim == 2 else mask[:, :, opening:]}
