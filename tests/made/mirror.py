"""A folder of made-up data sets in the hub's own layout."""

from pathlib import Path
from typing import Any

import polars as pl

from data.prompts.catalogue import CATALOGUE, DataSet

KNOWN = {known.name: known for known in CATALOGUE}
SPECIAL: dict[str, list[Any]] = {
    "turns": [["a request", "a second turn"]],
    "choices": [["one", "two", "three", "four"]],
    "Index": [0],
    "question_id": [7],
    "prompt_style": ["base"],
    "prompt_harm_label": ["harmful"],
    "data_type": ["adversarial_harmful"],
    "input": ["some input"],
    "Harmfulness": ["harmless"],
    "ID": [3],
}


def put(mirror: Path, hub: str, config: str | None, splits: dict[str, pl.DataFrame], kind: str = "parquet") -> Path:
    """Write one config of a data set as the hub lays it out."""
    folder = mirror / hub / (config or "data")
    folder.mkdir(parents=True)
    for split, frame in splits.items():
        if kind == "tsv":
            frame.write_csv(folder / f"{split}.tsv", separator="\t")
        else:
            frame.write_parquet(folder / f"{split}.parquet")
    files = [f"  - split: {split}\n    path: {folder.name}/{split}.{kind}\n" for split in splits]
    card = f"configs:\n- config_name: {config or 'default'}\n  data_files:\n{''.join(files)}"
    (mirror / hub / "README.md").write_text(f"---\n{card}---\n")
    return mirror


def made_up(known: DataSet, **values: list[Any]) -> pl.DataFrame:
    """A frame with the columns that a declaration reads: one row, or the values given."""
    rows = max(map(len, values.values()), default=1)
    made: dict[str, list[Any]] = {}
    for column in known.columns:
        one = SPECIAL.get(column, ["safe" if column == "label" else f"some {column}"])
        made[column] = values.get(column, one * rows)
    return pl.DataFrame(made)


def put_known(mirror: Path, name: str, split: str | None = None, kind: str = "parquet", **values: list[Any]) -> Path:
    known = KNOWN[name]
    splits = {s: made_up(known, **{"id": [f"an id of {s}"], **values}) for s in ([split] if split else known.splits)}
    return put(mirror, known.hub, known.config, splits, kind)
