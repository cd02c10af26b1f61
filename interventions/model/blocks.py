"""A model's decoder blocks: where they are, and whether they put out what steering needs."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch

from data.errors import UserError
from interventions.traced.blocks import entrance, hidden
from interventions.traced.edits import EMBEDDING, attention_of

SHAPE_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale")  # of configurations
FINAL_NORMS = (
    "norm",
    "final_layernorm",
    "final_layer_norm",
    "ln_f",
    "norm_f",
    "embedding_norm",
    "final_norm",
    "ln_out",
    "layer_norm",
)


def decoder_path(module: Any, name: str) -> str:
    """Dotted path of the list of decoder blocks: the one ModuleList as long as the config says."""
    text_config = module.config.get_text_config()
    depth = getattr(text_config, "num_hidden_layers", None)
    paths = [
        path
        for path, child in module.named_modules()
        if isinstance(child, torch.nn.ModuleList) and len(child) == depth and not path.count(".layers.")
    ]
    if len(paths) != 1:
        raise UserError(
            f"model {name!r} ({type(module).__name__}): can't tell which modules are its decoder blocks "
            f"({len(paths)} lists of {depth}); this tool reads decoder-only models such as Llama"
        )
    return paths[0]


def blocks_below_base(module: Any, name: str) -> str:
    """Path of the list of decoder blocks below transformers' `base_model`: `layers`, `h`, `decoder.layers`.

    Args:
        module: transformers' model; its weights may be elsewhere.
        name: As the user named it.
    """
    blocks = module.get_submodule(decoder_path(module, name))
    return next(path for path, part in module.base_model.named_modules() if part is blocks)


def check_blocks(module: Any, blocks: Any, name: str) -> None:
    """One tiny forward: does each block put out the residual stream, (rows, tokens, d_model)?"""
    width = module.config.get_text_config().hidden_size
    shapes: list[tuple[int, ...] | None] = []

    def note(_module: Any, _inputs: Any, output: Any) -> None:
        states = hidden(output)
        shapes.append(tuple(states.shape) if isinstance(states, torch.Tensor) else None)

    hooks = [block.register_forward_hook(note) for block in blocks]
    try:
        with torch.no_grad():
            module(input_ids=torch.ones((1, 3), dtype=torch.long, device=entrance(module)))
    finally:
        for hook in hooks:
            hook.remove()
    if shapes != [(1, 3, width)] * len(blocks):
        raise UserError(
            f"model {name!r} ({type(module).__name__}): its blocks put out {sorted(set(map(str, shapes)))}, "
            f"not (1, 3, {width}); this tool can't steer such a model"
        )


def sites(root: Any, blocks: Sequence[Any], module: Any) -> list[tuple[int, Any]]:
    """What writes to the residual stream, with its number, in the order of the forward pass.

    The embeddings, and of each block its attention and its output. Where blocks are no Llama's, whose attention writes
    to the stream as it is: the blocks alone.

    Args:
        root: The model that is edited, transformers' or nnsight's.
        blocks: Its decoder blocks.
        module: transformers' model.
    """
    if not has_plain_blocks(module):
        return list(enumerate(blocks))
    embedding = module.get_input_embeddings()
    path = next(path for path, part in module.named_modules() if part is embedding)
    parts = [((attention_of(layer), block.self_attn), (layer, block)) for layer, block in enumerate(blocks)]
    return [(EMBEDDING, attrgetter(path)(root)), *(part for pair in parts for part in pair)]


def has_plain_blocks(module: Any) -> bool:
    """Whether a model's blocks are plain: each attention's output goes to the stream as it is."""
    return is_plain(module.get_submodule(f"{decoder_path(module, '')}.0"))


def is_plain(block: Any) -> bool:
    """Whether a block is stream + attention, then + feed-forward, with nothing behind either but the sum."""
    parts = {name for name, _ in block.named_children()}
    return parts == {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


def head_path(module: Any) -> str:
    """Dotted path of the unembedding."""
    head = module.get_output_embeddings()
    return next(path for path, child in module.named_modules() if child is head)


def logits_from(network: Any, module: Any) -> Any:
    """The envoy that puts out a model's logits: its unembedding, or the whole where something shapes them after it."""
    shaped = any(getattr(module.config.get_text_config(), name, None) for name in SHAPE_LOGITS)
    return network if shaped else attrgetter(head_path(module))(network)


def final_norm(module: Any, name: str) -> str:
    """Dotted path of the norm after the last decoder block, which stands beside the list of blocks.

    Raises:
        UserError: None by a known name, or no unembedding.
    """
    parent = decoder_path(module, name).rpartition(".")[0]
    here = dict(module.get_submodule(parent).named_children())
    known = [name for name in FINAL_NORMS if name in here]
    if not known or module.get_output_embeddings() is None:
        raise UserError(f"model {name!r}: can't find its final norm and unembedding for the logit lens")
    return ".".join(filter(None, (parent, known[0])))
