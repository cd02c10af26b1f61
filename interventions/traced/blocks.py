"""What a decoder block puts out, and where and in which type a model computes."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from collections.abc import Sequence
from typing import Any, TypeAlias

import nnsight
import torch

Network: TypeAlias = Any  # the nnsight model
Block: TypeAlias = Any  # its envoy of a decoder block
NnsightBackend: TypeAlias = Any  # what `trace` and `session` are given as `backend=`
Batch: TypeAlias = dict[str, torch.Tensor]  # `input_ids`, `attention_mask`, `position_ids`
Blocks: TypeAlias = Sequence[tuple[int, Block]]  # with their numbers


def hidden(output: Any) -> torch.Tensor:
    """The residual stream (rows, positions, d_model) in a block's output.

    A tensor, or before transformers 4.54 the first of a tuple; never `output[0]` unseen, which would be a tensor's first row.
    """
    return output[0] if isinstance(output, tuple) else output


def device_of(network: Network) -> torch.device:
    """Where a model's weights lie, there where the trace runs."""
    return next(network._module.parameters()).device


def on(device: torch.device, batch: Batch) -> Batch:
    """A batch on a device."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


def stream_dtype(network: Network, backend: NnsightBackend, block: Block) -> str:
    """Name of the type that a block puts out, such as `torch.bfloat16`."""
    inputs = {"input_ids": torch.ones((1, 2), dtype=torch.long)}
    with torch.no_grad(), network.trace(inputs, backend=backend) as tracer:
        seen = nnsight.save(str(hidden(block.output).dtype))
        tracer.stop()
    return seen
