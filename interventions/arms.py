"""Arms: what is compared with what. `baseline` steers nothing; `fixed` adds one vector to every row."""

from collections.abc import Sequence
from dataclasses import dataclass

from data.errors import UserError
from interventions.steering import SCOPES
from interventions.vectors import MEAN, UNITS

KINDS = ("baseline", "fixed")
DEFAULT_STRENGTH, DEFAULT_UNIT, DEFAULT_SCOPE = -0.3, "residual", "generated"


@dataclass(frozen=True)
class Arm:
    """One way to answer the prompts.

    Attributes:
        name: As it stands in the tables: the kind, or `kind:key=value,…` where a kind runs more than once.
        kind: One of `KINDS`.
        layer: The block whose output is edited.
        category: Whose vector; `mean` for the mean of all.
        strength: In `unit`s.
        unit: One of `vectors.UNITS`.
        scope: A key of `steering.SCOPES`.
    """

    name: str
    kind: str
    layer: int
    category: str = MEAN
    strength: float = DEFAULT_STRENGTH
    unit: str = DEFAULT_UNIT
    scope: str = DEFAULT_SCOPE


def parse_arms(texts: Sequence[str], default: Arm) -> list[Arm]:
    """Arms from `kind` or `kind:key=value,…`; what a text leaves open is taken from `default`.

    Keys: `category`, `layer`, `scope`, `strength`, `unit`.

    Raises:
        UserError: An unknown kind, key or value, or one arm given twice.
    """
    split = [(text.partition(":")[0], text.partition(":")[2]) for text in texts]
    kinds = [kind for kind, _ in split]
    arms = []
    for text, (kind, rest) in zip(texts, split, strict=True):
        if kind not in KINDS:
            raise UserError(f"--arm {text!r}: unknown kind {kind!r}; there are {', '.join(KINDS)}")
        items = [item.partition("=") for item in rest.split(",")] if rest else []
        pairs = {key: value for key, _, value in items}
        name = kind if kinds.count(kind) == 1 else ":".join(filter(None, (kind, _canonical(pairs))))
        arms.append(_arm(text, name, kind, pairs, default))
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise UserError(f"--arm {max(names, key=names.count)!r} is given twice")
    return arms


def _canonical(pairs: dict[str, str]) -> str:
    return ",".join(f"{key}={pairs[key]}" for key in sorted(pairs))


def _arm(text: str, name: str, kind: str, pairs: dict[str, str], default: Arm) -> Arm:
    odd = set(pairs) - {"category", "layer", "scope", "strength", "unit"}
    if odd:
        raise UserError(f"--arm {text!r}: unknown key {sorted(odd)[0]!r}")
    try:
        layer, strength = int(pairs.get("layer", default.layer)), float(pairs.get("strength", default.strength))
    except ValueError:
        raise UserError(f"--arm {text!r}: layer and strength are numbers") from None
    scope, unit = pairs.get("scope", default.scope), pairs.get("unit", default.unit)
    if scope not in SCOPES or unit not in UNITS:
        raise UserError(f"--arm {text!r}: scope is one of {', '.join(SCOPES)}; unit is one of {', '.join(UNITS)}")
    return Arm(name, kind, layer, pairs.get("category", default.category), strength, unit, scope)
