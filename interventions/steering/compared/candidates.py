"""What is compared: every method as an arm that no gate decides, and controls beside."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from data.contract import EDITS, METHODS, RELEASE, TOWARDS
from data.contract import KINDS as ARMS
from data.errors import UserError
from interventions.model.control_tokens import refusal_tokens
from interventions.model.model import Model
from interventions.steering.arms import Arm, parse_arms
from interventions.steering.plans import Tools

CONTROLS = ("random", "shuffled")  # methods that are no candidates
DIRECTIONS = 20  # random ones, of which each prompt gets one
KINDS = (*EDITS, "ablate")  # kinds of arms that are methods of their own
KEYS = {"ablate": ("layers=all",)}
UNGATED = ("affine", "prompt-only")  # can't leave a prompt alone: affine has no strength that changes nothing
PLAIN = ("routed", "fixed")  # kinds that add a vector, which `gated` does too
MOST = {"angular": 1.0}  # strength that a kind can have
UNSIZED = (
    "ablate",
    "affine",
    "false-refusal",
    "logit-bias",
    "prompt-only",
)  # have no strength that KL could be tuned by


@dataclass(frozen=True)
class Candidate:
    """A method as an arm.

    Attributes:
        method: As tables call it.
        kind: Of its arm.
        keys: What stands behind its kind.
        arm: Steers every row away from refusal; with a strength of −1 where one is to be found.
        tools: What it draws on.
        control: Whether it is there to be beaten.
    """

    method: str
    kind: str
    keys: tuple[str, ...]
    arm: Arm
    tools: Tools
    control: bool = False

    @property
    def sized(self) -> bool:
        """Whether its strength is to be found."""
        return self.kind not in UNSIZED

    @property
    def gateable(self) -> bool:
        """Whether a gate can keep it from some prompts."""
        return self.kind not in UNGATED

    def at(self, size: float) -> "Candidate":
        """The same, so strong; as strong as it can be, where that is less."""
        strength = math.copysign(min(size, MOST.get(self.kind, size)), self.arm.strength)
        return replace(self, arm=replace(self.arm, strength=strength))

    @property
    def reversible(self) -> bool:
        """Whether the other sign steers towards refusal: of vectors that are added at a strength of their own."""
        return self.sized and self.kind in PLAIN

    def reversed(self) -> "Candidate":
        """The same towards refusal, in the papers' proportion: +4 against −6."""
        arm = self.arm
        return replace(self, arm=replace(arm, strength=arm.strength * TOWARDS, bias=arm.bias * TOWARDS))

    def words(self, gate: str, threshold: float, harmful_threshold: float | None = None) -> str:
        """As `--arm` takes it, under a gate or under none; the strength for benign prompts aside.

        Harmful prompts are left alone, or steered towards refusal where the gate's score reaches a second threshold.
        """
        keys = [key for key in self.keys if not key.startswith("strength=")]
        kind = self.kind
        if gate:
            keys = [key for key in keys if not key.startswith("route=")]  # a gate routes, too
            kind, keys = ("gated", keys) if kind in PLAIN else (kind, ["route=gated", *keys])
            there = (
                replace(self.reversed().arm, strength=0.0, bias=0.0)
                if harmful_threshold is None
                else self.reversed().arm
            )
            keys += [f"gate={gate}", f"threshold={threshold!r}", f"harmful={there.strength:.6g}"]
            keys += [f"harmful-bias={there.bias:.6g}"] if self.arm.bias else []
            keys += [] if harmful_threshold is None else [f"harmful-threshold={harmful_threshold!r}"]
        return f"{kind}:{','.join(keys)}" if keys else kind


def wanted(names: Sequence[str]) -> list[str]:
    """The methods that some words name; `all` for every one.

    Raises:
        UserError: There is no such method.
    """
    every = [*(name for name in METHODS if name not in CONTROLS), *KINDS]
    odd = [name for name in names if name not in (*every, "all")]
    if odd:
        raise UserError(f"--methods: no method {odd[0]!r}; there are all, {', '.join(every)}")
    return every if "all" in names else list(dict.fromkeys(names))


def candidates(model: Model, default: Arm, by_method: Mapping[str, Tools], shared: Tools) -> list[Candidate]:
    """Methods in their order, then controls.

    Args:
        model: An open model.
        default: What arms leave open: layer, scope, unit, category.
        by_method: Of each method what its arm draws on.
        shared: What controls draw on.
    """
    tokens = refusal_tokens(model)
    bias = (f"bias={RELEASE:g}",) if tokens.respond is not None else ()
    route = "routed" if tokens.ids else "fixed"
    found = []
    for method, tools in by_method.items():
        kind = method if method in KINDS else route
        routes = (f"route={route}",) if kind in KINDS and ARMS[kind].table == "vectors" else ()  # as under a gate
        found.append(_candidate(method, kind, (*routes, *KEYS.get(method, ()), *bias), default, tools))
    controls: list[tuple[str, ...]] = [("random", f"directions={DIRECTIONS}", *bias)]
    controls += [("wrong-category", *bias)] if len(shared.vectors.categories) > 1 and tokens.ids else []
    controls += [("logit-bias", "category=respond", f"strength={RELEASE:g}")] if tokens.respond is not None else []
    for kind, *keys in [*controls, ("prompt-only",)]:
        found.append(replace(_candidate(kind, kind, tuple(keys), default, shared), control=True))
    return found


def _candidate(method: str, kind: str, keys: tuple[str, ...], default: Arm, tools: Tools) -> Candidate:
    [arm] = parse_arms([f"{kind}:{','.join(keys)}" if keys else kind], default)
    found = Candidate(method, kind, keys, replace(arm, name=method), tools)
    return replace(found, arm=replace(found.arm, strength=-1.0)) if found.sized else found
