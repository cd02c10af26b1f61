"""Edits of the residual stream: what is done to which row, as its arm's route and gate decide.

Runs inside a trace, wherever that is: tuples and plain functions of tensors.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from collections.abc import Sequence
from typing import NamedTuple

import torch

from interventions.traced.gating import Gate

WIDE = ("prompt", "all")  # scopes that change positions before the last, so that their rows can share no cache
LATER = ("generated", "all")  # scopes that go on after the prompt
NEVER = 1e-12  # as good as 0 or 1, of a score


class LowRankEdit(NamedTuple):
    """A low-rank map: U, V (d_model, rank), z (rank,), mean (d_model,); mode `fixed` or `input`."""

    U: torch.Tensor
    V: torch.Tensor
    z: torch.Tensor
    mean: torch.Tensor
    mode: str


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
        layer: The block whose output is edited.
        scope: Which positions are.
        operation: `add`, `ablate`, `clamp`, or `none`.
        table: (C + 1, d_model), the vectors at strength 1.
        of_token: For each refusal token the number of its category's vector.
        given: (B,) each row's vector, where no route decides.
        strengths: (B,) float64, where no gate decides.
        routed: Whether the most probable refusal token decides the vector.
        gate: Number of the gate that decides the strength, between the next two; −1: none does.
        benign: Strength where the gate sees no harm.
        harmful: Strength where it does.
        slope: How fast the one becomes the other around the gate's threshold; 0: at once.
        lowrank: A low-rank map that is added, or None.
        bias: What is added to first logits, or None.
    """

    layer: int
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
    lowrank: LowRankEdit | None = None
    bias: Bias | None = None


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
        later: (rows · arms,) whether the edit goes on after the prompt.
    """

    add: torch.Tensor
    unit: torch.Tensor | None
    lowrank: list[tuple[LowRankEdit, torch.Tensor]]
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

    With a slope k it lies between them, at sigmoid(k (log-odds of the score − log-odds of the threshold)) of the way.
    """
    if plan.gate < 0:
        return given
    score = seen.scores[plan.gate]
    threshold = gates[plan.gate].threshold.to(score.device)
    if plan.slope:
        beyond = torch.logit(score.double(), NEVER) - torch.logit(threshold.double(), NEVER)
        return benign + (harmful - benign) * torch.sigmoid(plan.slope * beyond)
    looks_harmful = score >= threshold
    both = torch.tensor([benign, harmful], dtype=torch.float64, device=looks_harmful.device)
    return both[looks_harmful.long()]


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
    add, unit, lowrank = [], [], []
    for at, plan in enumerate(plans):
        mine = plan.layer == layer and plan.operation != "none"
        rows = plan.table.to(device)[vector[:, at]]
        rows = rows if mine else torch.zeros_like(rows)
        length = rows.norm(dim=-1, keepdim=True)
        direction = rows / torch.where(length == 0, torch.ones_like(length), length)
        nothing = torch.zeros_like(rows)
        add.append(strength[:, at, None].float() * rows if plan.operation in ("add", "clamp") else nothing)
        unit.append(direction if plan.operation in ("ablate", "clamp") else nothing)
        if mine and plan.lowrank is not None:
            share = torch.zeros_like(strength, dtype=torch.float32)
            share[:, at] = strength[:, at].float()
            lowrank.append((plan.lowrank, share.flatten()))
    projecting = any(plan.operation in ("ablate", "clamp") and plan.layer == layer for plan in plans)
    return LayerEdit(
        torch.stack(add, dim=1).flatten(0, 1),
        torch.stack(unit, dim=1).flatten(0, 1) if projecting else None,
        lowrank,
        torch.tensor([plan.scope in LATER for plan in plans], device=device).repeat(len(vector)),
    )


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
    plain = [plan.lowrank is None and plan.bias is None for plan in plans]
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
            if (one.layer, one.scope, one.operation) == (other.layer, other.scope, other.operation):
                here = parts[one.layer]  # at other layers both do nothing
                same = same | torch.stack([(part[:, at] == part[:, before]).all(-1) for part in here]).all(0)
            first[:, at] = torch.where(same, before, first[:, at])
    return (first + torch.arange(rows, device=first.device)[:, None] * many).flatten()


def apply_edit(hidden: torch.Tensor, edit: LayerEdit, alive: torch.Tensor, first: bool, wide: bool) -> None:
    """Edit a block's output in place: h − (h·u)u + add + U Vᵀ(h − mean), at the last position or, if `wide`, at all.

    Args:
        hidden: (rows, positions, d_model).
        edit: For all rows that began.
        alive: Which of these `hidden` holds.
        first: Whether this is the prompt; later, rows whose scope ended with it are left as they are.
        wide: Whether every position is edited.
    """
    device, kind = hidden.device, hidden.dtype
    alive = alive.to(edit.add.device)
    on = torch.ones_like(edit.later[alive]) if first else edit.later[alive]
    if not bool(on.any()):
        return
    on = on.to(device)[:, None, None].float()
    place = hidden if wide else hidden[:, -1:, :]
    before = place.float() if edit.unit is not None or edit.lowrank else place
    delta = (edit.add[alive].to(device)[:, None, :] * on).to(before.dtype)
    if edit.unit is not None:
        unit = edit.unit[alive].to(device)[:, None, :] * on
        delta = delta - (before * unit).sum(-1, keepdim=True) * unit
    for low, share in edit.lowrank:
        delta = delta + share[alive].to(device)[:, None, None] * on * lowrank_delta(before, low)
    place += delta.to(kind)


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
