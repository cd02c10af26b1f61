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


class Network(NamedTuple):
    """What follows a gate's weight where that is a network's first layer.

    Attributes:
        inner: (hidden,) the hidden units' bias.
        outer: (classes, hidden) the logits' weight; the first class is benign, every other one harmful.
        classes: (classes,) the logits' bias.
    """

    inner: torch.Tensor
    outer: torch.Tensor
    classes: torch.Tensor


class Gate(NamedTuple):
    """score = sigmoid(gain · f(x) + bias), harmful from `threshold` on.

    f(x) is by `form`: `linear`, (x − mean)·weight; `cosine`, the same of x whose pieces have length 1 each; `cast`, the
    cosine of x and tanh of its projection on the weight; `network`, the log-odds of all harmful classes together, of the logits
    outer · relu(weight · (x − mean) + inner) + classes.

    Attributes:
        reads: Where x stands in the residual stream, one piece behind the other; or none.
        weight: (x,); of a network (hidden, x).
        mean: (x,).
        bias: (1,).
        threshold: (1,).
        given: (rows,) scores that are known before, from the prompts' words or labels; None: x is read.
        tokens: Ids whose log-probabilities at the first generated position are x, where nothing else is.
        form: As above.
        gain: As above.
        members: Gates whose scores this one joins; it reads what they read, and has a threshold of its own.
        joined: How: `mean`, `and` (the smallest) or `or` (the largest).
        network: What follows the weight, of a network.
    """

    reads: tuple[Read, ...]
    weight: torch.Tensor
    mean: torch.Tensor
    bias: torch.Tensor
    threshold: torch.Tensor
    given: torch.Tensor | None = None
    tokens: tuple[int, ...] = ()
    form: str = "linear"
    gain: float = 1.0
    members: "tuple[Gate, ...]" = ()
    joined: str = ""
    network: Network | None = None

    def for_rows(self, rows: Sequence[int]) -> "Gate":
        """The gate for some of the rows that it has scores of."""
        given = None if self.given is None else self.given[torch.tensor(list(rows))]
        return self._replace(given=given, members=tuple(member.for_rows(rows) for member in self.members))


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
    """What is read, nothing of it yet: sums to add to."""
    return dict.fromkeys(marks.reads, torch.zeros(rows, 1))


def summed(marks: Marks, columns: slice) -> Blocks:
    """The blocks at which some columns add to a sum: most prompts' openings, which are the template's, add nothing."""
    there = {position for position, weights in marks.weights.items() if weights[:, columns].any()}
    numbers = {number for number, position in marks.reads if position in there}
    return [(number, block) for number, block in marks.blocks if number in numbers]


def added(states: States, marks: Marks, number: int, here: torch.Tensor, rows: torch.Tensor, columns: slice) -> None:
    """Add what some columns of some rows hold at a block: (rows, columns, d_model), or (1, columns, d_model) for all alike."""
    for layer, position in marks.reads:
        if layer == number and position != LAST:
            share = marks.weights[position].to(here.device)[rows.to(here.device)][:, columns]
            part = torch.einsum("rc,rcd->rd", share, here.float().expand(len(share), -1, -1))
            _put(states, (layer, position), rows, part)


def ended(states: States, number: int, here: torch.Tensor, rows: torch.Tensor) -> None:
    """Note what the last column of some rows holds at a block that is read: (rows, columns, d_model)."""
    if (number, LAST) in states:
        _put(states, (number, LAST), rows, here[:, -1, :].float())


def _put(states: States, read: Read, rows: torch.Tensor, part: torch.Tensor) -> None:
    whole = states[read].to(part.device).expand(-1, part.shape[-1])
    states[read] = whole.index_add(0, rows.to(part.device), part)


def score(gate: Gate, states: States, logits: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The gate's score of each row, (rows,) float32.

    Args:
        gate: The gate.
        states: What was read of the residual stream.
        logits: (rows, vocabulary) float32, unsteered, at the first generated position.
        device: Where the score goes.
    """
    if gate.members:
        return join([score(member, states, logits, device) for member in gate.members], gate.joined)
    if gate.given is not None:
        return gate.given.to(device)
    if gate.tokens:
        return scored(log_probabilities(logits, gate.tokens).to(device), gate)
    return scored(torch.cat([states[read].to(device) for read in gate.reads], dim=-1), gate)


def log_probabilities(logits: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
    """Of some tokens: (rows, vocabulary) -> (rows, tokens)."""
    return logits[:, list(tokens)] - logits.logsumexp(-1, keepdim=True)


def join(scores: Sequence[torch.Tensor], how: str) -> torch.Tensor:
    """Several gates' scores as one: their `mean`, or the smallest (`and`) or largest (`or`) of them."""
    whole = torch.stack(list(scores))
    return whole.mean(0) if how == "mean" else whole.amin(0) if how == "and" else whole.amax(0)


def scored(x: torch.Tensor, gate: Gate) -> torch.Tensor:
    """sigmoid(gain · f(x) + bias): (rows, x) -> (rows,)."""
    weight, mean, bias = (part.to(x.device) for part in (gate.weight, gate.mean, gate.bias))
    if gate.form == "cast":
        along = weight / weight.norm()
        value = torch.cosine_similarity(x, torch.tanh((x @ along)[:, None] * along), dim=-1)
    elif gate.network is not None:
        inner, outer, classes = (part.to(x.device) for part in gate.network)
        logits = ((x - mean) @ weight.T + inner).relu() @ outer.T + classes
        value = logits[:, 1:].logsumexp(-1) - logits[:, 0]
    else:
        if gate.form == "cosine":
            pieces = x.unflatten(-1, (len(gate.reads), -1))
            x = (pieces / pieces.norm(dim=-1, keepdim=True).clamp(min=1e-12)).flatten(1)
        value = (x - mean) @ weight
    return torch.sigmoid(gate.gain * value + bias)
