"""Arms as people read them: short names, what sets an arm apart from its companions, and its strength.

An arm's own name says everything that it ran with (`gated:harmful=0.266667,layer=17,strength=-0.4,unit=residual`), and
files keep it. Where people read, what all arms of a kind share only stands in the way, and so do digits.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from reports.page import wording as say

STRENGTH = "strength"
NEXT = re.compile(r",(?=[a-z][a-z-]*=)")  # where a setting ends: a category may hold a comma, and blanks
LONGEST_NUMBER = 5  # characters of a setting that stay as they are
BLANK = "\u00a0"


@dataclass(frozen=True)
class Arm:
    """How an arm is shown.

    Attributes:
        short: Its name on the page, no other arm's of the same run.
        group: The same without its strength: what its line in a chart is called.
        strength: Its strength, if its name holds one.
    """

    short: str
    group: str
    strength: float | None = None


def kind_of(arm: str) -> str:
    """An arm's kind, from its name."""
    return arm.partition(":")[0]


def named(arms: Iterable[str]) -> dict[str, Arm]:
    """Each arm as it is shown among these; names that would be the same stay whole."""
    names = list(dict.fromkeys(arms))
    common = shared(names)
    shown = {name: _shown(name, common.get(kind_of(name), {})) for name in names}
    wholes = [say.name(name) for name in names]
    taken = [arm.short for arm in shown.values()]
    for at, (name, arm) in enumerate(shown.items()):
        if taken.count(arm.short) > 1:
            whole = say.name(name)
            short = whole if whole not in taken and wholes.count(whole) == 1 else f"{at + 1}: {whole}"
            shown[name] = Arm(short, short, arm.strength)
    return shown


def alone(arm: str) -> str:
    """An arm's name where its companions are not known: with all that it holds, in short."""
    return _shown(arm, {}).short


def shared(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Kind -> the settings that all its arms have alike, strengths aside."""
    by_kind: dict[str, list[dict[str, str]]] = {}
    for name in dict.fromkeys(names):
        by_kind.setdefault(kind_of(name), []).append(_settings(name))
    return {kind: {key: value for key, value in arms[0].items()
                   if key != STRENGTH and all(other.get(key) == value for other in arms)}
            for kind, arms in by_kind.items()}  # fmt: skip


def unsaid(names: Iterable[str]) -> str:
    """What the short names leave out, in a sentence; empty if nothing."""
    told = [
        f"{say.name(kind)} ({', '.join(_setting(*setting) for setting in settings.items())})"
        for kind, settings in shared(names).items()
        if settings
    ]
    return f"Left out of the arms' names, as all of a kind share it: {'; '.join(told)}." if told else ""


def mark(strength: float) -> str:
    """A strength with its sign."""
    return say.signed(f"{strength:+g}" if len(f"{abs(strength):g}") <= LONGEST_NUMBER else f"{strength:+.2g}")


def _shown(name: str, common: dict[str, str]) -> Arm:
    settings = _settings(name)
    strength = _strength(settings)
    left = [
        _setting(key, value)
        for key, value in settings.items()
        if key not in common and (key != STRENGTH or strength is None)
    ]
    group = say.name(" ".join(part for part in (kind_of(name), ", ".join(left)) if part))
    if strength is None:
        return Arm(group, group)
    return Arm(f"{group}{',' if left else ''}{BLANK}{mark(strength)}", group, strength)


def _settings(name: str) -> dict[str, str]:
    parts = [part.partition("=") for part in NEXT.split(name.partition(":")[2]) if part]
    return {key: value for key, _, value in parts}


def _strength(settings: dict[str, str]) -> float | None:
    number = _number(settings.get(STRENGTH, ""))
    return number if number is not None and math.isfinite(number) else None


def _setting(key: str, value: str) -> str:
    number = _number(value)
    if number is None or not math.isfinite(number):
        return say.name(f"{key} {value}" if value else key)
    whole = value.lstrip("+-").isdecimal() or len(value.lstrip("+-")) <= LONGEST_NUMBER
    return f"{say.name(key)} {say.signed(value if whole else f'{number:.2g}')}"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
