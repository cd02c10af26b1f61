"""Gates inside a trace: what they read of a prompt in the passes that there are anyway, and the score they make of it."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from collections.abc import Sequence
from typing import NamedTuple

import torch

from interventions.traced.blocks import Blocks

LAST = "last"
Read = tuple[int, str]  # a block, and a position: `last`, or a mark's
States = dict[Read, torch.Tensor]  # (rows, d_model) float32


class Gate(NamedTuple):
    """score = sigmoid((x − mean)·weight + bias), harmful from `threshold` on.

    Attributes:
        reads: Where x stands in the residual stream, one piece behind the other; or none.
        weight: (x,).
        mean: (x,).
        bias: (1,).
        threshold: (1,).
        given: (rows,) scores that are known before, from the prompts' words or labels; None: x is read.
    """

    reads: tuple[Read, ...]
    weight: torch.Tensor
    mean: torch.Tensor
    bias: torch.Tensor
    threshold: torch.Tensor
    given: torch.Tensor | None = None

    def for_rows(self, rows: Sequence[int]) -> "Gate":
        """The gate for some of the rows that it has scores of."""
        return self if self.given is None else self._replace(given=self.given[torch.tensor(list(rows))])


class Marks(NamedTuple):
    """What gates read in the passes over a batch's prompts.

    Attributes:
        blocks: Those that are read, ascending.
        reads: Blocks and positions.
        weights: Position -> (rows, columns) whose weighted sum over columns is read; `last` needs none.
    """

    blocks: Blocks
    reads: tuple[Read, ...]
    weights: dict[str, torch.Tensor]


def begun(marks: Marks, rows: int) -> States:
    """Sums to add to, empty."""
    return dict.fromkeys((read for read in marks.reads if read[1] != LAST), torch.zeros(rows, 1))


def added(sums: States, marks: Marks, number: int, states: torch.Tensor, rows: torch.Tensor, columns: slice) -> None:
    """Add what some columns of some rows hold at a block: (rows, columns, d_model), or (1, columns, d_model) for all alike."""
    for (layer, position), total in list(sums.items()):
        if layer == number:
            share = marks.weights[position].to(states.device)[rows.to(states.device)][:, columns]
            part = torch.einsum("rc,rcd->rd", share, states.float().expand(len(share), -1, -1))
            whole = total.to(states.device).expand(-1, states.shape[-1]).clone()
            whole[rows.to(states.device)] += part
            sums[layer, position] = whole


def score(gate: Gate, states: States, device: torch.device) -> torch.Tensor:
    """The gate's score of each row, (rows,) float32."""
    if gate.given is not None:
        return gate.given.to(device)
    return linear_score(torch.cat([states[read].to(device) for read in gate.reads], dim=-1), gate)


def linear_score(x: torch.Tensor, gate: Gate) -> torch.Tensor:
    """sigmoid((x − mean)·weight + bias): (rows, x) -> (rows,)."""
    weight, mean, bias = (part.to(x.device) for part in (gate.weight, gate.mean, gate.bias))
    return torch.sigmoid((x - mean) @ weight + bias)
