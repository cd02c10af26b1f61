"""Edits of the residual stream: what is done to which row, as its arm's route and gate decide.

Runs inside a trace, wherever that is: tuples and plain functions of tensors.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from interventions.traced.gating import Gate

EMBEDDING = -1  # where the stream begins; block L's output is number L, what its attention writes `attention_of(L)`
WIDE = ("prompt", "all")  # scopes that change positions before the last, so that their rows can share no cache
LATER = ("generated", "all")  # scopes that go on after the prompt
NEVER = 1e-12  # as good as 0 or 1, of a score
PROJECTING = ("ablate", "clamp", "affine")  # operations that take a direction's part out first


def attention_of(layer: int) -> int:
    """The number of what a block's attention writes to the stream."""
    return -2 - layer


class LowRankEdit(NamedTuple):
    """A low-rank map.

    Attributes:
        U: (d_model, rank), directions that are added.
        V: (d_model, rank), directions that are read.
        z: (rank,), how much of each direction, mode `fixed`.
        mean: (d_model,).
        mode: `fixed`: U z. `input`: U Vᵀ(h − mean). `last`: the same, but every prompt position gets what the last one reads.
        sign: Of the strengths that it answers to, 1 or −1; 0: all.
    """

    U: torch.Tensor
    V: torch.Tensor
    z: torch.Tensor
    mean: torch.Tensor
    mode: str
    sign: int = 0


class Turn(NamedTuple):
    """A rotation within a plane (arXiv 2510.26243).

    Attributes:
        plane: (2, d_model), orthonormal; the first is the direction of refusal.
        angle: Radians from it, where strength 1 ends; −1 ends opposite.
        adaptive: Whether states whose part along the first is negative are left alone.
    """

    plane: torch.Tensor
    angle: float
    adaptive: bool


class Bias(NamedTuple):
    """What is added to some tokens' logits at the first generated position.

    Attributes:
        tokens: Their ids.
        strengths: (B,) float64 logits, where no gate decides.
        benign: Where the gate sees no harm.
        harmful: Where it does.
    """

    tokens: list[int]
    strengths: torch.Tensor
    benign: float
    harmful: float


class ArmPlan(NamedTuple):
    """An arm for B rows and C categories, whose vectors are numbered 0 to C, the last their mean.

    Attributes:
        layers: The blocks whose outputs are edited; and `EMBEDDING` and `attention_of(L)`.
        scope: Which positions are.
        operation: `add`, `ablate`, `clamp`, `affine`, `rotate`, or `none`.
        table: (layers, C + 1, d_model), the vectors at strength 1; or (1, C + 1, d_model), the same at all.
        of_token: For each refusal token the number of its category's vector.
        given: (B,) each row's vector, where no route decides.
        strengths: (B,) float64, where no gate decides.
        routed: Whether the most probable refusal token decides the vector.
        gate: Number of the gate that decides the strength, between the next two; −1: none does.
        benign: Strength where the gate sees no harm.
        harmful: Strength where it does.
        slope: How fast the one becomes the other around the gate's threshold; 0: at once.
        threshold: The score from which on it does; None: the gate's own.
        harmful_threshold: The score from which on it is steered so; between the two thresholds nothing is done. None: the same.
        maps: Low-rank maps that are added, each with its layer.
        bias: What is added to first logits, or None.
        offset: As the table: what `affine` adds at any strength; or None.
        turn: How states are rotated, or None.
    """

    layers: tuple[int, ...]
    scope: str
    operation: str
    table: torch.Tensor
    of_token: torch.Tensor
    given: torch.Tensor
    strengths: torch.Tensor
    routed: bool = False
    gate: int = -1
    benign: float = 0.0
    harmful: float = 0.0
    slope: float = 0.0
    threshold: float | None = None
    harmful_threshold: float | None = None
    maps: tuple[tuple[int, LowRankEdit], ...] = ()
    bias: Bias | None = None
    offset: torch.Tensor | None = None
    turn: Turn | None = None


class Unsteered(NamedTuple):
    """What an unsteered look at the last prompt position gave; None for what nothing asks for.

    Attributes:
        tokens: (B, refusal tokens) their logits.
        scores: (B,) each gate's.
        logits: (B, vocabulary) float32.
    """

    tokens: torch.Tensor | None = None
    scores: Sequence[torch.Tensor] = ()
    logits: torch.Tensor | None = None


class LayerEdit(NamedTuple):
    """What is done at a layer to each of rows × arms; row r's arm a stands at r · arms + a.

    Attributes:
        add: (rows · arms, d_model), added.
        unit: (rows · arms, d_model) unit vectors that are projected out first, zero where nothing is; or None.
        lowrank: Low-rank maps with the strength (rows · arms,) that each row adds them at.
        turns: Rotations with the share (rows · arms,) of the way that each row goes.
        later: (rows · arms,) whether the edit goes on after the prompt.
    """

    add: torch.Tensor
    unit: torch.Tensor | None
    lowrank: list[tuple[LowRankEdit, torch.Tensor]]
    turns: list[tuple[Turn, torch.Tensor]]
    later: torch.Tensor


class RowEdits(NamedTuple):
    """Each of rows × arms' vector (its number) and strength, (rows · arms,), and what is done at each layer."""

    vector: torch.Tensor
    strength: torch.Tensor
    layers: dict[int, LayerEdit]


def lowrank_delta(hidden: torch.Tensor, low: LowRankEdit) -> torch.Tensor:
    """What a low-rank map adds at strength 1 (arXiv 2603.13359): U z, or depending on the row U Vᵀ(h − mean)."""
    up, down, z, mean = (part.to(hidden.device) for part in (low.U, low.V, low.z, low.mean))
    return up @ z if low.mode == "fixed" else ((hidden.float() - mean) @ down) @ up.T


def turn_delta(hidden: torch.Tensor, turn: Turn, share: torch.Tensor) -> torch.Tensor:
    """What a rotation adds: P h turned by a share (rows,) of the way to its goal, less P h; norms stay.

    At share 1 this is h − P h + ‖P h‖ (cos θ b₁ + sin θ b₂) (arXiv 2510.26243), at −1 the same with θ + 180°;
    the way between goes along the shorter arc.
    """
    plane = turn.plane.to(hidden.device)
    here = hidden @ plane.T
    way, angle = share[:, None], torch.atan2(here[..., 1], here[..., 0])
    goal = turn.angle + math.pi * (way < 0)
    gap = torch.remainder(goal - angle + math.pi, 2 * math.pi) - math.pi
    angle = angle + way.abs() * gap
    there = here.norm(dim=-1, keepdim=True) * torch.stack([angle.cos(), angle.sin()], dim=-1)
    turned = way != 0
    if turn.adaptive:
        turned = turned & (here[..., 0] > 0)
    return torch.where(turned[..., None], there - here, torch.zeros_like(here)) @ plane


def of_last(hidden: torch.Tensor, ends: torch.Tensor | None) -> torch.Tensor:
    """At each position the state of the prompt's last (in `ends`, (rows,); None: the last there is), behind it its own."""
    if ends is None:
        return hidden[:, -1:].expand_as(hidden)
    at = torch.maximum(torch.arange(hidden.shape[1], device=hidden.device), ends.to(hidden.device)[:, None])
    return hidden.gather(1, at[..., None].expand_as(hidden))


def decide(plan: ArmPlan, seen: Unsteered, gates: Sequence[Gate]) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's vector (its number) and strength, (rows,) each, as the arm's route and gate decide."""
    vector = plan.given
    if plan.routed:
        assert seen.tokens is not None  # whoever plans a route looks first
        vector = plan.of_token.to(seen.tokens.device)[seen.tokens.argmax(-1)]
    return vector, gated(plan, plan.strengths, plan.benign, plan.harmful, seen, gates)


def gated(
    plan: ArmPlan, given: torch.Tensor, benign: float, harmful: float, seen: Unsteered, gates: Sequence[Gate]
) -> torch.Tensor:
    """Each row's strength (rows,): the one given, or if a gate decides the one for harmless or for harmful prompts.

    Between two thresholds it is 0. With a slope k it lies between them, at sigmoid(k (log-odds of the score − log-odds of the threshold)) of the way.
    """
    if plan.gate < 0:
        return given
    score, own = seen.scores[plan.gate], gates[plan.gate].threshold
    threshold = own.to(score.device) if plan.threshold is None else torch.tensor([plan.threshold], device=score.device)
    if plan.slope:
        beyond = torch.logit(score.double(), NEVER) - torch.logit(threshold.double(), NEVER)
        return benign + (harmful - benign) * torch.sigmoid(plan.slope * beyond)
    looks_harmful = score >= threshold
    surely = looks_harmful if plan.harmful_threshold is None else score >= plan.harmful_threshold
    three = torch.tensor([benign, 0.0, harmful], dtype=torch.float64, device=score.device)
    return three[looks_harmful.long() + surely.long()]


def row_edits(
    plans: Sequence[ArmPlan], seen: Unsteered, gates: Sequence[Gate], layers: Sequence[int], device: torch.device
) -> RowEdits:
    """What is done to each of rows × arms, at each of some layers."""
    picks = [decide(plan, seen, gates) for plan in plans]
    vector = torch.stack([pick[0].to(device) for pick in picks], dim=1)
    strength = torch.stack([pick[1].to(device) for pick in picks], dim=1)
    edits = {layer: _layer_edit(plans, vector, strength, layer) for layer in layers}
    return RowEdits(vector.flatten(), strength.flatten(), edits)


def _layer_edit(plans: Sequence[ArmPlan], vector: torch.Tensor, strength: torch.Tensor, layer: int) -> LayerEdit:
    """At one layer; vector and strength (rows, arms)."""
    device = vector.device
    add, unit, lowrank, turns = [], [], [], []
    for at, plan in enumerate(plans):
        mine = layer in plan.layers and plan.operation != "none"
        place = plan.layers.index(layer) if mine and len(plan.table) > 1 else 0
        rows = plan.table[place].to(device)[vector[:, at]]
        rows = rows if mine else torch.zeros_like(rows)
        length = rows.norm(dim=-1, keepdim=True)
        direction = rows / torch.where(length == 0, torch.ones_like(length), length)
        nothing, size = torch.zeros_like(rows), strength[:, at].float()
        added = size[:, None] * rows if mine and plan.operation != "ablate" else nothing
        if mine and plan.offset is not None:
            added = added + plan.offset[place].to(device)[vector[:, at]]
        add.append(added)
        out = direction * (size != 0)[:, None] if plan.operation == "ablate" else direction
        unit.append(out if plan.operation in PROJECTING else nothing)
        lowrank += [(low, _alone(_signed(size, low.sign), at, len(plans))) for to, low in plan.maps if to == layer]
        if mine and plan.turn is not None:
            turns.append((plan.turn, _alone(size, at, len(plans))))
    projecting = any(plan.operation in PROJECTING and layer in plan.layers for plan in plans)
    return LayerEdit(
        torch.stack(add, dim=1).flatten(0, 1),
        torch.stack(unit, dim=1).flatten(0, 1) if projecting else None,
        lowrank,
        turns,
        torch.tensor([plan.scope in LATER for plan in plans], device=device).repeat(len(vector)),
    )


def _signed(strength: torch.Tensor, sign: int) -> torch.Tensor:
    """Strengths of one sign, 0 for others; all with sign 0."""
    return torch.where(strength * sign > 0, strength, torch.zeros_like(strength)) if sign else strength


def _alone(strength: torch.Tensor, at: int, arms: int) -> torch.Tensor:
    """One arm's strengths (rows,) among those of all, (rows · arms,), which are 0."""
    alone = torch.zeros(len(strength), arms, device=strength.device)
    alone[:, at] = strength
    return alone.flatten()


def first_alike(plans: Sequence[ArmPlan], edits: RowEdits) -> torch.Tensor:
    """For each of rows × arms the first of its row that does the very same to it, so that it is computed once.

    Under a gate many rows are left as they are, and arms that differ in one of the gate's strengths alone are the same
    for half of the rows.
    """
    many, rows = len(plans), len(edits.vector) // len(plans)
    parts = {
        layer: [part.unflatten(0, (-1, many)) for part in (edit.add, edit.unit) if part is not None]
        for layer, edit in edits.layers.items()
    }
    first = torch.arange(many, device=edits.vector.device).repeat(rows, 1)
    plain = [not plan.maps and plan.turn is None and plan.bias is None for plan in plans]
    idle = [
        torch.stack([(part[:, at] == 0).all(-1) for both in parts.values() for part in both]).all(0)
        for at in range(many)
    ]
    for at in range(many):
        for before in reversed(range(at)):
            if not (plain[at] and plain[before]):
                continue
            one, other = plans[at], plans[before]
            same = idle[at] & idle[before]
            if (one.layers, one.scope, one.operation) == (other.layers, other.scope, other.operation):
                here = [part for layer in one.layers for part in parts[layer]]  # at other layers both do nothing
                same = same | torch.stack([(part[:, at] == part[:, before]).all(-1) for part in here]).all(0)
            first[:, at] = torch.where(same, before, first[:, at])
    return (first + torch.arange(rows, device=first.device)[:, None] * many).flatten()


def apply_edit(
    hidden: torch.Tensor,
    edit: LayerEdit,
    alive: torch.Tensor,
    first: bool,
    wide: bool,
    ends: torch.Tensor | None = None,
) -> None:
    """Edit a block's output in place, at the last position or, if `wide`, at all.

    h − (h·u)u + add + U Vᵀ(h − mean), or h rotated; a row gets what its arm does alone.

    Args:
        hidden: (rows, positions, d_model).
        edit: For all rows that began.
        alive: Which of these `hidden` holds.
        first: Whether this is the prompt; later, rows whose scope ended with it are left as they are.
        wide: Whether every position is edited.
        ends: (rows,) columns of the prompts' last tokens, where these are not the last columns.
    """
    alive = alive.to(edit.add.device)
    goes_on = torch.ones_like(edit.later[alive]) if first else edit.later[alive]
    if not bool(goes_on.any()):
        return
    place = hidden if wide else hidden[:, -1:, :]
    before = place.float() if is_read(edit) else place
    place += delta(before, edit, alive, goes_on, first, ends).to(hidden.dtype)


def is_read(edit: LayerEdit) -> bool:
    """Whether what an edit adds depends on the state."""
    return edit.unit is not None or bool(edit.lowrank) or bool(edit.turns)


def delta(
    before: torch.Tensor,
    edit: LayerEdit,
    alive: torch.Tensor,
    goes_on: torch.Tensor,
    first: bool,
    ends: torch.Tensor | None = None,
) -> torch.Tensor:
    """What an edit adds to the residual stream.

    Args:
        before: (rows, positions, d_model) the stream there; float32 where `is_read`.
        edit: For all rows that began.
        alive: Which of these `before` holds.
        goes_on: (rows,) whether each is edited.
        first: Whether this is the prompt.
        ends: As for `apply_edit`.
    """
    device = before.device
    on = goes_on.to(device)[:, None, None].float()
    added = (edit.add[alive].to(device)[:, None, :] * on).to(before.dtype)
    if edit.unit is not None:
        unit = edit.unit[alive].to(device)[:, None, :] * on
        added = added - (before * unit).sum(-1, keepdim=True) * unit
    for low, share in edit.lowrank:
        read = of_last(before, ends) if low.mode == "last" and first else before
        added = added + share[alive].to(device)[:, None, None] * on * lowrank_delta(read, low)
    for turn, share in edit.turns:
        added = added + on * turn_delta(before, turn, share[alive].to(device))
    return added


def with_bias(
    logits: torch.Tensor,
    plans: Sequence[ArmPlan],
    seen: Unsteered,
    gates: Sequence[Gate],
    slots: torch.Tensor | None = None,
) -> torch.Tensor:
    """First logits (slots, vocabulary) with what some arms add to some tokens'.

    `slots`: which of rows × arms they are of; all of them if None.
    """
    if all(plan.bias is None for plan in plans):
        return logits
    slots = torch.arange(len(logits), device=logits.device) if slots is None else slots
    shaped = logits.clone()
    for at, plan in enumerate(plans):
        if plan.bias is None:
            continue
        strength = gated(plan, plan.bias.strengths, plan.bias.benign, plan.bias.harmful, seen, gates)
        mine = (slots % len(plans) == at).nonzero()[:, 0]
        added = strength.to(logits.device, logits.dtype)[slots[mine] // len(plans)]
        shaped[mine[:, None], torch.tensor(plan.bias.tokens, device=logits.device)] += added[:, None]
    return shaped
