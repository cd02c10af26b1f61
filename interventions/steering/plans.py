"""Routes: which row gets which vector, and how strongly.

`plan_arm` turns an arm into tensors, here; `edits.chosen` reads a batch's first forward pass and decides row by row,
wherever the trace runs. Neither sees a row's category or label, but for the arm `oracle`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import torch

from data.contract import MEAN, RESPOND
from data.errors import UserError
from interventions.gates.probe import Probe
from interventions.methods.vectors import SteeringVectors
from interventions.model.control_tokens import RefusalTokens, refusal_tokens
from interventions.model.model import Model
from interventions.steering.answer import Gate
from interventions.steering.arms import Arm

if TYPE_CHECKING:
    from interventions.methods.lowrank import LowRank


@dataclass(frozen=True)
class Tools:
    """What arms draw on beside the model.

    Attributes:
        vectors: One direction a category.
        probe: For gated arms.
        lowrank: For `lowrank` arms.
    """

    vectors: SteeringVectors
    probe: Probe | None = None
    lowrank: "LowRank | None" = None


@dataclass(frozen=True)
class Plan:
    """An arm in tensors, for a batch of B rows, C categories, and vectors numbered 0 to C, the last their mean.

    Attributes:
        arm: The arm.
        names: C + 1 names of the vectors, as they are called in the tables.
        table: (C + 1, d_model): the vectors at strength 1.
        of_token: For each refusal token the vector it stands for.
        given: (B,) number of each row's vector, where no route decides.
        strengths: (B,) where no gate decides.
        lowrank: `U`, `V`, `z`, `mean` and `mode`, or None.
        bias: Ids of the control tokens whose logits get the strength at the first generated position, or None.
    """

    arm: Arm
    names: list[str]
    table: torch.Tensor
    of_token: list[int]
    given: torch.Tensor
    strengths: torch.Tensor
    lowrank: dict[str, Any] | None = None
    bias: list[int] | None = None

    def for_rows(self, rows: Sequence[int]) -> "Plan":
        """The plan for some of its rows."""
        at = torch.tensor(list(rows))
        return replace(self, given=self.given[at], strengths=self.strengths[at])

    def shipped(self) -> dict[str, Any]:
        """What a trace needs of it, as plain tensors and values."""
        arm = self.arm
        return {
            "layer": arm.layer,
            "scope": arm.scope,
            "operation": arm.operation if arm.steers else "none",
            "table": self.table,
            "of_token": torch.tensor(self.of_token, dtype=torch.long),
            "given": self.given,
            "strengths": self.strengths,
            "routed": arm.route != "fixed",
            "gated": arm.route == "gated",
            "benign": arm.strength,
            "harmful": arm.harmful,
            "lowrank": self.lowrank,
            "bias": self.bias,
        }


def plan_arm(model: Model, arm: Arm, tools: Tools, rows: Sequence[dict[str, Any]]) -> Plan:
    """An arm in tensors.

    Args:
        model: The model it will steer.
        arm: The arm.
        tools: What it draws on.
        rows: Category and label of each row; read for the arm `oracle` alone.

    Raises:
        UserError: The arm needs a probe, a low-rank map, refusal tokens, a layer or a category that isn't there.
    """
    tokens, vectors = refusal_tokens(model), tools.vectors
    categories = vectors.categories
    if arm.needs_tokens and not tokens.ids:
        raise UserError(
            f"arm {arm.name!r} reads refusal tokens, and model {model.name!r} has none; use --arm fixed, or a model tuned with them"
        )
    if arm.route == "gated" and tools.probe is None:
        raise UserError(f"arm {arm.name!r} needs a probe: run `probe` first")
    if arm.kind == "lowrank" and tools.lowrank is None:
        raise UserError(f"arm {arm.name!r} needs a low-rank map: run `lowrank` first")
    count = len(rows)
    table, names = _table(arm, vectors) if arm.steers and arm.kind != "lowrank" else _no_table(vectors)
    mean = len(categories)
    of_token = [categories.index(name) if name in categories else mean for name in tokens.names]
    given, strengths = torch.full((count,), mean), torch.full((count,), float(arm.strength), dtype=torch.float64)
    if arm.kind == "oracle":
        given = torch.tensor([categories.index(r["category"]) if r["category"] in categories else mean for r in rows])
        strengths = torch.tensor(
            [arm.harmful if r["label"] == "harmful" else arm.strength for r in rows], dtype=torch.float64
        )
    elif arm.steers and arm.kind != "lowrank" and arm.category != MEAN:
        vectors.delta(arm.layer, arm.category, 1.0, arm.unit)  # says so if there is none, or it is zero
        given = torch.full((count,), categories.index(arm.category))
    return Plan(
        arm,
        names,
        table,
        of_token,
        given,
        strengths,
        _lowrank(arm, tools),
        _biased_tokens(arm, tokens) if arm.kind == "logit-bias" else None,
    )


def _biased_tokens(arm: Arm, tokens: RefusalTokens) -> list[int]:
    """All refusal tokens, or the control token that the arm names."""
    if arm.category == MEAN:
        return tokens.ids
    known = dict(zip(tokens.names, tokens.ids, strict=True))
    known |= {} if tokens.respond is None else {RESPOND: tokens.respond}
    if arm.category not in known:
        raise UserError(f"arm {arm.name!r}: no control token {arm.category!r}; there are {', '.join(known)}")
    return [known[arm.category]]


def _lowrank(arm: Arm, tools: Tools) -> dict[str, Any] | None:
    if arm.kind != "lowrank" or tools.lowrank is None:
        return None
    low = tools.lowrank
    if low.layer != arm.layer:
        raise UserError(f"arm {arm.name!r} steers layer {arm.layer}; the low-rank map is of layer {low.layer}")
    return {"U": low.U, "V": low.V, "z": low.z, "mean": low.mean, "mode": low.metadata["mode"]}


def _no_table(vectors: SteeringVectors) -> tuple[torch.Tensor, list[str]]:
    return torch.zeros(len(vectors.categories) + 1, vectors.d_model), [*vectors.categories, MEAN]


def _table(arm: Arm, vectors: SteeringVectors) -> tuple[torch.Tensor, list[str]]:
    """The vectors at strength 1, and their names; controls put others in their places."""
    names = [*vectors.categories, MEAN]
    zero = torch.zeros(vectors.d_model)
    table = torch.stack(
        [vectors.delta(arm.layer, name, 1.0, arm.unit) if vectors.at(arm.layer, name).any() else zero for name in names]
    )
    if arm.kind == "random":
        random = torch.Generator().manual_seed(arm.seed)
        direction = torch.randn(vectors.d_model, generator=random, dtype=torch.float64)
        direction = (direction / direction.norm()).float()
        return table.norm(dim=-1, keepdim=True) * direction, names
    if arm.kind == "wrong-category":
        if len(names) < 3:
            raise UserError(f"arm {arm.name!r} needs two categories; the vectors have one")
        order = [*range(1, len(names) - 1), 0, len(names) - 1]
        return table[order], [names[at] for at in order]
    return table, names


def tools_fingerprint(plans: list[Plan], probe: Probe | None) -> str:
    """What the vectors, the low-rank map and the probe are, whatever their files are called."""
    digest = sha256()
    for plan in plans:
        digest.update(plan.table.numpy().tobytes())
        for name in ("U", "V", "z", "mean") if plan.lowrank else ():
            digest.update(plan.lowrank[name].numpy().tobytes())  # type: ignore[index]
    for part in (probe.weight, probe.mean, probe.bias, probe.threshold) if probe else ():
        digest.update(part.numpy().tobytes())
    return digest.hexdigest()


def gate_of(plans: Sequence[Plan], probe: Probe | None) -> Gate | None:
    """The probe as a trace needs it, if an arm is gated."""
    if probe is None or all(plan.arm.route != "gated" for plan in plans):
        return None
    return Gate(probe.layer, probe.weight, probe.mean, probe.bias, probe.threshold)
