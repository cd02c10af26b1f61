"""Forward passes that read the residual stream: what all rows begin with once, and nothing behind the deepest layer."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from collections.abc import Sequence
from typing import Any, NamedTuple

import nnsight
import torch
from transformers import DynamicCache

from interventions.traced.blocks import Batch, Block, Network, NnsightBackend, hidden, is_apart
from interventions.traced.caching import repeated


class Pass(NamedTuple):
    """One forward pass, and where it is read.

    Attributes:
        batch: Its columns behind the opening, and a mask of all.
        weights: (rows, columns) of a mean over them, summing to 1 a row, or (rows, means, columns) of several; None reads the
            last.
        places: Columns to read instead; None for none.
        members: float64 (groups, rows), or (groups, rows · places): which of what is read counts to which sum; None
            keeps all of it.
    """

    batch: Batch
    weights: torch.Tensor | None
    places: list[int] | None
    members: torch.Tensor | None = None

    @property
    def each(self) -> int:
        """How many rows come of one."""
        if self.places is not None:
            return len(self.places)
        return 1 if self.weights is None or self.weights.ndim == 2 else self.weights.shape[1]


class Along(NamedTuple):
    """Directions that states are projected on, some a layer.

    Attributes:
        weights: float32 (layers, directions, d_model).
        offsets: float64 (layers, directions), taken off: mean · weight, for (h − mean) · weight.
    """

    weights: torch.Tensor
    offsets: torch.Tensor


def read(
    network: Network,
    backend: NnsightBackend,
    blocks: Sequence[Block],
    beyond: Sequence[Block],
    first: Batch,
    passes: Sequence[Pass],
    squares: bool = False,
    along: Along | None = None,
) -> list[torch.Tensor]:
    """For each pass (rows, layers, d_model) in the model's type, on the CPU; of several places or means those of a row adjacent.

    Where passes have members, two tensors for all of them, of `parted`: each group's sum (groups, layers, d_model + 1), in its
    last column the sum of its rows' norms; or, with `squares`, three, of `parted_moments`.

    Args:
        network: The nnsight model.
        backend: Where it runs.
        blocks: What is read, ascending.
        beyond: The blocks behind the deepest of these, which are not computed.
        first: The opening that all rows share, one row of it; without a column where they share none.
        passes: What to compute.
        squares: Whether members are told by their means and variances, and not by their sums and norms.
        along: Directions; then (rows, layers, directions) float32 comes of each pass in the states' place.
    """
    opening = first["input_ids"].shape[1]
    with network.session(backend=backend):
        kept = nnsight.save([])
        with torch.no_grad():
            apart, shared = is_apart(network), DynamicCache()
            if opening:
                with network.trace(first, past_key_values=shared, use_cache=True, logits_to_keep=1):
                    leave_out(beyond, blocks[-1].output)
                    shared = network.output.past_key_values
            for batch, weights, places, members in passes:
                rows, width = batch["input_ids"].shape
                past = repeated(shared, rows, width, apart) if opening else None
                with network.trace(batch, past_key_values=past, use_cache=False, logits_to_keep=1):
                    states, put_out = [], None
                    for block in blocks:
                        put_out = block.output
                        states.append(picked(hidden(put_out), weights, places))
                    keep(kept, torch.stack(states, dim=1), members, squares, along)
                    leave_out(beyond, put_out)
                past = None  # or the next pass's would be made beside it
            if passes[0].members is not None:
                kept[:] = parted_moments(kept, sizes(passes)) if squares else parted(kept[0], sizes(passes))
    return kept


def keep(
    kept: list[torch.Tensor],
    states: torch.Tensor,
    members: torch.Tensor | None,
    squares: bool = False,
    along: Along | None = None,
) -> None:
    """Keep a pass's states (rows, layers, d_model), or their projections, or add them up: what goes over a line is then the same for
    any rows."""
    if members is None:
        kept.append(states if along is None else projected(states, along))
        return
    if squares:
        add_moments(kept, states, members)
        return
    exact = states.double()
    sums = torch.einsum("gr,rld->gld", members, torch.cat([exact, exact.norm(dim=-1, keepdim=True)], dim=-1))
    if kept:
        kept[0] += sums
    else:
        kept.append(sums)


def projected(states: torch.Tensor, along: Along) -> torch.Tensor:
    """(h − mean) · weight of each row, layer and direction, in float64 and then float32: (rows, layers, directions)."""
    return (torch.einsum("rld,lkd->rlk", states.double(), along.weights.double()) - along.offsets).float()


def add_moments(kept: list[torch.Tensor], states: torch.Tensor, members: torch.Tensor) -> None:
    """Add a pass's states to three float64 tensors: a reference (layers, d), and each group's sums (groups, layers, d) of what its rows
    lie off it and of the squares of that.

    The reference is the first pass's mean, so that variances are differences of numbers of their own size: of E[h²] − E[h]² little
    would be left where a dimension's mean is a thousand times its deviation, as in massive activations (arXiv 2402.17762).
    """
    exact = states.double()
    reference = kept[0] if kept else exact.mean(0).float().double()
    off = exact - reference
    found = [torch.einsum("gr,rld->gld", members, off), torch.einsum("gr,rld->gld", members, off**2)]
    kept[:] = [reference, *([a + b for a, b in zip(kept[1:], found, strict=True)] if kept else found)]


def parted_moments(kept: Sequence[torch.Tensor], counts: torch.Tensor) -> list[torch.Tensor]:
    """What `add_moments` kept, in float32 for the line: the groups' mean (layers, d), how far each group's lies off it
    (groups, layers, d), and its rows' squared deviations from their own mean, added up (groups, layers, d)."""
    reference, sums, squares = kept
    n = counts[:, None, None].clamp(min=1)
    centre = (reference + sums.sum(0) / counts.sum().clamp(min=1)).float()
    off = torch.where(counts[:, None, None] > 0, sums / n + (reference - centre.double()), torch.zeros(()).double())
    return [centre, off.float(), (squares - sums**2 / n).clamp(min=0).float()]


def whole_moments(centre: torch.Tensor, off: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """Means and squared deviations, float64 (2, groups, layers, d), that were `parted_moments`."""
    return torch.stack([centre.double() + off.double(), squares.double()])


def sizes(passes: Sequence[Pass]) -> torch.Tensor:
    """How many of what is read count to each sum, float64 (groups,)."""
    return torch.stack([one.members.sum(1) for one in passes if one.members is not None]).sum(0)


def parted(sums: torch.Tensor, counts: torch.Tensor) -> list[torch.Tensor]:
    """Float64 sums (groups, layers, d) in float32 for the line: the mean of all (layers, d), and the sums of what is left without it.

    What sets groups apart is small beside the mean, so that rounding what is left costs their differences nothing: a relative
    6e-8 of these differences and not of the sums.
    """
    centre = (sums.sum(0) / counts.sum()).float()
    return [centre, (sums - counts[:, None, None] * centre.double()).float()]


def whole(centre: torch.Tensor, left: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The float64 sums (groups, layers, d) that were `parted`."""
    return left.double() + counts[:, None, None] * centre.double()


def leave_out(beyond: Sequence[Block], put_out: Any) -> None:
    """Don't compute the blocks beyond: they put out one position of what the last one did.

    `tracer.stop()` would do it, but apart from the model NDIF 0.1.2 loses track after it, and a session's next trace fails.
    """
    short = hidden(put_out)[:1, -1:, :]
    for block in beyond:
        block.skip((short, *put_out[1:]) if isinstance(put_out, tuple) else short)


def picked(states: torch.Tensor, weights: torch.Tensor | None, places: list[int] | None) -> torch.Tensor:
    """What is read of one block's output, on the CPU: (rows, d_model), or (rows · places or means, d_model)."""
    if places is not None:
        return states[:, places, :].flatten(0, 1).cpu()
    if weights is None:
        return states[:, -1, :].cpu()
    if weights.ndim == 3:
        return torch.einsum("btd,bmt->bmd", states.float(), weights.to(states.device)).flatten(0, 1).cpu()
    return torch.einsum("btd,bt->bd", states.float(), weights.to(states.device)).cpu()
