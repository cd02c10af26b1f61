"""Numbers and names as people read them."""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import polars as pl

from data import contract
from data.visible import visible as visible

LABELS = tuple(sorted(contract.LABELS))  # benign first: over-refusal is what steering is meant to mend
PROMPTS = {**{label: f"{label} prompts" for label in LABELS}, None: "prompts without a label"}
REFUSED = {"benign": "Over-refusal", "harmful": "Refusal"}  # what it is called when prompts of a label are refused
UNITS = {
    "residual": "mean lengths of the residual stream",
    "unit": "lengths of a unit vector",
    "raw": "lengths of the vector itself",
}
WORDS = (
    "Words: over-refusal is declining a benign (harmless) prompt, refusal declining a harmful one, as it should be. An arm is one way "
    "to answer the same prompts; the baseline is the model as it is. A steering vector is a direction in the model's inner state, "
    "and the strength says how much of it is added: negative is away from refusal, positive towards it. A gate looks at each prompt "
    "before it is answered: what it takes for harmful is left alone or steered towards refusal, the rest steered away from it. A broken answer (empty, "
    "wordless, repetitive) counts neither as a refusal nor as an answer."
)
MINUS = "−"
LONGEST_NAME = 60


def name(value: Any, longest: int = LONGEST_NAME) -> str:
    """A name for a chart or a heading: one short visible line."""
    text = visible(" ".join(str("–" if value is None else value).split()))
    return text if len(text) <= longest else text[: longest - 1] + "…"


def distinct(values: Iterable[Any], longest: int = LONGEST_NAME) -> dict[Any, str]:
    """A name for each value, and no two alike: where shortening makes them so, a number tells them apart."""
    wanted = list(dict.fromkeys(values))
    names = {value: name(value, longest) for value in wanted}
    often = Counter(names.values())
    told: dict[Any, str] = {}
    for value, short in names.items():
        at = 1
        while often[short] > 1 and (f"{at}: {short}" in told.values() or f"{at}: {short}" in often):
            at += 1
        told[value] = short if often[short] == 1 else f"{at}: {short}"
    return told


def units(unit: str | None) -> str:
    """What a strength of 1 is."""
    return UNITS.get(unit or "", f"units of {name(unit)}")


def percent(value: float | None, digits: int = 1) -> str:
    """12.3 %, with a blank that doesn't break."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f}\u00a0%"


def share(count: int | None, n: int | None) -> str:
    """So many of n, in percent."""
    return percent(count / n) if n and count is not None else "–"


def points(value: float | None) -> str:
    """A difference of shares, in percentage points, with its sign."""
    return "–" if value is None or not math.isfinite(value) else signed(f"{100 * value:+.1f}")


def span(low: float | None, high: float | None) -> str:
    """An interval of shares, in percent."""
    return "–" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"


def number_span(low: float | None, high: float | None) -> str:
    """An interval of numbers, three digits each."""
    return "–" if low is None or high is None else f"{number(low)} to {number(high)}"


def fixed_span(low: float | None, high: float | None) -> str:
    """An interval of numbers, two decimals each."""
    return "–" if low is None or high is None else f"{fixed(low)} to {fixed(high)}"


def points_span(low: float | None, high: float | None) -> str:
    """An interval of differences, in percentage points."""
    return "–" if low is None or high is None else f"{points(low)} to {points(high)}"


def p_value(p: float | None) -> str:
    """A p-value, never rounded to nothing."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def fixed(value: float | None, digits: int = 2) -> str:
    """A number with so many decimals."""
    return "–" if value is None or not math.isfinite(value) else signed(f"{value:.{digits}f}")


def token(text: str | None, longest: int = 34) -> str:
    """A token in quotation marks, blanks at its ends to be seen."""
    if text is None:
        return "–"
    shown = visible(text[:longest])
    start, end = len(shown) - len(shown.lstrip(" ")), len(shown) - len(shown.rstrip(" "))
    return f"‘{'␣' * start}{shown.strip(' ')}{'␣' * (end if start < len(shown) else 0)}’"


def number(value: Any, digits: int = 3) -> str:
    """A number to so many significant digits; whole numbers in full; a dash for nothing."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return signed(f"{value:,}")
    if 10**digits - 0.5 <= abs(value) < 1e6:  # where `g` would write 1.14e+03
        return signed(f"{value:,.0f}")
    return signed(f"{value:.{digits}g}" if 1e-4 <= abs(value) < 1e6 or value == 0 else f"{value:.{digits - 1}e}")


def signed(text: str) -> str:
    """A number's text with a minus sign instead of a hyphen."""
    return text.replace("-", MINUS)


def counted(n: int, thing: str, things: str | None = None) -> str:
    """1 prompt, 20 prompts."""
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {things or thing + 's'}"


def listed(values: Any, most: int = 6) -> str:
    """a, b and c; the rest is counted."""
    texts = [name(value) for value in values]
    if len(texts) > most:
        return ", ".join(texts[: most - 1]) + f" and {len(texts) - most + 1} more"
    return texts[0] if len(texts) == 1 else ", ".join(texts[:-1]) + " and " + texts[-1] if texts else "none"


def count_range(values: pl.Series) -> str:
    """230, or 230–236 where they differ."""
    low, high = values.min(), values.max()
    if low is None:
        return "none"
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def is_shown(low: float | None, high: float | None, p: float | None) -> bool:
    """Whether a difference may be called one: its interval leaves 0 out, and so does its (adjusted) test."""
    return low is not None and high is not None and (low > 0 or high < 0) and p is not None and p < 0.05


def verdict(low: float | None, high: float | None, p: float | None) -> str:
    """The same in words."""
    return "shown" if is_shown(low, high, p) else "not shown"


def column(frame: pl.DataFrame, write: Any, *names: str) -> pl.Series:
    """A column of text, made row by row from some columns."""
    return pl.Series([write(*row) for row in frame.select(names).iter_rows()], dtype=pl.String)


def table_of(frame: pl.DataFrame, *columns: tuple[Any, ...]) -> pl.DataFrame:
    """What stands on the page: a heading, a function and the names of its arguments' columns, for each column."""
    return pl.DataFrame({heading: column(frame, write, *names) for heading, write, *names in columns})
