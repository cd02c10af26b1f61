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


def is_apart(network: Network) -> bool:
    """Whether this runs in a process beside the model's, as NDIF's sandbox does with an ordinary key's code.

    Modules hold no weights there, what a block puts out is a copy, and so is what a trace is given: a cache that it
    fills comes back only with its output. Modules can be called through their envoys.
    """
    return network._module is None or all(part.is_meta for part in network._module.parameters())


def entrance(module: Any) -> torch.device:
    """Where a model's input goes: to its embedding. Its blocks, and what puts out logits, may lie on other devices."""
    return module.get_input_embeddings().weight.device


def device_of(network: Network, block: Block) -> torch.device:
    """Where input goes and results are put together, there where the trace runs; apart from the weights, where a block's output lies."""
    if not is_apart(network):
        return entrance(network._module)
    with network.trace({"input_ids": torch.ones((1, 1), dtype=torch.long)}, use_cache=False, logits_to_keep=1):
        device = hidden(block.output).device
    return device  # noqa: RET504  # a trace gives its values once its block has ended


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
