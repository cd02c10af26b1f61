"""The project's own prompts: the sample that every command falls back on, lessons, traffic, contrasts, kinds, and two sets kept aside.

All are JSON lines with the fields `id`, `prompt`, `category`, `label`, `split`, `theme` and `response`. Siblings share
a theme, and no theme straddles two splits. The lessons are training rows alone. The traffic is taught to no model of ours:
what people ask of an assistant, in many styles, beside requests that should be declined. It has no `response`; the two rows
of a `pair` differ in what matters alone. The contrasts are such pairs, of every category, for fitting gates on, and so are the
kinds, in pairs and free-standing, plain and near-misses, of every kind that the taxonomies of CoCoNot and XSTest name: these have no
test rows. The held-out prompts are as the traffic, in other themes, all of them test rows: nothing of ours is fitted to them, but
gates were looked at on them. The families, seemingly harmful prompts, chat and instructions, were written by somebody who knew none of the
others, and nothing is fitted, chosen or tried on them, so that README's figures on them say what to expect of prompts nobody tuned on.
"""

from pathlib import Path

import polars as pl

FOLDER = Path(__file__).parents[1]
FILES = {"embedded": FOLDER / "embedded.jsonl", "embedded:lessons": FOLDER / "lessons.jsonl",
         "embedded:traffic": FOLDER / "traffic.jsonl", "embedded:contrasts": FOLDER / "contrasts.jsonl",
         "embedded:kinds": FOLDER / "kinds.jsonl", "embedded:held-out": FOLDER / "held_out.jsonl",
         "embedded:families": FOLDER / "families.jsonl"}  # fmt: skip
TAUGHT = ("embedded", "embedded:lessons")  # to the embedded model; these have responses


def named(source: str) -> tuple[str, str]:
    """`embedded:lessons/train` as name and split; ("", "") for any other source.

    Args:
        source: A key of `FILES`, with `/SPLIT` or without.
    """
    name, _, split = source.partition("/")
    return (name, split) if name in FILES else ("", "")


def read(name: str) -> pl.DataFrame:
    """Every row of one of `FILES`, with theme and response."""
    return pl.read_ndjson(FILES[name].read_bytes())  # polars would take a path for a pattern
