"""A steered model as an ordinary model folder, which transformers opens without this tool.

Adding: a bias on one block's `down_proj`. Ablating: the direction projected out of every matrix that writes to the
residual stream (Arditi et al. 2024, arXiv 2406.11717, section 4.1: weight orthogonalization).
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch

from data.errors import UserError
from data.store.rundir import appearing
from interventions.model.model import Model

RECORD = "baked.json"


def bake_add(model: Model, out: Path, layer: int, delta: torch.Tensor, record: dict[str, Any] | None = None) -> Path:
    """Write a model that adds `delta` to what block `layer` puts out, at every position (scope `all`).

    A Llama block ends with residual + down_proj(…), so a bias there is the addition. transformers' `mlp_bias` gives
    every block's three projections a bias: all others are zero.

    Args:
        model: An open model with its weights here; it is not changed.
        out: The folder to write; one that this function wrote before is replaced.
        layer: Block number.
        delta: (d_model,).
        record: What to note in the folder's `baked.json`, beside the model's name.

    Raises:
        UserError: No such layer, a width that is not the model's, no `mlp_bias` in its configuration, or a folder
            that is something else already.
    """
    config, weights = _parts(model, delta)
    if not 0 <= layer < model.n_layers:
        raise UserError(f"layer {layer}: model {model.name!r} has layers 0 to {model.n_layers - 1}")
    if not hasattr(config, "mlp_bias"):
        raise UserError(f"model {model.name!r}: a {config.model_type} block has no place for a bias; bake a Llama")
    config.mlp_bias = True
    for name in [
        name for name in weights if name.endswith((".gate_proj.weight", ".up_proj.weight", ".down_proj.weight"))
    ]:
        matrix = weights[name]
        weights.setdefault(name.removesuffix("weight") + "bias", torch.zeros(matrix.shape[0], dtype=matrix.dtype))
    bias = next(name for name in weights if name.endswith(f".layers.{layer}.mlp.down_proj.bias"))
    weights[bias] = (weights[bias].double().cpu() + delta.double().cpu()).to(weights[bias].dtype)
    return _write(model, config, weights, out, {"operation": "add", "layer": layer, **(record or {})})


def bake_ablate(model: Model, out: Path, direction: torch.Tensor, record: dict[str, Any] | None = None) -> Path:
    """Write a model that can't write `direction` to its residual stream, at any layer and position.

    W ← W − v̂(v̂ᵀW) for the embeddings, every `o_proj` and every `down_proj`, their biases likewise. Embeddings tied
    to the output matrix are untied first: reading the stream must stay as it was.

    Args:
        model: An open model with its weights here; it is not changed.
        out: The folder to write; one that this function wrote before is replaced.
        direction: (d_model,), of any length but zero.
        record: What to note in the folder's `baked.json`, beside the model's name.

    Raises:
        UserError: A zero direction, a width that is not the model's, unknown matrices, or a folder that is something
            else already.
    """
    config, weights = _parts(model, direction)
    if not float(direction.double().norm()):
        raise UserError("the direction to ablate is zero")
    unit = direction.double() / direction.double().norm()
    paths = {module: f"{path}.weight" for path, module in model.module.named_modules()}
    embedding, head = paths[model.module.get_input_embeddings()], paths[model.module.get_output_embeddings()]
    writers = [name for name in weights if ".o_proj." in name or ".down_proj." in name]
    if len(writers) < 2 * model.n_layers:
        raise UserError(f"model {model.name!r}: its blocks don't write through o_proj and down_proj; bake a Llama")
    if config.tie_word_embeddings:
        config.tie_word_embeddings = False
        weights[head] = weights[head].clone()
    for name in writers:
        weights[name] = _without(weights[name], unit, axis=0)
    # An embedding's rows are what it writes; a linear layer's columns are.
    weights[embedding] = _without(weights[embedding], unit, axis=-1)
    return _write(model, config, weights, out, {"operation": "ablate", **(record or {})})


def _without(matrix: torch.Tensor, unit: torch.Tensor, axis: int) -> torch.Tensor:
    """The matrix with `unit` projected out along an axis, computed in float64."""
    moved = matrix.detach().double().movedim(axis, -1)
    unit = unit.to(moved.device)
    return (moved - (moved @ unit)[..., None] * unit).movedim(-1, axis).to(matrix.dtype).contiguous()


def _parts(model: Model, vector: torch.Tensor) -> tuple[Any, dict[str, torch.Tensor]]:
    """A copy of the configuration, and the weights by name, shared with the open model."""
    if any(parameter.is_meta for parameter in model.module.parameters()):
        raise UserError(f"the weights of {model.name!r} are not here; bake with --local")
    if tuple(vector.shape) != (model.d_model,):
        raise UserError(f"a vector of {tuple(vector.shape)}, where model {model.name!r} is {model.d_model} wide")
    return copy.deepcopy(model.module.config), dict(model.module.state_dict())


def _write(model: Model, config: Any, weights: dict[str, torch.Tensor], out: Path, record: dict[str, Any]) -> Path:
    """Save configuration, weights and tokenizer to a folder that appears whole."""
    if out.exists() and not (out / RECORD).exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already and is no baked model; pass another --out")
    with torch.device("meta"):
        module = type(model.module)(config)
    module.load_state_dict(weights, assign=True)
    module.generation_config = copy.deepcopy(model.module.generation_config)
    with appearing(out, replace=True) as folder:
        module.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        noted = {"model": model.name, "revision": model.revision, **record}
        (folder / RECORD).write_text(json.dumps(noted, indent=2, ensure_ascii=False) + "\n")
    return out
