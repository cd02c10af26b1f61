"""Prompts in: the embedded sample, data sets of the hub and the user's own files, as polars frames of one shape. Imports nothing of the rest."""

import importlib
from typing import TYPE_CHECKING, Any

from data.errors import OutOfReachError, UserError

if TYPE_CHECKING:
    from data.prompts.reading import PROMPT_COLUMNS, fingerprint, for_split, load, load_all, stacked
    from data.prompts.siblings import known_themes, themes

__all__ = [
    "PROMPT_COLUMNS",
    "OutOfReachError",
    "UserError",
    "fingerprint",
    "for_split",
    "known_themes",
    "load",
    "load_all",
    "stacked",
    "themes",
]


def __getattr__(name: str) -> Any:
    """Import polars only where prompts are read: `--help` must not wait for it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(
        "data.prompts.siblings" if name in ("known_themes", "themes") else "data.prompts.reading"
    )
    return getattr(module, name)
