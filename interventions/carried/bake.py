"""A steered model as an ordinary model folder, which transformers opens without this tool.

Adding: a bias on what a block writes last. Ablating: the direction projected out of every matrix that writes to the
residual stream (Arditi et al. 2024, arXiv 2406.11717, section 4.1: weight orthogonalization). Where a block scales or
normalises what it writes, neither need be steering: before anything is written the baked model runs beside the steered
one (`proof`).
"""

import copy
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data.errors import UserError
from data.store.rundir import appearing
from interventions.carried.proof import MOST, Found, Proof, rounding_of
from interventions.carried.writers import embeddings, projections
from interventions.methods.vectors import check_steers
from interventions.model.blocks import decoder_path
from interventions.model.model import Model
from interventions.model.placing.quantised import check_plain_weights

RECORD = "baked.json"

Weights = dict[str, torch.Tensor]


class Baked(NamedTuple):
    """A baked model that was proven to be the steered one: configuration, weights by name, and what to note of it."""

    config: Any
    weights: Weights
    record: dict[str, Any]


def bake_add(model: Model, out: Path, layer: int, delta: torch.Tensor, record: dict[str, Any] | None = None) -> Path:
    """Write a model that adds `delta` to what block `layer` puts out, at every position (scope `all`).

    A Llama block ends with residual + down_proj(…), so a bias there is the addition; a family that multiplies what it
    writes gets a bias that is larger by as much. transformers' `mlp_bias` gives every block's three projections a bias:
    all others are zero.

    Args:
        model: An open model with its weights here; it is not changed.
        out: The folder to write; one that this function wrote before is replaced.
        layer: Block number.
        delta: (d_model,).
        record: What to note in the folder's `baked.json`, beside the model's name.

    Raises:
        UserError: No such layer, a vector of another width, zero or not finite, no place for a bias, a baked model that
            is not the steered one, or a folder that is something else already.
    """
    _check_out(out)
    return _write(model, added(model, layer, delta), out, record)


def added(model: Model, layer: int, delta: torch.Tensor) -> Baked:
    """What `bake_add` writes.

    Raises:
        UserError: As `bake_add`, but for the folder.
    """
    config, weights = _parts(model, delta)
    if not 0 <= layer < model.n_layers:
        raise UserError(f"layer {layer}: model {model.name!r} has layers 0 to {model.n_layers - 1}")
    kind = f"model {model.name!r}: a {config.model_type} block"
    place = next((one.bias for one in projections(model, layer)[-1:] if not one.fused), "")
    if place and place not in weights and hasattr(config, "mlp_bias"):
        config.mlp_bias = True
        for name, empty in _module(model, config, {}).state_dict().items():
            weights.setdefault(name, torch.zeros(empty.shape, dtype=empty.dtype))
    if place not in weights:
        raise UserError(f"{kind} has no place for a bias; bake a Llama, or use `export`")
    block = f"{decoder_path(model.module, model.name)}.{layer}"
    proof = Proof.of(model, [block], lambda states: states + delta.to(states.device, states.dtype))
    before = weights[place]

    def biased(share: float) -> Found:
        weights[place] = (before.double().cpu() + delta.double().cpu() / share).to(before.dtype)
        return proof.compare(_module(model, config, weights))

    found = biased(1.0)
    if not found.near:
        found = biased(found.share(layer, delta))
    if not found.near:
        raise UserError(f"{kind} makes another thing of a bias than the vector added to the stream ({found.most:.1g} apart "
                        "from steering): nothing is written; use `export`")  # fmt: skip
    return Baked(config, weights, {"operation": "add", "layer": layer, "apart": found.most})


def bake_ablate(model: Model, out: Path, direction: torch.Tensor, record: dict[str, Any] | None = None) -> Path:
    """Write a model that can't write `direction` to its residual stream, at any layer and position.

    W ← W − v̂(v̂ᵀW) for the embeddings and all that attention, feed-forward layers and experts write through, their
    biases likewise. Embeddings tied to the output matrix are untied first: reading the stream must stay as it was.

    Args:
        model: An open model with its weights here; it is not changed.
        out: The folder to write; one that this function wrote before is replaced.
        direction: (d_model,), of any length but zero.
        record: What to note in the folder's `baked.json`, beside the model's name.

    Raises:
        UserError: A direction of another width, zero or not finite, a model that writes it in other ways too, or a folder
            that is something else already.
    """
    _check_out(out)
    return _write(model, ablated(model, direction), out, record)


def ablated(model: Model, direction: torch.Tensor) -> Baked:
    """What `bake_ablate` writes.

    Raises:
        UserError: As `bake_ablate`, but for the folder.
    """
    config, weights = _parts(model, direction)
    unit = direction.double() / direction.double().norm()
    _untie(model, config, weights)
    writers = embeddings(model) + [one for layer in range(model.n_layers) for one in projections(model, layer)]
    for one in writers:
        weights[one.weight] = _without(weights[one.weight], unit, one.axis)
        if one.bias in weights:
            weights[one.bias] = _without(weights[one.bias], unit, axis=-1)
    parts = list(dict.fromkeys(one.part for one in writers))
    found = Proof.of(model, parts, lambda states: _without(states, unit, axis=-1)).compare(
        _module(model, config, weights)
    )
    left = found.left(unit)
    if not found.near or left > max(MOST, rounding_of(model)):
        raise UserError(f"model {model.name!r}: a {config.model_type} block writes the direction through more than its matrices "
                        f"({left:.2g} of the stream is left of it, {found.most:.1g} apart from steering): nothing is written; "
                        "use --arm ablate")  # fmt: skip
    return Baked(config, weights, {"operation": "ablate", "apart": found.most, "left": left})


def _untie(model: Model, config: Any, weights: Weights) -> None:
    head = next(
        (path for path, part in model.module.named_modules() if part is model.module.get_output_embeddings()), ""
    )
    for part in (config, config.get_text_config()):
        if getattr(part, "tie_word_embeddings", False):
            part.tie_word_embeddings = False
            weights[f"{head}.weight"] = weights[f"{head}.weight"].clone()


def _without(matrix: torch.Tensor, unit: torch.Tensor, axis: int) -> torch.Tensor:
    """The matrix with `unit` projected out along an axis, computed in float64."""
    moved = matrix.detach().double().movedim(axis, -1)
    unit = unit.to(moved.device)
    return (moved - (moved @ unit)[..., None] * unit).movedim(-1, axis).to(matrix.dtype).contiguous()


def _check_out(out: Path) -> None:
    if out.exists() and not (out / RECORD).exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already and is no baked model; pass another --out")


def _parts(model: Model, vector: torch.Tensor) -> tuple[Any, Weights]:
    """A copy of the configuration, and the weights by name, shared with the open model."""
    if model.backend.is_remote:
        raise UserError(f"the weights of {model.name!r} are not here; bake with --local")
    check_plain_weights(model, "bake")
    if tuple(vector.shape) != (model.d_model,):
        raise UserError(f"a vector of {tuple(vector.shape)}, where model {model.name!r} is {model.d_model} wide")
    check_steers(vector, "the vector to bake")
    return copy.deepcopy(model.module.config), dict(model.module.state_dict())


def _module(model: Model, config: Any, weights: Weights) -> Any:
    """A module of these weights, which it shares, and the open model's rotary tables and the like; without weights it is empty."""
    with torch.device("meta"):
        module = type(model.module)(config)
    if weights:
        module.load_state_dict({name: part.to(model.device) for name, part in weights.items()}, assign=True)
        for path, own in model.module.named_modules():
            tensors = {name: value for name, value in vars(own).items() if isinstance(value, torch.Tensor)}
            for name, value in (tensors | dict(own.named_buffers(recurse=False, remove_duplicate=False))).items():
                setattr(module.get_submodule(path), name, value)
    return module.eval()


def _write(model: Model, baked: Baked, out: Path, record: dict[str, Any] | None) -> Path:
    """Save configuration, weights and tokenizer to a folder that appears whole."""
    module = _module(model, baked.config, baked.weights)
    module.generation_config = copy.deepcopy(model.module.generation_config)
    with appearing(out, replace=True) as folder:
        module.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        noted = {"model": model.name, "revision": model.revision, **baked.record, **(record or {})}
        (folder / RECORD).write_text(json.dumps(noted, indent=2, ensure_ascii=False) + "\n")
    return out
