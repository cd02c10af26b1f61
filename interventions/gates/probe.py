"""Is this prompt harmful? A linear probe on one layer's residual stream, its threshold and how well it tells."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from data.errors import UserError
from data.store.tensors import check_shapes, load_tensors, save_tensors
from interventions.model.fits import check_model
from interventions.traced.gating import LAST, Gate, linear_score

if TYPE_CHECKING:
    from interventions.model.model import Model

FORMAT = "refusal-steering/probe/1"


@dataclass(frozen=True)
class Probe:
    """score = sigmoid((x − mean)·weight + bias), the same when its threshold is chosen and when it gates.

    Attributes:
        weight: (d_model,) float32.
        mean: (d_model,) float32; subtracted in training and in use (the published code forgets it in use).
        bias: (1,) float32.
        threshold: (1,) float32; a prompt whose score reaches it counts as harmful.
        metadata: model, revision, layer, site, position, method, auc, …, every value a string.
    """

    weight: torch.Tensor
    mean: torch.Tensor
    bias: torch.Tensor
    threshold: torch.Tensor
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def layer(self) -> int:
        """The block whose output it reads."""
        return int(self.metadata["layer"])

    @property
    def gate(self) -> Gate:
        """It as a trace needs it."""
        return Gate(((self.layer, LAST),), self.weight, self.mean, self.bias, self.threshold)

    @property
    def parts(self) -> tuple[torch.Tensor, ...]:
        """All that its decisions rest on."""
        return self.weight, self.mean, self.bias, self.threshold

    def shipped(self, _model: "Model", _prompts: object) -> Gate:
        """It as a trace needs it, whatever the prompts."""
        return self.gate

    def score(self, x: torch.Tensor) -> torch.Tensor:
        """How harmful each row looks: (rows, d_model) of any float type and device -> (rows,) float32, 0 to 1."""
        return linear_score(x.float(), Gate((), self.weight, self.mean, self.bias, self.threshold))

    def check(self, model: "Model") -> None:
        """Can it gate this model, at the last prompt token?

        Raises:
            UserError: It was fitted on another model, site or position.
        """
        check_model("the probe's activations", self.metadata, len(self.weight), [self.layer], model)
        if self.metadata["position"] != "last":
            raise UserError(f"the probe reads position {self.metadata['position']!r}, a gate the last prompt token")

    def save(self, path: Path) -> None:
        """Write safetensors."""
        tensors = {"weight": self.weight, "mean": self.mean, "bias": self.bias, "threshold": self.threshold}
        save_tensors(path, tensors, self.metadata)

    @classmethod
    def load(cls, path: Path) -> "Probe":
        """Read safetensors.

        Raises:
            UserError: The file is missing or no probe.
        """
        needed = ("model", "layer", "site", "position")
        tensors, metadata = load_tensors(path, "probe", FORMAT, needed)
        width = tuple(tensors["weight"].shape) if "weight" in tensors else (0,)
        check_shapes(path, tensors, {"weight": width[:1], "mean": width[:1], "bias": (1,), "threshold": (1,)})
        if not metadata["layer"].isdecimal():
            raise UserError(f"{path}: its metadata is damaged")
        return cls(tensors["weight"], tensors["mean"], tensors["bias"], tensors["threshold"], metadata)
