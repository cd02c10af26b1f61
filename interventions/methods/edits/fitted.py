"""A method's own tensors: on disk, and whether they fit a model."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from data.contract import EDITS
from data.errors import UserError
from data.store.activations import are_layers, spans
from data.store.tensors import check_shapes, load_tensors, save_tensors
from interventions.model.fits import check_model

if TYPE_CHECKING:
    from interventions.model.model import Model

FORMAT = "refusal-steering/method/1"
TENSORS = {
    "affine": ("mean",),
    "alphasteer": ("refusal", "towards", "away"),
    "angular": ("plane",),
    "false-refusal": ("false_refusal", "refusal"),
}


@dataclass(frozen=True)
class FittedMethod:
    """What a method was fitted to.

    Attributes:
        tensors: float32; (layers, d_model) each, but `plane` (2, d_model).
        metadata: method, model, revision, layers, site, position, counts, …, every value a string.
    """

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]

    @property
    def method(self) -> str:
        """A key of `EDITS`."""
        return self.metadata["method"]

    @property
    def layers(self) -> list[int]:
        """The blocks whose outputs it was fitted to."""
        return json.loads(self.metadata["layers"])

    @property
    def parts(self) -> Sequence[torch.Tensor]:
        """Its tensors."""
        return tuple(self.tensors.values())

    def at(self, layer: int, name: str) -> torch.Tensor:
        """A tensor at a layer, (d_model,).

        Raises:
            UserError: It was not fitted there.
        """
        if layer not in self.layers:
            raise UserError(f"{self.method} was not fitted at layer {layer} but at {spans(self.layers)}; run extract with "
                            "more --layers, or give the arm others")  # fmt: skip
        return self.tensors[name][self.layers.index(layer)]

    def check(self, model: "Model") -> None:
        """Does it belong to this model?

        Raises:
            UserError: It was fitted to another model, width or site.
        """
        width = next(iter(self.tensors.values())).shape[-1]
        check_model(f"{self.method}'s activations", self.metadata, width, self.layers, model)

    def save(self, path: Path) -> None:
        """Write safetensors."""
        save_tensors(path, self.tensors, {"format": FORMAT, **self.metadata})

    @classmethod
    def load(cls, path: Path) -> "FittedMethod":
        """Read safetensors.

        Raises:
            UserError: The file is missing or holds no method's tensors.
        """
        tensors, metadata = load_tensors(path, "method", FORMAT, ("method", "model", "layers", "site"))
        layers: list[int] = []
        with suppress(ValueError, RecursionError):
            layers = json.loads(metadata["layers"])
        if metadata["method"] not in EDITS or not are_layers(layers):
            raise UserError(f"{path}: its metadata is damaged; run vectors --method again")
        width = next(iter(tensors.values())).shape[-1:]
        rows = {name: 2 if name == "plane" else len(layers) for name in TENSORS[metadata["method"]]}
        check_shapes(path, tensors, {name: (count, *width) for name, count in rows.items()})
        return cls({name: tensors[name] for name in rows}, metadata)
