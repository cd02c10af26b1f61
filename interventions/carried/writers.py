"""What a model writes to its residual stream through: output projections, experts' too, and embeddings."""

from typing import NamedTuple

import torch

from interventions.model.blocks import decoder_path
from interventions.model.model import Model

# Output projections of attention, feed-forward and state-space layers and of experts, by the names that families give them.
PROJECTIONS = {"o_proj", "out_proj", "down_proj", "c_proj", "dense", "dense_4h_to_h", "fc2", "fc_out", "w2"}


class Writer(NamedTuple):
    """A weight whose products go to the residual stream.

    Attributes:
        weight: Its name in the state dict.
        axis: Which of its axes is d_model.
        bias: Name of the bias beside it, whether there is one or not.
        part: Path of the block's part that it belongs to, such as its feed-forward layer; an embedding itself.
        fused: Whether it holds all experts' weights.
    """

    weight: str
    axis: int
    bias: str
    part: str
    fused: bool = False


def projections(model: Model, layer: int) -> list[Writer]:
    """A block's output projections, in the order in which it holds them."""
    path = f"{decoder_path(model.module, model.name)}.{layer}"
    found = []
    for name, module in model.module.get_submodule(path).named_modules():
        part, last = f"{path}.{name.partition('.')[0]}", name.rpartition(".")[2]
        if last in PROJECTIONS and isinstance(getattr(module, "weight", None), torch.nn.Parameter):
            axis = -1 if type(module).__name__ == "Conv1D" else 0
            if module.weight.ndim == 2 and module.weight.shape[axis] == model.d_model:
                found.append(Writer(f"{path}.{name}.weight", axis, f"{path}.{name}.bias", part))
        for own, weight in module.named_parameters(recurse=False):
            if own in PROJECTIONS and weight.ndim == 3:  # all experts' in one: out by in, or the other way around
                turned = getattr(module, "is_transposed", weight.shape[1] != model.d_model)
                found.append(
                    Writer(f"{path}.{name}.{own}", 2 if turned else 1, f"{path}.{name}.{own}_bias", part, True)
                )
    return found


def embeddings(model: Model) -> list[Writer]:
    """The embeddings outside the blocks that are as wide as the stream: of tokens, and of positions where there are any."""
    blocks = decoder_path(model.module, model.name)
    return [
        Writer(f"{path}.weight", -1, f"{path}.bias", path)
        for path, part in model.module.named_modules()
        if isinstance(part, torch.nn.Embedding) and part.embedding_dim == model.d_model and not path.startswith(blocks)
    ]
