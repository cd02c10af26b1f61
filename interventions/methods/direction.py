"""A direction in the residual stream, to reckon with: `vectors["mean"] * -0.3 + vectors["Incomplete requests"] * 0.1`."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from data.errors import UserError
from data.store.activations import spans


@dataclass(frozen=True, eq=False)
class Direction:
    """What is added to the residual stream, a vector for each of some layers.

    Directions add up and take a factor: `a * -0.3`, `-a`, `a / 2`, `a + b`, `a - b`.

    Attributes:
        tensor: float32 (layers, d_model).
        layers: The blocks whose outputs its rows are for, ascending.
        metadata: Of the vectors it was reckoned from: which model's they are.
        name: How it was reckoned.
    """

    tensor: torch.Tensor
    layers: list[int]
    metadata: Mapping[str, str]
    name: str

    def at(self, layer: int) -> torch.Tensor:
        """What is added behind a block, (d_model,) float32.

        Raises:
            UserError: It has nothing for this layer.
        """
        if layer not in self.layers:
            raise UserError(f"{self.name} has no vector at layer {layer}; there are {spans(self.layers)}")
        return self.tensor[self.layers.index(layer)]

    def norms(self) -> torch.Tensor:
        """Its length at each layer, (layers,)."""
        return self.tensor.norm(dim=-1)

    def cosine(self, other: "Direction") -> torch.Tensor:
        """Cosine with another direction at each layer, (layers,); NaN where either is zero.

        Raises:
            UserError: They are of different models or layers.
        """
        self._check(other)
        mine, others = self.tensor.double(), other.tensor.double()
        return ((mine * others).sum(-1) / (mine.norm(dim=-1) * others.norm(dim=-1))).float()

    def __mul__(self, factor: float) -> "Direction":
        """So many times as long."""
        return Direction(self.tensor * factor, self.layers, self.metadata, f"{factor:g}·{self._term()}")

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "Direction":
        """A fraction of it."""
        return self * (1 / divisor)

    def __neg__(self) -> "Direction":
        """The opposite."""
        return self * -1.0

    def __add__(self, other: "Direction") -> "Direction":
        """Both at once.

        Raises:
            UserError: They are of different models or layers.
        """
        self._check(other)
        return Direction(self.tensor + other.tensor, self.layers, self.metadata, f"{self.name} + {other.name}")

    def __sub__(self, other: "Direction") -> "Direction":
        """This without the other."""
        return self + -other

    def _term(self) -> str:
        """Its name as a factor's operand."""
        return f"({self.name})" if " + " in self.name else self.name

    def _check(self, other: "Direction") -> None:
        if self.layers != other.layers or self.tensor.shape != other.tensor.shape:
            raise UserError(f"{self.name} is of layers {spans(self.layers)}, {other.name} of {spans(other.layers)}: "
                            "take both from vectors of the same layers")  # fmt: skip
        if self.metadata.get("model") != other.metadata.get("model"):
            raise UserError(
                f"{self.name} is of {self.metadata.get('model')!r}, {other.name} of {other.metadata.get('model')!r}"
            )
