"""Routes: which row gets which vector, and how strongly.

`plan_arm` turns an arm into tensors, here; `traced.edits.decide` reads a batch's first forward pass and decides row by
row, wherever the trace runs. Neither sees a row's category or label, but for the arm `oracle`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import torch

from data.contract import MEAN, RESPOND
from data.errors import UserError
from interventions.gates.gate import AnyGate, PerfectGate
from interventions.gates.probe import Probe
from interventions.methods.vectors import SteeringVectors
from interventions.model.control_tokens import RefusalTokens, refusal_tokens
from interventions.model.kinds import check_cache
from interventions.model.model import Model
from interventions.steering.arms import Arm
from interventions.traced.edits import ArmPlan, Bias, LowRankEdit
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
    """

    vectors: SteeringVectors
    probe: Probe | None = None
    lowrank: "LowRank | None" = None
    gates: Mapping[str, AnyGate] = field(default_factory=dict)

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
        for tool in (self.vectors, self.lowrank, *self.every_gate.values()):
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
    categories, count = vectors.categories, len(rows)
    if arm.needs_tokens and not tokens.ids:
        raise UserError(
            f"arm {arm.name!r} reads refusal tokens, and model {model.name!r} has none; use --arm fixed, or a model tuned with them"
        )
    numbers = list(tools.every_gate)
    if arm.is_gated and arm.gate not in numbers:
        named = (
            "a probe: run `probe` first"
            if arm.gate == "probe"
            else f"the gate {arm.gate}: run `probe --gate {arm.gate}` first"
        )
        raise UserError(f"arm {arm.name!r} needs {named}")
    if arm.maps and tools.lowrank is None:
        raise UserError(f"arm {arm.name!r} needs a low-rank map: run `lowrank` first")
    steers = arm.steers and not arm.maps
    one = arm.route == "fixed" and not arm.does.reads_labels
    for name in ([arm.category] if one else categories) if steers else ():
        vectors.delta(arm.layer, name, 1.0, arm.unit)  # says so if there is none, or it is zero or not finite
    table, names = _table(arm, vectors) if steers else _no_table(vectors)
    number = {name: at for at, name in enumerate(categories)}
    mean = len(categories)
    given, strengths = torch.full((count,), mean), torch.full((count,), float(arm.strength), dtype=torch.float64)
    is_harmful = [arm.does.reads_labels and row["label"] == "harmful" for row in rows]
    if arm.does.reads_labels:
        given = torch.tensor([number.get(row["category"] or "", mean) for row in rows])
        strong = [arm.harmful if harmful else arm.strength for harmful in is_harmful]
        strengths = torch.tensor(strong, dtype=torch.float64)
    elif steers and arm.category != MEAN:
        given = torch.full((count,), number[arm.category])
    shipped = ArmPlan(
        layer=arm.layer,
        scope=arm.scope,
        operation=arm.operation if arm.steers else "none",
        table=table,
        of_token=torch.tensor([number.get(name, mean) for name in tokens.names], dtype=torch.long),
        given=given,
        strengths=strengths,
        routed=arm.route != "fixed",
        gate=numbers.index(arm.gate) if arm.is_gated else -1,
        benign=arm.strength,
        harmful=arm.harmful,
        lowrank=_lowrank(arm, tools),
        bias=_bias(arm, tokens, strengths, is_harmful),
    )
    return Plan(arm, names, shipped)


def unsteered(rows: int, width: int) -> ArmPlan:
    """What a trace needs to change nothing."""
    nothing = torch.zeros(rows, dtype=torch.long)
    return ArmPlan(0, "generated", "none", torch.zeros(1, width), nothing[:0], nothing, nothing.double())


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


def _lowrank(arm: Arm, tools: Tools) -> LowRankEdit | None:
    if not arm.maps or tools.lowrank is None:
        return None
    low = tools.lowrank
    if low.layer != arm.layer:
        raise UserError(f"arm {arm.name!r} steers layer {arm.layer}; the low-rank map is of layer {low.layer}")
    return low.edit


def _no_table(vectors: SteeringVectors) -> tuple[torch.Tensor, list[str]]:
    return torch.zeros(len(vectors.categories) + 1, vectors.d_model), [*vectors.categories, MEAN]


def _table(arm: Arm, vectors: SteeringVectors) -> tuple[torch.Tensor, list[str]]:
    """The vectors at strength 1, and their names; controls put others in their places."""
    names = [*vectors.categories, MEAN]
    zero = torch.zeros(vectors.d_model)
    table = torch.stack(
        [vectors.delta(arm.layer, name, 1.0, arm.unit) if vectors.at(arm.layer, name).any() else zero for name in names]
    )
    if arm.does.table == "random":
        random = torch.Generator().manual_seed(arm.seed)
        direction = torch.randn(vectors.d_model, generator=random, dtype=torch.float64)
        direction = (direction / direction.norm()).float()
        return table.norm(dim=-1, keepdim=True) * direction, names
    if arm.does.table == "next":
        if len(names) < 3:
            raise UserError(f"arm {arm.name!r} needs two categories; the vectors have one")
        order = [*range(1, len(names) - 1), 0, len(names) - 1]
        return table[order], [names[at] for at in order]
    return table, names


def made_from(model: Model, data: str, plans: Sequence[Plan], tools: Tools) -> dict[str, Any]:
    """What answers to prompts of a fingerprint rest on, for a journal's key: not what files are called."""
    return {"model": model.identity, "data": data, "arms": [plan.arm.record for plan in plans],
            "tools": tools_fingerprint(plans, tools)}  # fmt: skip


def tools_fingerprint(plans: Sequence[Plan], tools: Tools) -> str:
    """What the vectors, the low-rank map and the gates are."""
    digest = sha256()
    for plan in plans:
        digest.update(plan.shipped.table.numpy().tobytes())
        for part in plan.shipped.lowrank[:4] if plan.shipped.lowrank else ():
            digest.update(part.numpy().tobytes())
    probe = {} if tools.probe is None else {"probe": tools.probe}
    for name, gate in (probe | tools.gates_of(plans)).items():
        digest.update(b"" if name == "probe" else name.encode())
        for part in gate.parts:
            digest.update(part.numpy().tobytes())
    return digest.hexdigest()
