"""Routes: which row gets which vector, and how strongly.

`plan_arm` turns an arm into tensors, here; `traced.edits.decide` reads a batch's first forward pass and decides row by
row, wherever the trace runs. Neither sees a row's category or label, but for the arm `oracle`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from data.contract import MEAN, RESPOND, window
from data.errors import UserError
from interventions.gates.gate import AnyGate, FittedGate, PerfectGate
from interventions.methods.edits import affine, alphasteer, angular, false_refusal
from interventions.methods.edits.fitted import FittedMethod
from interventions.methods.vectors import SteeringVectors
from interventions.model.blocks import sites
from interventions.model.control_tokens import RefusalTokens, refusal_tokens
from interventions.model.kinds import check_cache
from interventions.model.model import Model
from interventions.steering.arms import Arm
from interventions.traced.edits import ArmPlan, Bias, LowRankEdit, Turn
from interventions.traced.gating import Gate

if TYPE_CHECKING:
    from interventions.methods.lowrank import LowRank


@dataclass(frozen=True)
class Tools:
    """What arms draw on beside the model.

    Attributes:
        vectors: One direction a category.
        probe: The gate of arms that name no other.
        lowrank: For `lowrank` arms.
        gates: Other gates, by their names.
        methods: What kinds of arms with tensors of their own draw on, by their names.
    """

    vectors: SteeringVectors
    probe: FittedGate | None = None
    lowrank: "LowRank | None" = None
    gates: Mapping[str, AnyGate] = field(default_factory=dict)
    methods: Mapping[str, FittedMethod] = field(default_factory=dict)

    @property
    def every_gate(self) -> dict[str, AnyGate]:
        """All of them; `perfect` needs nothing."""
        return ({} if self.probe is None else {"probe": self.probe}) | dict(self.gates) | {"perfect": PerfectGate()}

    def gates_of(self, plans: "Sequence[Plan]") -> dict[str, AnyGate]:
        """Those that some arms go by."""
        used = {plan.arm.gate for plan in plans if plan.arm.is_gated}
        return {name: gate for name, gate in self.every_gate.items() if name in used}

    def shipped(self, model: Model, plans: "Sequence[Plan]", prompts: Sequence[Mapping[str, Any]]) -> list[Gate]:
        """The gates as a trace needs them, in the order that the plans number them in.

        One that no arm goes by says nothing: labels leave this machine for an arm that reads them alone.
        """
        used = self.gates_of(plans)
        if not used:
            return []
        idle = Gate((), torch.zeros(0), torch.zeros(0), torch.zeros(1), torch.ones(1), given=torch.zeros(len(prompts)))
        return [gate.shipped(model, prompts) if name in used else idle for name, gate in self.every_gate.items()]

    def check(self, model: Model) -> None:
        """Do they belong to this model?

        Raises:
            UserError: One does not.
        """
        for tool in (self.vectors, self.lowrank, *self.every_gate.values(), *self.methods.values()):
            if tool is not None:
                tool.check(model)


@dataclass(frozen=True)
class Plan:
    """An arm, the names of its vectors as the tables call them, and what a trace needs of it.

    Attributes:
        arm: The arm.
        names: C + 1 names of the vectors; the last is their mean.
        shipped: The arm in tensors, for a batch of B rows.
    """

    arm: Arm
    names: list[str]
    shipped: ArmPlan

    def for_rows(self, rows: Sequence[int]) -> ArmPlan:
        """What a trace needs of it for some of its rows."""
        at = torch.tensor(list(rows))
        arm, bias = self.shipped, self.shipped.bias
        return arm._replace(
            given=arm.given[at],
            strengths=arm.strengths[at],
            bias=bias and bias._replace(strengths=bias.strengths[at]),
        )

    def repeated(self, rows: int) -> "Plan":
        """The plan of one row, for many."""
        return self.among([0] * rows)

    def among(self, rows: Sequence[int]) -> "Plan":
        """The plan of some of its rows."""
        return Plan(self.arm, self.names, self.for_rows(rows))


def plan_arm(model: Model, arm: Arm, tools: Tools, rows: Sequence[Mapping[str, str | None]]) -> Plan:
    """An arm in tensors.

    Args:
        model: The model it will steer.
        arm: The arm.
        tools: What it draws on.
        rows: Category and label of each row; read for the arm `oracle` alone.

    Raises:
        UserError: The arm needs a probe, a low-rank map, refusal tokens, a layer or a category that isn't there.
    """
    check_cache(model.module, model.name)
    tokens, vectors = refusal_tokens(model), tools.vectors
    _check(model, arm, tools, tokens)
    categories, count = vectors.categories, len(rows)
    number = {name: at for at, name in enumerate(categories)}
    mean = len(categories)
    given, strengths = torch.full((count,), mean), torch.full((count,), float(arm.strength), dtype=torch.float64)
    is_harmful = [arm.does.reads_labels and row["label"] == "harmful" for row in rows]
    layers = _layers(model, arm)
    one = not (arm.is_routed or arm.does.reads_labels)
    for name in ([arm.category] if one else categories) if arm.steers and arm.has_vectors else ():
        for layer in _sources(arm, layers):
            vectors.delta(layer, name, 1.0, arm.unit)  # says so if there is none, or it is zero or not finite
    if arm.does.reads_labels:
        given = torch.tensor([number.get(row["category"] or "", mean) for row in rows])
        strong = [arm.harmful if harmful else arm.strength for harmful in is_harmful]
        strengths = torch.tensor(strong, dtype=torch.float64)
    elif arm.has_vectors and arm.category != MEAN:
        given = torch.full((count,), number[arm.category])
    elif arm.directions > 1:
        given = torch.arange(count) % arm.directions
    edit = _edit(arm, tools, layers)
    shipped = ArmPlan(
        layers=layers,
        scope=arm.scope,
        operation=arm.operation if arm.steers else "none",
        table=edit.table,
        of_token=torch.tensor([number.get(name, mean) for name in tokens.names], dtype=torch.long),
        given=given,
        strengths=strengths,
        routed=arm.is_routed and bool(tokens.ids),
        gate=list(tools.every_gate).index(arm.gate) if arm.is_gated else -1,
        benign=arm.strength,
        harmful=arm.harmful,
        slope=arm.slope if arm.is_gated else 0.0,
        threshold=arm.threshold if arm.is_gated else None,
        harmful_threshold=arm.harmful_threshold if arm.is_gated else None,
        maps=edit.maps,
        bias=_bias(arm, tokens, strengths, is_harmful),
        offset=edit.offset,
        turn=edit.turn,
    )
    return Plan(arm, edit.names, shipped)


def _check(model: Model, arm: Arm, tools: Tools, tokens: RefusalTokens) -> None:
    """Is all there that the arm draws on?"""
    if arm.needs_tokens and not tokens.ids:
        raise UserError(
            f"arm {arm.name!r} reads refusal tokens, and model {model.name!r} has none; use --arm fixed, or a model tuned with them"
        )
    if arm.is_gated and arm.gate not in tools.every_gate:
        named = (
            "a probe: run `probe` first"
            if arm.gate == "probe"
            else f"the gate {arm.gate}: run `probe --gate {arm.gate}` first"
        )
        raise UserError(f"arm {arm.name!r} needs {named}")
    if arm.is_gated and arm.harmful_threshold is not None:
        least = tools.every_gate[arm.gate].threshold if arm.threshold is None else arm.threshold
        if arm.harmful_threshold < float(least):
            raise UserError(
                f"arm {arm.name!r}: harmful-threshold is below the threshold, {float(least):g}: no prompt can be both"
            )
    if arm.maps and tools.lowrank is None:
        raise UserError(f"arm {arm.name!r} needs a low-rank map: run `lowrank` first")
    if arm.does.fitted and arm.kind not in tools.methods:
        raise UserError(f"arm {arm.name!r} needs what {arm.kind} fits: run `vectors --method {arm.kind}` first")


def _layers(model: Model, arm: Arm) -> tuple[int, ...]:
    """What the arm edits: one block's output, a window of them, or, to ablate at all layers, whatever writes to the stream.

    Raises:
        UserError: The model ends before.
    """
    if not arm.layers:
        return (arm.layer,)
    layers = window(arm.layers, model.n_layers)
    if layers[-1] >= model.n_layers:
        raise UserError(f"arm {arm.name!r}: model {model.name!r} has layers 0 to {model.n_layers - 1}")
    if arm.layers != "all" or arm.operation != "ablate":
        return layers
    return tuple(number for number, _ in sites(model.nnsight, list(model.layers), model.module))


def _sources(arm: Arm, layers: Sequence[int]) -> Sequence[int]:
    """Where the vectors at an arm's layers are from: each its own, but an ablated direction is one layer's."""
    return [arm.layer] if arm.operation == "ablate" else layers


class _Edit(NamedTuple):
    """The parts of an `ArmPlan` that say what is done, and the vectors' names."""

    table: torch.Tensor
    names: list[str]
    maps: tuple[tuple[int, LowRankEdit], ...] = ()
    offset: torch.Tensor | None = None
    turn: Turn | None = None


def _edit(arm: Arm, tools: Tools, layers: Sequence[int]) -> _Edit:
    vectors, own = tools.vectors, tools.methods.get(arm.kind)
    names = [*vectors.categories, MEAN]
    nothing = torch.zeros(1, len(names), vectors.d_model)
    if arm.steers and arm.has_vectors:
        tables = [_table(arm, vectors, layer) for layer in _sources(arm, layers)]
        table = torch.stack([table for table, _ in tables])
        if arm.kind == "affine" and own is not None:
            return _Edit(table, names, offset=affine.offset(own, layers, table))
        return _Edit(table, tables[0][1])
    if arm.maps:
        return _Edit(nothing, names, maps=((arm.layer, _lowrank(arm, tools)),))
    if own is None:
        return _Edit(nothing, names)
    if arm.kind == "false-refusal":
        return _Edit(false_refusal.direction(own, arm.layer, arm.partial).expand_as(nothing), names)
    if arm.kind == "alphasteer":
        return _Edit(nothing, names, maps=alphasteer.maps(own, layers))
    return _Edit(nothing, names, turn=angular.turn(own, arm.angle, arm.adaptive == "yes"))


def unsteered(rows: int, width: int) -> ArmPlan:
    """What a trace needs to change nothing."""
    nothing = torch.zeros(rows, dtype=torch.long)
    return ArmPlan((0,), "generated", "none", torch.zeros(1, 1, width), nothing[:0], nothing, nothing.double())


def _bias(arm: Arm, tokens: RefusalTokens, strengths: torch.Tensor, is_harmful: Sequence[bool]) -> Bias | None:
    """Of an arm that biases control tokens alone, or `[respond]` beside its vector."""
    if arm.does.biases:
        return Bias(_biased_tokens(arm, tokens), strengths, arm.strength, arm.harmful)
    if not (arm.bias or arm.harmful_bias):
        return None
    if tokens.respond is None:
        raise UserError(f"arm {arm.name!r} biases [respond], and the model has no such token; leave bias out")
    sides = [arm.harmful_bias if harmful else arm.bias for harmful in is_harmful]
    return Bias([tokens.respond], torch.tensor(sides, dtype=torch.float64), arm.bias, arm.harmful_bias)


def _biased_tokens(arm: Arm, tokens: RefusalTokens) -> list[int]:
    """All refusal tokens, or the control token that the arm names."""
    if arm.category == MEAN:
        return tokens.ids
    known = dict(zip(tokens.names, tokens.ids, strict=True))
    known |= {} if tokens.respond is None else {RESPOND: tokens.respond}
    if arm.category not in known:
        raise UserError(f"arm {arm.name!r}: no control token {arm.category!r}; there are {', '.join(known)}")
    return [known[arm.category]]


def _lowrank(arm: Arm, tools: Tools) -> LowRankEdit:
    low = tools.lowrank
    assert low is not None  # `_check` has seen to it
    if low.layer != arm.layer:
        raise UserError(f"arm {arm.name!r} steers layer {arm.layer}; the low-rank map is of layer {low.layer}")
    return low.edit


def _table(arm: Arm, vectors: SteeringVectors, layer: int) -> tuple[torch.Tensor, list[str]]:
    """The vectors of a layer at strength 1, and their names; controls put others in their places."""
    names = [*vectors.categories, MEAN]
    zero = torch.zeros(vectors.d_model)
    table = torch.stack(
        [vectors.delta(layer, name, 1.0, arm.unit) if vectors.at(layer, name).any() else zero for name in names]
    )
    if arm.does.table == "random":
        lengths = table.norm(dim=-1, keepdim=True)
        if arm.directions == 1:
            return lengths * _random(vectors.d_model, arm.seed), names
        several = [lengths[-1] * _random(vectors.d_model, arm.seed + at) for at in range(arm.directions)]
        return torch.stack(several), [f"random {arm.seed + at}" for at in range(arm.directions)]
    if arm.does.table == "next":
        if len(names) < 3:
            raise UserError(f"arm {arm.name!r} needs two categories; the vectors have one")
        order = [*range(1, len(names) - 1), 0, len(names) - 1]
        return table[order], [names[at] for at in order]
    return table, names


def _random(width: int, seed: int) -> torch.Tensor:
    """A unit vector, (width,) float32."""
    direction = torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (direction / direction.norm()).float()


def made_from(model: Model, data: str, plans: Sequence[Plan], tools: Tools) -> dict[str, Any]:
    """What answers to prompts of a fingerprint rest on, for a journal's key: not what files are called."""
    return {"model": model.identity, "data": data, "arms": [plan.arm.record for plan in plans],
            "tools": tools_fingerprint(plans, tools)}  # fmt: skip


def tools_fingerprint(plans: Sequence[Plan], tools: Tools) -> str:
    """What the vectors, the low-rank map and the gates are."""
    digest = sha256()
    for plan in plans:
        digest.update(plan.shipped.table.numpy().tobytes())
        for _, low in plan.shipped.maps:
            for part in low[:4]:
                digest.update(part.numpy().tobytes())
        for part in (plan.shipped.offset, plan.shipped.turn and plan.shipped.turn.plane):
            digest.update(b"" if part is None else part.numpy().tobytes())
    probe = {} if tools.probe is None else {"probe": tools.probe}
    for name, gate in (probe | tools.gates_of(plans)).items():
        digest.update(b"" if name == "probe" else name.encode())
        for part in gate.parts:
            digest.update(part.numpy().tobytes())
    return digest.hexdigest()
