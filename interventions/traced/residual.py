"""Forward passes that read the residual stream: what all rows begin with once, and nothing behind the deepest layer."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from collections.abc import Sequence
from typing import NamedTuple

import nnsight
import torch
from transformers import DynamicCache

from interventions.traced.blocks import Batch, Block, Network, NnsightBackend, hidden
from interventions.traced.caching import repeated


class Pass(NamedTuple):
    """One forward pass, and where it is read.

    Attributes:
        batch: Its columns behind the opening, and a mask of all.
        weights: (rows, columns) of a mean over them, summing to 1 a row; None reads the last.
        places: Columns to read instead; None for none.
    """

    batch: Batch
    weights: torch.Tensor | None
    places: list[int] | None


def read(
    network: Network, backend: NnsightBackend, blocks: Sequence[Block], first: Batch, passes: Sequence[Pass]
) -> list[torch.Tensor]:
    """For each pass (rows, layers, d_model) in the model's type, on the CPU; of several places those of a row adjacent.

    Args:
        network: The nnsight model.
        backend: Where it runs.
        blocks: What is read, ascending.
        first: The opening that all rows share, one row of it; without a column where they share none.
        passes: What to compute.
    """
    opening = first["input_ids"].shape[1]
    with network.session(backend=backend):
        kept = nnsight.save([])
        with torch.no_grad():
            shared = DynamicCache()
            if opening:
                with network.trace(first, past_key_values=shared, use_cache=True) as tracer:
                    _end = blocks[-1].output
                    tracer.stop()
            for batch, weights, places in passes:
                past = repeated(shared, *batch["input_ids"].shape) if opening else None
                with network.trace(batch, past_key_values=past, use_cache=bool(opening)) as tracer:
                    states = [picked(hidden(block.output), weights, places) for block in blocks]
                    kept.append(torch.stack(states, dim=1))
                    tracer.stop()
                past = None  # or the next pass's would be made beside it
    return kept


def picked(states: torch.Tensor, weights: torch.Tensor | None, places: list[int] | None) -> torch.Tensor:
    """What is read of one block's output, on the CPU: (rows, d_model), or (rows · places, d_model)."""
    if places is not None:
        return states[:, places, :].flatten(0, 1).cpu()
    if weights is None:
        return states[:, -1, :].cpu()
    return torch.einsum("btd,bt->bd", states.float(), weights.to(states.device)).cpu()
