"""Arms: what is compared with what, written as `kind` or `kind:key=value,…`."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from data.contract import (
    ARM_KEYS,
    DEFAULT_SCOPE,
    DEFAULT_STRENGTH,
    DEFAULT_UNIT,
    INSTRUCTION,
    KINDS,
    MEAN,
    MOST_SEED,
    OPERATIONS,
    OWN_KEYS,
    ROUTES,
    SCOPES,
    TOWARDS,
    UNITS,
    Kind,
    gate_members,
    window,
)
from data.errors import UserError

LATER = (
    "bias",
    "harmful_bias",
    "gate",
    "slope",
    "threshold",
    "harmful_threshold",
    "layers",
    "angle",
    "adaptive",
    "partial",
    "directions",
)  # fields that records have where they say something
FIELDS = {
    "benign": "strength",
    "harmful-bias": "harmful_bias",
    "harmful-threshold": "harmful_threshold",
    "lambda": "partial",
}  # what keys that are no fields are called there
NEXT = re.compile(r",(?=\s*[\w-]+\s*=)")
TEXT = re.compile(r"(?:^|,)\s*text\s*=")


@dataclass(frozen=True)
class Arm:
    """One way to answer the prompts.

    Attributes:
        name: As it stands in the tables: the kind, or `kind:key=value,…` where a kind runs more than once.
        kind: A key of `KINDS`.
        layer: The block whose output is edited, or where an ablated direction is from.
        category: Whose vector; `mean` for the mean of all. Of `logit-bias`: which control token, `respond` among them;
            `mean` for every refusal token.
            Gated: the mean stands for the route's choice.
        strength: In `unit`s; for `logit-bias` in logits. Gated: that for prompts which look benign.
        harmful: Gated: the strength for prompts which look harmful.
        unit: One of `vectors.UNITS`.
        scope: A key of `steering.SCOPES`.
        operation: One of `OPERATIONS`.
        route: A key of `ROUTES`.
        seed: Of a random direction.
        text: The instruction of `prompt-only`.
        bias: Beside a vector: logits on `[respond]` at the first generated position. Gated: for prompts which look benign.
        harmful_bias: Gated: logits on it for prompts which look harmful.
        gate: Gated: a key of `GATES`, or several of them joined (`data.contract.gate_members`).
        slope: Gated: how fast the strength goes from the one for harmless prompts to the one for harmful ones with the log-odds of
            the gate's score, around its threshold; 0: at once.
        threshold: Gated: the score from which on a prompt looks harmful; None: the gate's own.
        harmful_threshold: Gated: the score from which on it is steered as harmful ones are; between `threshold` and it nothing is
            done. None: `threshold`.
        layers: The blocks whose outputs are edited, in `contract.window`'s words; empty: `layer` alone. Each gets the whole strength
            of its own layer's vector (as in arXiv 2310.01405 and 2506.07022); an ablation takes out `layer`'s direction at
            all of them (arXiv 2406.11717).
        angle: Of `angular`: degrees from the direction of refusal, where strength 1 ends.
        adaptive: Of `angular`: `yes` leaves alone states whose part along refusal is negative.
        directions: Of `random`: how many directions; each row gets one of them, in turn.
        partial: Of `false-refusal`: λ, the share of the refusal direction that is left out of what is projected out.
        said: What was said of it behind its kind, `key=value,…` with sorted keys.
    """

    name: str
    kind: str
    layer: int
    category: str = MEAN
    strength: float = DEFAULT_STRENGTH
    harmful: float = DEFAULT_STRENGTH * TOWARDS
    unit: str = DEFAULT_UNIT
    scope: str = DEFAULT_SCOPE
    operation: str = "add"
    route: str = "fixed"
    seed: int = 0
    text: str = ""
    bias: float = 0.0
    harmful_bias: float = 0.0
    gate: str = "probe"
    slope: float = 0.0
    threshold: float | None = None
    harmful_threshold: float | None = None
    layers: str = ""
    angle: float = 0.0
    adaptive: str = "no"
    partial: float = 1.0
    directions: int = 1
    said: str = ""

    @property
    def setting(self) -> dict[str, Any]:
        """All that it does, whatever it is called."""
        return {name: value for name, value in asdict(self).items() if name not in ("name", "said")}

    @property
    def record(self) -> dict[str, Any]:
        """Its fields, as records and journals have them: what came later is there where it says something."""
        silent = {
            field.name for field in fields(self) if field.name in LATER and getattr(self, field.name) == field.default
        } | ({"said"} if self.said in self.name else set())
        return {name: value for name, value in asdict(self).items() if name not in silent}

    @property
    def does(self) -> Kind:
        """What its kind says."""
        return KINDS[self.kind]

    @property
    def is_baseline(self) -> bool:
        """Whether it changes nothing."""
        return self.kind == "baseline"

    @property
    def steers(self) -> bool:
        """Whether it edits the residual stream."""
        return self.does.operation != "none"

    @property
    def its_layer(self) -> int | None:
        """The layer that tables name: none where none is edited, or several are that no one's direction is ablated at."""
        return self.layer if self.steers and (not self.layers or self.operation == "ablate") else None

    @property
    def maps(self) -> bool:
        """Whether it adds what a low-rank map gives."""
        return self.does.table == "lowrank"

    @property
    def has_vectors(self) -> bool:
        """Whether each row gets a category's vector, which a route may choose."""
        return self.does.table in ("vectors", "random", "next")

    @property
    def needs_tokens(self) -> bool:
        """Whether it reads the refusal tokens' probabilities."""
        asks = self.route == "routed" and self.has_vectors
        return asks or self.does.reads_tokens or self.bias != 0 or self.harmful_bias != 0

    @property
    def reads_labels(self) -> bool:
        """Whether it reads a row's category or label: an upper bound, not a method."""
        return self.does.reads_labels or (self.is_gated and self.gate == "perfect")

    @property
    def is_gated(self) -> bool:
        """Whether a gate decides its strength."""
        return "gated" in (self.route, self.does.route)

    @property
    def is_routed(self) -> bool:
        """Whether the most probable refusal token decides its vector, where the model has such tokens."""
        return (
            self.has_vectors
            and self.directions == 1
            and (self.route == "routed" or (self.route == "gated" and self.category == MEAN))
        )

    @property
    def is_idle(self) -> bool:
        """Whether it would change nothing, and is no baseline."""
        amounts = [self.strength, self.bias]
        amounts += [self.harmful, self.harmful_bias] if self.is_gated or self.reads_labels else []
        moves = self.does.instructs or (self.steers and self.operation != "add")
        return not (self.is_baseline or moves or any(amounts))


def baseline(layer: int) -> Arm:
    """The arm that changes nothing."""
    return Arm("baseline", "baseline", layer)


def parse_arms(texts: Sequence[str], default: Arm) -> list[Arm]:
    """Arms from `kind` or `kind:key=value,…`; what a text leaves open is taken from `default`.

    Keys: those of `ARM_KEYS`; `benign` is another name of `strength` for gated arms, and `bias` goes with an edit. A value goes on to
    the next `,key=`, so that a category may hold a comma; `text`, of kinds that have one, goes on to the end, so it stands last.

    Raises:
        UserError: An unknown kind, key or value, or one arm given twice.
    """
    split = [(text.partition(":")[0], text.partition(":")[2]) for text in texts]
    kinds = [kind for kind, _ in split]
    arms: list[Arm] = []
    for text, (kind, rest) in zip(texts, split, strict=True):
        if kind not in KINDS:
            raise UserError(f"--arm {text!r}: unknown kind {kind!r}; there are {', '.join(KINDS)}")
        pairs = _pairs(kind, rest, f"--arm {text!r}")
        said = _canonical(pairs)
        name = kind if kinds.count(kind) == 1 else _named(kind, said)
        arms.append(replace(_arm(text, name, kind, pairs, default), said=said))
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise UserError(f"--arm {max(names, key=names.count)!r} is given twice")
    return arms


def together(arms: Sequence[Arm]) -> list[Arm]:
    """Arms of several commands as one command would have them: each setting once, with names that tell them apart.

    Where what was said of two of a kind does not, since an option of the command did, what they differ in stands in the name.
    """
    apart: list[Arm] = []
    for arm in arms:
        if all(arm.setting != other.setting for other in apart):
            apart.append(arm)
    kinds = [arm.kind for arm in apart]
    many = {kind for kind in kinds if kinds.count(kind) > 1}
    named = [replace(arm, name=_named(arm.kind, arm.said if arm.kind in many else "")) for arm in apart]
    names = [arm.name for arm in named]
    return [
        arm if names.count(arm.name) == 1 else _told_apart(arm, [other for other in named if other.name == arm.name])
        for arm in named
    ]


def _told_apart(arm: Arm, alike: Sequence[Arm]) -> Arm:
    """An arm with all in its name that tells it from others of the same name."""
    own = arm.setting
    differing = [key for key in own if _reads(arm, key) and any(other.setting[key] != own[key] for other in alike)]
    if "strength" in differing and all(other.harmful == other.strength * TOWARDS for other in alike):
        differing = [key for key in differing if key != "harmful"]  # it follows from the strength
    values = {key: repr(round(own[key], 10)) if isinstance(own[key], float) else str(own[key]) for key in differing}
    pairs = _pairs(arm.kind, arm.said, arm.name) | {key.replace("_", "-"): value for key, value in values.items()}
    return replace(arm, name=_named(arm.kind, _canonical(pairs)))


def _named(kind: str, said: str) -> str:
    return f"{kind}:{said}" if said else kind


def _pairs(kind: str, rest: str, where: str) -> dict[str, str]:
    """Keys and values as they were said; in kinds without a text, `, text=` is part of a category's name.

    Raises:
        UserError: A key is there twice.
    """
    found = TEXT.search(rest) if KINDS[kind].instructs else None
    head, text = (rest[: found.start()], rest[found.end() :]) if found else (rest, None)
    items: list[tuple[str, str]] = []
    for part in NEXT.split(head.rstrip(", ")) if head.rstrip(", ") else []:
        key, equals, value = part.partition("=")
        if key.strip() == "text" and equals and items and items[-1][0] == "category" and not KINDS[kind].instructs:
            items[-1] = ("category", f"{items[-1][1]},{part}".rstrip())
        else:
            items.append((key.strip(), value.strip()))
    items += [("text", text)] if text is not None else []
    keys = [key for key, _ in items]
    if len(set(keys)) < len(keys):
        raise UserError(f"{where}: {max(keys, key=keys.count)} is given twice")
    return dict(items)


def _canonical(pairs: dict[str, str]) -> str:
    return ",".join(f"{key}={pairs[key]}" for key in sorted(pairs))


_CHOICES = {
    "scope": tuple(SCOPES),
    "unit": UNITS,
    "operation": OPERATIONS,
    "route": tuple(ROUTES),
    "adaptive": ("yes", "no"),
}


def _arm(text: str, name: str, kind: str, pairs: dict[str, str], default: Arm) -> Arm:
    odd = set(pairs) - set(ARM_KEYS)
    if odd:
        raise UserError(f"--arm {text!r}: unknown key {sorted(odd)[0]!r}; there are {', '.join(ARM_KEYS)}")
    for key, choices in _CHOICES.items():
        if pairs.get(key, choices[0]) not in choices:
            raise UserError(f"--arm {text!r}: {key} is one of {', '.join(choices)}")
    try:
        gate_members(pairs.get("gate", "probe"))
    except ValueError as error:
        raise UserError(f"--arm {text!r}: {error}") from None
    try:
        given = {key: ARM_KEYS[key](value) for key, value in pairs.items()}
    except ValueError:
        numbers = ", ".join(key for key, kind_of in ARM_KEYS.items() if kind_of is not str)
        raise UserError(f"--arm {text!r}: {numbers} are numbers") from None
    if any(value != value or abs(value) == float("inf") for value in given.values() if isinstance(value, float)):
        raise UserError(f"--arm {text!r}: a strength must be finite")
    given = {FIELDS.get(key, key): value for key, value in given.items()}
    _fitting(text, kind, pairs)
    for key, most in (("seed", MOST_SEED), ("layer", 99_999), ("directions", 10_000)):
        if not 0 <= given.get(key, 0) <= most:
            raise UserError(f"--arm {text!r}: {key} is from 0 to {most}")
    if given.get("slope", 1) <= 0:
        raise UserError(f"--arm {text!r}: slope is above 0; without it the strength changes at once")
    if "slope" in given and "harmful_threshold" in given:
        raise UserError(
            f"--arm {text!r}: slope changes the strength all the way, so leave harmful-threshold out, or slope"
        )
    if given.get("directions", 1) < 1 or (
        given.get("directions", 1) > 1 and ("category" in pairs or pairs.get("route") == "routed")
    ):
        raise UserError(
            f"--arm {text!r}: directions is 1 or more, and each row gets one of them: leave category and route=routed out"
        )
    if given.keys() & {"bias", "harmful_bias"} and not KINDS[kind].table:
        raise UserError(
            f"--arm {text!r}: bias goes beside a vector, and {kind} adds none; logit-bias:category=respond biases alone"
        )
    arm = _completed(replace(default, name=name, kind=kind, **given), given)
    for key in given:
        if not _reads(arm, key):
            raise UserError(f"--arm {text!r}: {key.replace('_', '-')} would do nothing, {_why_not(arm, key)}")
    return arm


def _reads(arm: Arm, key: str) -> bool:
    """Whether a key says something of such an arm."""
    by_row = arm.is_gated or arm.reads_labels
    if arm.is_baseline or arm.does.instructs:
        return key == "text" and not arm.is_baseline
    reading = {"harmful": by_row, "harmful_bias": by_row, "gate": arm.is_gated, "slope": arm.is_gated,
               "threshold": arm.is_gated, "harmful_threshold": arm.is_gated, "text": False,
               "seed": arm.does.table == "random", "category": not arm.maps and (arm.is_gated or not arm.is_routed)}  # fmt: skip
    return reading.get(key, True)


def _why_not(arm: Arm, key: str) -> str:
    if key in ("gate", "harmful", "harmful_bias", "slope", "threshold", "harmful_threshold"):
        return "as no gate decides: use gated, or route=gated"
    if key == "category" and arm.is_routed:
        return "as the most probable refusal token chooses the vector: use fixed, or route=fixed"
    return f"{arm.kind} has no such thing: leave it out"


def _fitting(text: str, kind: str, pairs: dict[str, str]) -> None:
    """Do the keys say something of this kind?

    Raises:
        UserError: One does not.
    """
    does = KINDS[kind]
    odd = [key for key in pairs if key in does.refuses or OWN_KEYS.get(key, kind) != kind]
    if odd:
        raise UserError(f"--arm {text!r}: {odd[0]} says nothing of {kind}; leave it out")
    if "layers" not in pairs:
        return
    ablates = pairs.get("operation", does.operation) == "ablate"
    if not does.table or does.table == "lowrank" or ("layer" in pairs and not ablates):
        why = "names one layer already" if "layer" in pairs else f"{kind} edits {'one layer' if does.table else 'none'}"
        raise UserError(f"--arm {text!r}: {why}; leave layers out")
    try:
        window(pairs["layers"], 1)
    except ValueError as error:
        raise UserError(f"--arm {text!r}: layers={error}") from None


def _completed(arm: Arm, given: dict[str, Any]) -> Arm:
    """What a kind implies where nothing else was said."""
    does = arm.does
    implied: dict[str, Any] = {}
    if does.route != "fixed":
        implied["route"] = does.route
    if does.operation not in ("add", "none"):
        implied["operation"] = does.operation
    if does.strength is not None:
        implied |= {"strength": does.strength, "unit": does.unit}
    if does.instructs:
        implied["text"] = INSTRUCTION
    implied |= {name: value for name, value in (("scope", does.scope), ("layers", does.layers)) if value}
    if "layer" in given and does.operation != "ablate":  # whose layer is where its direction is from
        implied.pop("layers", None)
    arm = replace(arm, **{key: value for key, value in implied.items() if key not in given})
    if "harmful" not in given:
        arm = replace(arm, harmful=arm.strength * TOWARDS if does.harmful is None else does.harmful)
    if does.operation == "rotate" and max(abs(arm.strength), abs(arm.harmful)) > 1:
        raise UserError(f"arm {arm.name!r}: a strength of {arm.kind} is a share of the way, from -1 to 1")
    return replace(arm, harmful_bias=arm.bias * TOWARDS) if arm.is_gated and "harmful_bias" not in given else arm
