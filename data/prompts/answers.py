"""Training rows: prompts with the answers to them, for teaching a model refusal tokens."""

import json
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from data.errors import UserError
from data.prompts import sample as embedded
from data.prompts.files import read_file
from data.prompts.layouts import mapped
from data.prompts.reading import load_all

TRAINING_COLUMNS = ("id", "prompt", "category", "label", "dataset", "split", "response")


def load_training(sources: Iterable[str], mirror: Path | None = None) -> pl.DataFrame:
    """Prompts as `load_all` gives them, each with its answer: `TRAINING_COLUMNS`, all strings.

    The embedded sample has an answer for every row. A file may have a column (JSON lines: a field) `response`;
    rows without one, and data sets that have none, get null.

    Args:
        sources: Names and files, each as `data.load` takes them.
        mirror: Folder with hub data sets under their own names, used instead of the hub.

    Raises:
        UserError: As `load_all` does.
    """
    listed = list(sources)
    if not listed:
        return pl.DataFrame(schema=dict.fromkeys(TRAINING_COLUMNS, pl.String))
    if len(listed) > 1:
        load_all(listed, mirror)  # holds their keys against each other
    return pl.concat([_with_responses(source, mirror) for source in listed])


def _with_responses(source: str, mirror: Path | None) -> pl.DataFrame:
    frame = load_all([source], mirror)
    if own := embedded.named(source)[0]:
        if "response" not in (rows := embedded.read(own)).columns:
            raise UserError(
                f"{own} teaches nothing: no model is taught it, so that gates can be fitted and tried on it"
            )
        answers = rows.select("id", "response")
        return frame.join(answers, on="id", how="left", maintain_order="left").select(TRAINING_COLUMNS)
    file, words = mapped(source)
    path = Path(file).expanduser()
    answers = (
        _responses(path, words.get("encoding")) if path.is_file() else [None] * frame.height
    )  # loading keeps each row of a file
    text = pl.Series("response", answers, pl.String).str.strip_chars()
    return frame.with_columns(text.replace("", None)).select(TRAINING_COLUMNS)


def _responses(path: Path, encoding: str | None) -> list[str | None]:
    """The column `response` of a file that has been read before without an error."""
    if path.suffix.lower() == ".jsonl" and encoding is None:
        lines = path.read_text("utf-8-sig").split("\n")
        found = [json.loads(line).get("response") for line in lines if line.strip()]
        return [answer if isinstance(answer, str) else None for answer in found]
    frame = read_file(path, str(path), encoding)
    if "response" not in frame.columns or frame.schema["response"] != pl.String:
        return [None] * frame.height
    return frame["response"].to_list()
