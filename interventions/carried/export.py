"""Steering vectors carried away: llama.cpp control vectors, lm-eval's steered model, PyTorch, safetensors.

Every file holds what this tool itself would add to the residual stream: category, layer, strength and unit are
settled here, so that the reader's own strength is 1. The formats add at every position (scope `all`).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from data.contract import FORMATS, MEAN, ONE_VECTOR
from data.errors import UserError
from data.store.rundir import replacing
from interventions.methods.vectors import SteeringVectors


@dataclass(frozen=True)
class Carried:
    """What a file is written from.

    Attributes:
        deltas: Category -> what is added, float32 (layers, d_model).
        layers: Block numbers of its rows.
        metadata: Where it comes from, every value a string.
        blocks: What lm-eval calls the list of blocks.
    """

    deltas: dict[str, torch.Tensor]
    layers: list[int]
    metadata: dict[str, str]
    blocks: str = "layers"


def export(
    vectors: SteeringVectors,
    format: str,
    out: Path,
    *,
    layers: Sequence[int],
    category: str | None = None,
    strength: float = 1.0,
    unit: str = "raw",
    blocks: str = "layers",
) -> Path:
    """Write steering vectors for another program.

    `gguf` and `lm-eval` hold one vector a layer: that of `category`, by default the mean of all categories'. `pt` and
    `safetensors` hold one tensor a category, (layers, d_model), unless `category` names one.

    Args:
        vectors: What to write.
        format: A key of `FORMATS`.
        out: The file.
        layers: Blocks whose output is added to.
        category: Whose vector.
        strength: How much of it.
        unit: One of `vectors.UNITS`.
        blocks: For lm-eval: path of the list of blocks below `model.base_model`, of `blocks_below_base`.

    Returns:
        The file's path.

    Raises:
        UserError: An unknown format, a layer or category without a vector, layer 0 for gguf, or an ending that the
            format's reader would not take.
    """
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}; there are {', '.join(FORMATS)}")
    if out.suffix != FORMATS[format]:
        raise UserError(f"{out}: a {format} file ends in {FORMATS[format]}")
    layers = sorted(set(layers))
    names = [category or MEAN] if format in ONE_VECTOR else [category] if category else vectors.categories
    deltas = {
        name: torch.stack([vectors.delta(layer, name, strength, unit) for layer in layers]).contiguous()
        for name in names
    }
    kept = ("model", "revision", "site", "method", "position")
    metadata = {name: vectors.metadata[name] for name in kept if name in vectors.metadata} | {
        "layers": json.dumps(layers),
        "strength": str(strength),
        "strength_unit": unit,
    }
    carried = Carried(deltas, layers, metadata, blocks)
    with replacing(out) as unfinished:
        WRITERS[format](carried, unfinished)
    return out


def write_gguf(carried: Carried, path: Path) -> None:
    """A control vector for llama.cpp's `--control-vector`.

    Tensors `direction.N`, float32 (d_model,). N is this tool's layer number: `llama_adapter_cvec::apply_to`
    (llama.cpp, src/llama-adapter.cpp) adds tensor `il` to what block `il`, counted from 0, puts out, after its
    feed-forward part (`build_cvec` in `llm_build_llama`). Block 0 has no slot: `llama_adapter_cvec::init` pushes a
    null tensor for it, and `common_control_vector_load_one` (common/common.cpp) gives a file with `direction.0` up.
    The two keys beside the architecture are those that repeng, the format's origin, writes.

    Raises:
        UserError: Layer 0 is among the layers.
    """
    if 0 in carried.layers:
        raise UserError("llama.cpp's control vectors have no slot for layer 0; pass another --layer")
    try:
        import gguf
    except ImportError:
        raise UserError("--format gguf needs the package gguf: pip install gguf") from None

    (delta,) = carried.deltas.values()
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(carried.layers))
    for layer, row in zip(carried.layers, delta, strict=True):
        writer.add_tensor(f"direction.{layer}", row.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_lm_eval(carried: Carried, path: Path) -> None:
    """A file for lm-eval's `--model steered --model_args pretrained=MODEL,steer_path=FILE`.

    Hook point -> what to do there, as `SteeredModel.__init__` (lm_eval/models/hf_steered.py, 0.4.13) reads it; hook points
    are names of modules below `model.base_model`, for Llama `layers.N`, for GPT-2 `h.N`. It adds at every position.
    """
    (delta,) = carried.deltas.values()
    plan = {
        f"{carried.blocks}.{layer}": {
            "steering_vector": row.clone(),
            "steering_coefficient": 1.0,
            "action": "add",
            "bias": None,
            "head_index": None,
        }
        for layer, row in zip(carried.layers, delta, strict=True)
    }
    torch.save(plan, path)


def write_pt(carried: Carried, path: Path) -> None:
    """`torch.save` of {"vectors": {category: (layers, d_model)}, "layers": [...], "metadata": {...}}.

    For others to read; this tool never reads a pickle.
    """
    torch.save({"vectors": carried.deltas, "layers": carried.layers, "metadata": carried.metadata}, path)


def write_safetensors(carried: Carried, path: Path) -> None:
    """One tensor a category, (layers, d_model), with its origin as metadata."""
    from safetensors.torch import save_file

    save_file(carried.deltas, path, carried.metadata)


WRITERS: dict[str, Callable[[Carried, Path], None]] = {
    "gguf": write_gguf,
    "lm-eval": write_lm_eval,
    "pt": write_pt,
    "safetensors": write_safetensors,
}
