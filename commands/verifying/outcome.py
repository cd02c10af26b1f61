"""What comes of checks, and how figures that were computed again are held against those that a run has."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from commands.framework.app import Session
from commands.framework.settings import Record, Settings
from data.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import torch

PASS, DIFFERS, UNKNOWN = "pass", "differs", "can't be checked"
FIGURE, TENSOR = (
    1e-6,
    1e-5,
)  # how far figures of tables, and rows of tensors by their length, may lie apart and be equal
COMPUTED = 1e-3  # the same of what a model computes, in other batches


class Outcome(NamedTuple):
    """What came of one check of an artefact."""

    artefact: str
    check: str
    outcome: str
    found: str


@dataclass(frozen=True)
class Case:
    """A run directory that is verified.

    Attributes:
        session: Of the chain.
        s: The command's options; what is missing is never made.
        records: What `run.json` says.
        share: Of activations and answers that is computed again.
        draw: Chooses these.
        scratch: A folder to write into.
    """

    session: Session
    s: Settings
    records: dict[str, Record]
    share: float
    draw: "np.random.Generator"
    scratch: Path

    @property
    def run(self) -> Path:
        """The directory."""
        return self.s.run

    def as_made(self, record: Record, **values: Any) -> Settings:
        """The options that an artefact was made with, in place of those that have a say in what it holds."""
        options = {
            name: tuple(value) if isinstance(value, list) else value for name, value in record["options"].items()
        }
        kept = {
            name: self.s.given(name)
            for name in ("data_mirror", "device", "device_map", "offload_folder", "batch_tokens", "where")
        }
        where = {name: value for name, value in kept.items() if value is not None}
        return self.s.with_values(
            **options
            | {"as_json": None, "debug": None, "model": None, "seed": record.get("seed")}
            | where
            | {"no_auto": True}
            | values
        )

    def sample(self, rows: int, least: int = 32) -> list[int]:
        """Some of so many rows, ascending: the share, or `least` of them."""
        count = min(rows, max(least, math.ceil(self.share * rows)))
        return sorted(self.draw.choice(rows, count, replace=False).tolist())


Check = Callable[[Case], Iterator[Outcome]]


def settled(artefact: str, check: str, differences: str, same: str) -> Outcome:
    """Pass if there is no difference to tell of."""
    return Outcome(artefact, check, DIFFERS if differences else PASS, differences or same)


def attempted(check: Check, case: Case, artefact: str, what: str) -> Iterator[Outcome]:
    """What a check finds; what it can't do is told, and what can't even be read differs."""
    import polars as pl

    try:
        yield from check(case)
    except UserError as error:
        yield Outcome(artefact, what, UNKNOWN, " ".join(str(error).split()))
    except (pl.exceptions.PolarsError, KeyError, ValueError, TypeError, IndexError, AttributeError, OSError) as error:
        told = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        yield Outcome(artefact, what, DIFFERS, f"not what a command writes: {type(error).__name__}: {told}")


def tensors_apart(
    there: "Mapping[str, torch.Tensor]", again: "Mapping[str, torch.Tensor]", most: float = TENSOR
) -> str:
    """How far tensors lie apart, row by row as a share of the row's length; empty where they are equal."""
    if {name: tuple(one.shape) for name, one in there.items()} != {
        name: tuple(one.shape) for name, one in again.items()
    }:
        return f"tensors {', '.join(sorted(there))}, computed again {', '.join(sorted(again))}, or of other shapes"
    worst, name = max(((rows_apart(one.double().numpy(), again[name].double().numpy()), name) for name, one in there.items()), default=(0.0, ""))  # fmt: skip
    return f"{name!r} lies {worst:.3g} of its length away" if worst > most else ""


def rows_apart(there: "np.ndarray", again: "np.ndarray") -> float:
    """The largest ‖a − b‖ / ‖b‖ over rows, infinite where a value is no number."""
    import numpy as np

    if not there.size:
        return 0.0
    there, again = np.atleast_1d(there), np.atleast_1d(again)
    length = np.maximum(np.linalg.norm(again, axis=-1), 1e-12)
    apart = np.linalg.norm(there - again, axis=-1) / length
    return float(apart.max()) if np.isfinite(apart).all() else math.inf


def metadata_apart(there: Mapping[str, str], again: Mapping[str, str]) -> str:
    """Which entries of two files' metadata are not the same; numbers in them may differ by rounding."""
    odd = [name for name in {*there, *again} if not _alike(_read(there.get(name)), _read(again.get(name)), TENSOR)]
    return (
        f"metadata {', '.join(sorted(odd))}: {there.get(min(odd))!r}, computed again {again.get(min(odd))!r}"
        if odd
        else ""
    )


def frames_apart(
    there: "pl.DataFrame", again: "pl.DataFrame", keys: Sequence[str], most: float = FIGURE, only: Sequence[str] = ()
) -> str:
    """Which figures of a table are not those that were computed again, the farthest first; empty where all are.

    Args:
        there: The run's table.
        again: The same, computed again.
        keys: Columns that tell rows apart.
        most: How far numbers may lie apart, of 1 or of their size.
        only: Columns to look at; without any, all that were computed again.
    """
    columns = [name for name in (only or again.columns) if name not in keys]
    lacking = [name for name in [*keys, *columns] if name not in there.columns]
    if lacking:
        return f"no column {', '.join(lacking)}"
    rows, other = _by_key(there, keys, columns), _by_key(again, keys, columns)
    if rows.keys() != other.keys() or there.height != again.height:
        extra, missing = rows.keys() - other.keys(), other.keys() - rows.keys()
        some = next(iter([*extra, *missing]), ())
        return f"{there.height} rows, computed again {again.height}; {len(extra)} too many, {len(missing)} missing" + (f", such as {_named(some)}" if some else "")  # fmt: skip
    odd = [(_distance(a, b), key, name, a, b) for key, row in rows.items() for name, a, b in zip(columns, row, other[key], strict=True)
           if not _alike(a, b, most)]  # fmt: skip
    if not odd:
        return ""
    _, key, name, a, b = max(odd, key=lambda one: one[0])
    return f"{len(odd)} of {len(rows) * len(columns)} figures, such as {name} of {_named(key)}: {_short(a)}, computed again {_short(b)}"


def kept_columns(name: str, there: "pl.DataFrame", again: "pl.DataFrame") -> list[str]:
    """Columns of a table to look at: all but those beyond the contract that an earlier version did not write."""
    from data.store.tables import BEYOND

    return [column for column in again.columns if column in there.columns or column not in BEYOND.get(name, ())]


def _by_key(
    frame: "pl.DataFrame", keys: Sequence[str], columns: Sequence[str]
) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    return {row[: len(keys)]: row[len(keys) :] for row in frame.select(*keys, *columns).iter_rows()}


def _alike(a: Any, b: Any, most: float) -> bool:
    if isinstance(a, bool) or isinstance(b, bool) or a is None or b is None:
        return a is b or (isinstance(a, bool) and isinstance(b, bool) and a == b)
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        if math.isnan(a) or math.isnan(b):
            return math.isnan(a) and math.isnan(b)
        return a == b or abs(a - b) <= most * max(1.0, abs(b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(value, b[name], most) for name, value in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_alike(one, other, most) for one, other in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def _distance(a: Any, b: Any) -> float:
    both = isinstance(a, (int, float)) and isinstance(b, (int, float))
    return abs(a - b) if both and math.isfinite(a - b) else math.inf


def _read(text: str | None) -> Any:
    with suppress(ValueError, TypeError, RecursionError):
        return json.loads(text or "")
    return text


def _named(key: tuple[Any, ...]) -> str:
    return ", ".join("–" if part is None else str(part)[:40] for part in key)


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else repr(value)[:80]
