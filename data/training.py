"""Training rows: prompts with the answers to them, for teaching a model refusal tokens."""

import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from data.prompts import EMBEDDED, load, load_all

TRAINING_COLUMNS = ("id", "prompt", "category", "label", "dataset", "split", "response")


def load_training(sources: Sequence[str], mirror: Path | None = None) -> pl.DataFrame:
    """Prompts as `load_all` gives them, each with its answer: `TRAINING_COLUMNS`, all strings.

    The embedded sample has an answer for every row. A file may have a column (JSON lines: a field) `response`;
    rows without one, and data sets of the hub, get null.

    Args:
        sources: Names and files, each as `data.load` takes them.
        mirror: Folder with hub data sets under their own names, used instead of the hub.

    Raises:
        UserError: As `load_all` does.
    """
    frame = load_all(sources, mirror)
    answers = [answer for source in sources for answer in _responses(source, mirror)]
    text = pl.Series("response", answers, pl.String).str.strip_chars().replace("", None)
    return frame.with_columns(text).select(TRAINING_COLUMNS)


def _responses(source: str, mirror: Path | None) -> list[str | None]:
    """The answers of a source that has been read before without an error, in its order; loading drops no row."""
    if source.partition("/")[0] == "embedded":
        answers = dict(pl.read_ndjson(EMBEDDED).select("id", "response").iter_rows())
        return [answers.get(number) for number in load(source)["id"]]
    path = Path(source).expanduser()
    if not path.is_file():
        return [None] * load(source, mirror).height
    if path.suffix == ".jsonl":
        lines = path.read_text("utf-8-sig").split("\n")
        found = [json.loads(line).get("response") for line in lines if line.strip()]
        return [answer if isinstance(answer, str) else None for answer in found]
    frame = pl.read_csv(path, infer_schema=False) if path.suffix == ".csv" else pl.read_parquet(path)
    if frame.schema.get("response") != pl.String:
        return [None] * frame.height
    return frame["response"].to_list()
