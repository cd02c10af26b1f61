"""The project's own prompts: the sample that every command falls back on, and further lessons for fine-tuning.

Both are JSON lines with the fields `id`, `prompt`, `category`, `label`, `split`, `theme` and `response`. Siblings share
a theme, and no theme straddles two splits. The lessons are training rows alone.
"""

from pathlib import Path

import polars as pl

FOLDER = Path(__file__).parents[1]
FILES = {"embedded": FOLDER / "embedded.jsonl", "embedded:lessons": FOLDER / "lessons.jsonl"}


def named(source: str) -> tuple[str, str]:
    """`embedded:lessons/train` as name and split; ("", "") for any other source.

    Args:
        source: `embedded` or `embedded:lessons`, with `/SPLIT` or without.
    """
    name, _, split = source.partition("/")
    return (name, split) if name in FILES else ("", "")


def read(name: str) -> pl.DataFrame:
    """Every row of one of `FILES`, with theme and response."""
    return pl.read_ndjson(FILES[name])
