"""Which scorers run: those that were asked for, or all that have what they need.

A scorer is a line of `data.contract.SCORERS` and a file `reports/scoring/NAME.py`, which has
- `scorer(generations, given)`: with the table of `generate` and what was given, how answers get their verdicts; None
  where that is not enough;
- `NEEDS`: what it takes, to be said where it was asked for all the same.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import polars as pl

from data.contract import SCORED
from data.errors import UserError

# The table of `generate` with a column `broken` -> a verdict a row, null where the scorer failed or does not apply.
Verdicts = Callable[[pl.DataFrame], pl.Series]
Given = Mapping[str, Any]


def assemble(generations: pl.DataFrame, names: Sequence[str] = (), **given: Any) -> dict[str, Verdicts]:
    """Scorers by name, in the order of their rows, as `scoring.score` takes them.

    Args:
        generations: The table of `generate`.
        names: Some of `SCORERS`; without any, all that have what they need.
        given: What scorers may need: `judge` (a `Judge`) and `cache` (the file of its verdicts); `classifier` (a model
            folder or hub id), `labels` (class -> verdict, where the classes' names don't say it) and `device`; `hand`
            (a file of labels). None is as good as nothing.

    Raises:
        UserError: A scorer was asked for that lacks what it needs, or whose tokens the model lacks.
    """
    found = {}
    for name in SCORED:
        module = import_module(f"reports.scoring.{name}")
        verdicts = module.scorer(generations, given)
        if verdicts is not None:
            found[name] = verdicts
        elif name in names:
            raise UserError(f"--scorer {name} can't run: {module.NEEDS}")
    return {name: verdicts for name, verdicts in found.items() if not names or name in names}
