"""A gate on disk: what it reads, its weights and threshold; and what every gate can do."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from data.errors import UserError
from data.store.tensors import check_shapes, load_tensors, save_tensors
from interventions.gates.words import counted
from interventions.model.fits import check_model
from interventions.model.model import Model
from interventions.traced.gating import Gate

FORMAT = "refusal-steering/gate/1"


class AnyGate(Protocol):
    """What arms ask of a gate."""

    def check(self, model: Model, /) -> None:
        """Does it belong to this model? A UserError if not."""
        ...

    def shipped(self, model: Model, prompts: Sequence[Mapping[str, Any]], /) -> Gate:
        """It as a trace needs it; of prompts only a gate over words reads the text, and only `perfect` the label."""
        ...

    @property
    def parts(self) -> Sequence[torch.Tensor]:
        """All that its decisions rest on."""
        ...


@dataclass(frozen=True)
class LinearGate:
    """score = sigmoid((x − mean)·weight + bias), harmful from `threshold` on.

    Attributes:
        weight: (x,) float32.
        mean: (x,) float32.
        bias: (1,) float32.
        threshold: (1,) float32.
        metadata: kind, model, revision, site, and what x is: `reads` (JSON, [[layer, position], …]) or
            `words` (JSON).
    """

    weight: torch.Tensor
    mean: torch.Tensor
    bias: torch.Tensor
    threshold: torch.Tensor
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def reads(self) -> tuple[tuple[int, str], ...]:
        """Where x stands in the residual stream; nowhere for a gate over words."""
        return tuple((int(layer), str(position)) for layer, position in json.loads(self.metadata.get("reads", "[]")))

    @property
    def parts(self) -> Sequence[torch.Tensor]:
        """Its tensors."""
        return self.weight, self.mean, self.bias, self.threshold

    def check(self, model: Model) -> None:
        """Does it belong to this model?

        Raises:
            UserError: It was fitted on another model, width or site.
        """
        if self.reads:
            width, layers = len(self.weight) // len(self.reads), [layer for layer, _ in self.reads]
            check_model(f"the gate's ({self.metadata['kind']}) activations", self.metadata, width, layers, model)

    def shipped(self, _model: Model, prompts: Sequence[Mapping[str, Any]]) -> Gate:
        """It as a trace needs it; a gate over words has read the prompts."""
        gate = Gate(self.reads, self.weight, self.mean, self.bias, self.threshold)
        if "words" in self.metadata:
            x = torch.from_numpy(counted([row["prompt"] for row in prompts], json.loads(self.metadata["words"])))
            return gate._replace(given=torch.sigmoid((x - self.mean) @ self.weight + self.bias))
        return gate

    def save(self, path: Path) -> None:
        """Write safetensors."""
        tensors = {"weight": self.weight, "mean": self.mean, "bias": self.bias, "threshold": self.threshold}
        save_tensors(path, tensors, {"format": FORMAT, **self.metadata})

    @classmethod
    def load(cls, path: Path) -> "LinearGate":
        """Read safetensors.

        Raises:
            UserError: The file is missing or no gate.
        """
        tensors, metadata = load_tensors(path, "gate", FORMAT, ("kind", "model", "site"))
        width = tuple(tensors["weight"].shape)[:1] if "weight" in tensors else (0,)
        check_shapes(path, tensors, {"weight": width, "mean": width, "bias": (1,), "threshold": (1,)})
        gate = cls(tensors["weight"], tensors["mean"], tensors["bias"], tensors["threshold"], metadata)
        try:
            sizes = [len(json.loads(metadata[name])) for name in ("reads", "words") if name in metadata]
            whole = len(sizes) == 1 and (width[0] % sizes[0] == 0 if "reads" in metadata else width[0] == sizes[0])
            whole = whole and gate.reads is not None
        except (ValueError, TypeError, ZeroDivisionError):
            whole = False
        if not whole:
            raise UserError(f"{path}: its metadata does not say what its weights are of; run probe again")
        return gate


class PerfectGate:
    """The row's own label: an upper bound, not a method."""

    parts: Sequence[torch.Tensor] = ()

    def check(self, _model: Model) -> None:
        """It belongs to every model."""

    def shipped(self, _model: Model, prompts: Sequence[Mapping[str, Any]]) -> Gate:
        """1 for harmful rows, 0 for others."""
        labels = torch.tensor([float(row["label"] == "harmful") for row in prompts])
        nothing = torch.zeros(0)
        return Gate((), nothing, nothing, torch.zeros(1), torch.tensor([0.5]), given=labels)
