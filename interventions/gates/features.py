"""What gates read of prompts, as it was read for fitting, and what a kind of gate says of itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from data.store.activations import Activations, Position
from data.store.projections import AtLayer
from interventions.gates.gate import FittedGate
from interventions.gates.words import counted
from interventions.model.model import Model
from interventions.traced.gating import Read


@dataclass(frozen=True)
class Features:
    """What was read of N prompts.

    Attributes:
        texts: The prompts.
        n_layers: The model's blocks.
        files: Position -> their activations at some layers, row by row; read layer by layer. Or a layer's projections.
        places: (N,) each prompt's row in those files; None: as they stand.
        tokens: Names of the control tokens.
        log_probabilities: (N, tokens) of these at the first generated position, unsteered.
        categories: (N,) each prompt's, of harmful ones that of what they ask for; empty: none is known.
    """

    texts: Sequence[str]
    n_layers: int = 0
    files: Mapping[str, Activations | Position | AtLayer] = field(default_factory=dict)
    places: np.ndarray | None = None
    tokens: Sequence[str] = ()
    log_probabilities: np.ndarray | None = None
    categories: Sequence[str | None] = ()

    def residual(self, read: Read, rows: np.ndarray) -> np.ndarray:
        """One layer at one position of some rows: float64 (rows, d_model)."""
        layer, position = read
        return self.files[position].layer(layer, rows if self.places is None else self.places[rows]).astype(np.float64)

    def x(self, gate: FittedGate, rows: np.ndarray) -> np.ndarray:
        """What a gate reads of some rows: (rows, x)."""
        if gate.reads:
            return np.concatenate([self.residual(read, rows) for read in gate.reads], axis=1)
        if gate.vocabulary:
            return counted([self.texts[int(row)] for row in rows], gate.vocabulary)
        assert self.log_probabilities is not None
        return self.log_probabilities[rows]

    def score(self, gate: FittedGate, rows: np.ndarray) -> np.ndarray:
        """A gate's score of some rows, as in a trace: (rows,) float32."""
        return self._score(gate, rows).numpy()

    def _score(self, gate: FittedGate, rows: np.ndarray) -> torch.Tensor:
        if gate.members:
            return gate.joined([self._score(member, rows) for member in gate.members.values()])
        return gate.score(torch.from_numpy(self.x(gate, rows)))


Fit = Callable[[Features, np.ndarray, np.ndarray, Sequence[str]], FittedGate]


class Kind(NamedTuple):
    """A kind of gate.

    Attributes:
        fit: Features, row numbers, (rows,) whether each is harmful, and (rows,) each one's theme -> a gate without a threshold
            whose metadata says what it reads.
        reads: Everything that it may read of the residual stream of a model.
        reads_tokens: Whether it reads the control tokens' log-probabilities.
    """

    fit: Fit
    reads: Callable[[Model], list[Read]] = lambda _model: []
    reads_tokens: bool = False


def scaled(position: str, layers: Sequence[int], n_layers: int) -> list[Read]:
    """Blocks of a model of 30, as many of one of so many, at a position."""
    return [
        (layer, position)
        for layer in dict.fromkeys(min(round(layer / 30 * n_layers), n_layers - 1) for layer in layers)
    ]


def fitted(weight: np.ndarray, mean: np.ndarray, bias: float, **metadata: str) -> FittedGate:
    """A gate in float32; the threshold comes later."""
    parts = [torch.from_numpy(np.array(part, np.float32).reshape(-1)) for part in (weight, mean, bias, 0.5)]
    return FittedGate(parts[0], parts[1], parts[2], parts[3], metadata)
