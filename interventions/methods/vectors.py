"""Steering vectors: a direction for each category and layer; looking at them, saving and loading them."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch

from data.contract import DEFAULT_UNIT, MEAN
from data.errors import UserError
from data.store.activations import are_layers, are_numbers, spans
from data.store.tensors import load_tensors, save_tensors
from interventions.methods.direction import Direction
from interventions.model.fits import check_model

if TYPE_CHECKING:
    from interventions.model.model import Model

FORMAT = "refusal-steering/1"
RESERVED = "__metadata__"


@dataclass(frozen=True)
class SteeringVectors:
    """One direction in the residual stream a category and layer.

    Attributes:
        tensors: Category -> float32 (layers, d_model), in the order of `layers`.
        metadata: What the contract asks for, every value a string.
    """

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def layers(self) -> list[int]:
        """Block numbers of the rows of each tensor."""
        return json.loads(self.metadata["layers"])

    @property
    def categories(self) -> list[str]:
        """Names, in the order in which they were computed."""
        return list(json.loads(self.metadata["counts"]))

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return next(iter(self.tensors.values())).shape[-1]

    def at(self, layer: int, category: str = MEAN) -> torch.Tensor:
        """The vector of a category at a layer, (d_model,) float32; `mean` is the mean of all categories'.

        Raises:
            UserError: No such layer or category.
        """
        if layer not in self.layers:
            raise UserError(f"no vectors at layer {layer}; they are at {spans(self.layers)}")
        index = self.layers.index(layer)
        if category in self.tensors:
            return self.tensors[category][index]
        if category == MEAN:
            return torch.stack([tensor[index].double() for tensor in self.tensors.values()]).mean(0).float()
        raise UserError(f"no vector for category {category!r}; there are {', '.join(map(repr, self.tensors))}")

    def delta(self, layer: int, category: str, strength: float, unit: str) -> torch.Tensor:
        """What is added to the residual stream, (d_model,) float32.

        `raw`: strength · v; `unit`: strength · v/‖v‖; `residual`: strength · v/‖v‖ · the mean residual norm at
        that layer and the extraction position.

        Raises:
            UserError: The vector is zero or not finite.
        """
        vector = self.at(layer, category)
        check_steers(vector, f"the vector of {category!r} at layer {layer}")
        if unit == "raw":
            return strength * vector
        norm = float(vector.double().norm())
        scale = json.loads(self.metadata["residual_norms"])[self.layers.index(layer)] if unit == "residual" else 1.0
        return strength * scale / norm * vector

    def direction(self, category: str = MEAN, unit: str = DEFAULT_UNIT) -> Direction:
        """What a strength of 1 adds at each layer, to reckon with: `vectors["mean"] * -0.3` is what the arm `fixed` adds.

        Raises:
            UserError: No such category, or its vector is zero or not finite at some layer.
        """
        tensor = torch.stack([self.delta(layer, category, 1.0, unit) for layer in self.layers])
        return Direction(tensor, self.layers, self.metadata, category)

    def __getitem__(self, category: str) -> Direction:
        """The direction of a category, or of `mean`, in units of the residual stream's mean length."""
        return self.direction(category)

    @classmethod
    def of(cls, direction: Direction) -> "SteeringVectors":
        """A direction as vectors of a single category, called as it is, whose strength 1 in the unit `raw` is all of it."""
        counts = {"counts": json.dumps({direction.name: 0}), "layers": json.dumps(direction.layers)}
        return cls({direction.name: direction.tensor}, dict(direction.metadata) | counts)

    def table(self, layer: int) -> pl.DataFrame:
        """Norm, rows behind it and cosine with every other category, one row a category."""
        counts = json.loads(self.metadata["counts"])
        matrix = np.stack([self.at(layer, name).double().numpy() for name in self.categories])
        norms = np.linalg.norm(matrix, axis=1)
        unit = matrix / np.where(norms == 0, 1, norms)[:, None]
        cosines = unit @ unit.T
        columns = {"category": self.categories, "rows": [counts[name] for name in self.categories], "norm": norms}
        columns |= {f"cos {name}": cosines[:, at] for at, name in enumerate(self.categories)}
        return pl.DataFrame(columns)

    def check(self, model: "Model") -> None:
        """Do these vectors belong to this model?

        Raises:
            UserError: Another model, width, site, or layers that the model does not have.
        """
        check_model("the vectors", self.metadata, self.d_model, self.layers, model)

    def save(self, path: Path) -> None:
        """Write safetensors."""
        save_tensors(path, self.tensors, self.metadata)

    @classmethod
    def load(cls, path: Path | str) -> "SteeringVectors":
        """Read safetensors.

        Raises:
            UserError: The file is missing, is no such file, or lacks what the format asks for.
        """
        path = Path(path)
        needed = ("model", "layers", "site", "counts", "residual_norms")
        tensors, metadata = load_tensors(path, "vectors", FORMAT, needed)
        try:
            parts = [json.loads(metadata[name]) for name in ("layers", "residual_norms", "counts")]
        except (ValueError, RecursionError):
            raise UserError(f"{path}: its metadata is damaged") from None
        layers, norms, counts = parts
        if not are_layers(layers):
            raise UserError(f"{path}: the layers in its metadata are not ascending numbers from 0 on")
        if not are_numbers(norms) or min(norms, default=0) <= 0 or len(norms) != len(layers):
            raise UserError(f"{path}: its metadata has no residual norm, a number above 0, for each of its layers")
        if not isinstance(counts, dict) or not are_numbers(list(counts.values())):
            raise UserError(f"{path}: the counts in its metadata are not rows by category")
        depth, names = len(layers), list(counts)
        shapes = {tuple(tensor.shape) for tensor in tensors.values()}
        if len(shapes) != 1 or len(next(iter(shapes))) != 2 or next(iter(shapes))[0] != depth:
            raise UserError(f"{path}: tensors of {sorted(shapes)}, where its metadata names {depth} layers")
        if set(names) != set(tensors):
            raise UserError(f"{path}: its metadata names other categories than its tensors")
        check_names(names)
        return cls({name: tensors[name] for name in names}, metadata)


def check_steers(vector: torch.Tensor, called: str) -> None:
    """Does a vector steer?

    Raises:
        UserError: It is zero, or holds what is no finite number.
    """
    if not torch.isfinite(vector).all():
        raise UserError(f"{called} is not finite; run `vectors` again, with --dtype float32")
    if not vector.any():
        raise UserError(f"{called} is zero; it has no direction")


def check_names(names: Collection[str]) -> None:
    """May categories be called this?

    Raises:
        UserError: One has the name of the mean of all, which would steer with its own vector instead; or the one under
            which the file's format keeps its metadata.
    """
    if RESERVED in names:
        raise UserError(f"a category can't be called {RESERVED!r}, where safetensors keeps its metadata; rename it")
    if MEAN in names:
        raise UserError(f"a category can't be called {MEAN!r}, which names the mean of all vectors; rename it")
