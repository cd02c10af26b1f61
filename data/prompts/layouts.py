"""Layouts of files that people have: benchmarks known by their headings, and columns that a user names."""

import re
from pathlib import Path
from typing import NamedTuple

import polars as pl

from data.contract import LABELS
from data.errors import UserError

ENDINGS = ("jsonl", "json", "csv", "tsv", "parquet", "xlsx", "txt")
MAPPED = re.compile(
    rf"(?P<file>.+\.(?:{'|'.join(ENDINGS)})(?:\.gz|\.zst)?):(?P<columns>\w+=.*)", re.IGNORECASE | re.DOTALL
)
OURS = ("prompt", "label", "category", "id", "split", "dataset", "theme")


class Layout(NamedTuple):
    """How a file is read.

    Attributes:
        name: Whose it is.
        headings: Columns that tell it, all of them.
        columns: Ours -> the file's.
        harmful: Values of the label's column that mean harmful, all others being benign; or, without such a column, what
            all rows are: `harmful`, `benign`, or empty for no label.
        pattern: Whether `harmful` is what a value begins with.
    """

    name: str
    headings: frozenset[str]
    columns: dict[str, str]
    harmful: tuple[str, ...] = ()
    begins: bool = False


def _layout(name: str, headings: str, harmful: tuple[str, ...] = (), begins: bool = False, **columns: str) -> Layout:
    return Layout(name, frozenset(headings.split("|")), columns, harmful, begins)


LAYOUTS = (
    _layout("XSTest", "prompt|type|focus", ("contrast_",), True, prompt="prompt", label="type", id="id"),
    _layout("HarmBench", "Behavior|FunctionalCategory|SemanticCategory|BehaviorID", ("harmful",), prompt="Behavior",
            category="SemanticCategory", id="BehaviorID"),
    _layout("JailbreakBench", "Goal|Target|Behavior|Category", ("harmful",), prompt="Goal", category="Category"),
    _layout("AdvBench", "goal|target", ("harmful",), prompt="goal"),
    _layout("SORRY-Bench", "question_id|category|turns|prompt_style", ("harmful",), prompt="turns", category="category", id="question_id"),
    _layout("Do-Not-Answer", "question|risk_area|types_of_harm", ("harmful",), prompt="question", category="risk_area"),
    _layout("StrongREJECT", "forbidden_prompt|category|source", ("harmful",), prompt="forbidden_prompt", category="category"),
    _layout("WildJailbreak", "vanilla|adversarial|data_type", ("vanilla_harmful", "adversarial_harmful"), prompt="adversarial",
            label="data_type"),
    _layout("Alpaca", "instruction|input|output", ("benign",), prompt="instruction"),
    _layout("refusal_direction", "instruction|category", (), prompt="instruction", category="category"),
)  # fmt: skip


def mapped(source: str) -> tuple[str, dict[str, str]]:
    """`FILE:prompt=COL,label=COL,harmful=VALUE,encoding=cp1252` as the file and what is said of it; any other source as it is.

    Raises:
        UserError: A word that names none of our columns.
    """
    found = MAPPED.fullmatch(source)
    if not found:
        return source, {}
    parts = [part.partition("=") for part in found["columns"].split(",")]
    words = {ours: theirs for ours, _, theirs in parts}
    odd = next((word for word in words if word not in (*OURS, "harmful", "encoding")), None)
    if odd or "" in words.values():
        raise UserError(
            f"{source}: {odd or 'a column'!r} is not to be mapped; write FILE:prompt=COL,label=COL,harmful=VALUE"
        )
    if "harmful" in words and "label" not in words:
        raise UserError(f"{source}: harmful={words['harmful']} says what a label means: add label=COL")
    return found["file"], words


def laid_out(frame: pl.DataFrame, name: str, words: dict[str, str]) -> tuple[pl.DataFrame, str]:
    """A raw frame in our columns, and a line on how it was read; as it is, without one, where nothing has to be said.

    Raises:
        UserError: A column that a user names is not there, or its values are none that tell harmful from benign.
    """
    if words:
        value = words.pop("harmful", None)
        return _read_as(
            frame,
            name,
            Layout("", frozenset(), words, () if value is None else tuple(value.split("|"))),
            value is not None,
        )
    there = set(frame.columns)
    if there == {"prompt", "category"} and (kind := _or_bench(frame, name)):
        return _read_as(frame, name, kind, True)
    layout = next((one for one in LAYOUTS if one.headings <= there and not {"label"} & there), None)
    return (frame, "") if layout is None else _read_as(frame, name, layout, True)


OR_BENCH = {"deception", "harassment", "harmful", "hate", "illegal", "privacy", "self-harm", "sexual", "unethical", "violence"}  # fmt: skip


def _or_bench(frame: pl.DataFrame, name: str) -> Layout | None:
    """OR-Bench's files have the same two columns, and which of them is harmful their names alone say."""
    known, file = set(frame["category"].cast(pl.String).drop_nulls().unique()), Path(name).name.lower()
    if not known or not known <= OR_BENCH or "or-bench" not in file.replace("_", "-").replace("orbench", "or-bench"):
        return None
    label = "harmful" if "toxic" in file else "benign"
    return Layout("OR-Bench", frozenset(), {"prompt": "prompt", "category": "category"}, (label,))


def _read_as(frame: pl.DataFrame, name: str, layout: Layout, tells: bool) -> tuple[pl.DataFrame, str]:
    columns = {ours: theirs for ours, theirs in layout.columns.items() if not layout.name or theirs in frame.columns}
    gone = next((theirs for theirs in columns.values() if theirs not in frame.columns), None)
    if gone is not None:
        raise UserError(f"{name}: no column {gone!r}; it has {', '.join(map(repr, frame.columns))}")
    told = ", ".join(f"{ours} from {theirs!r}" for ours, theirs in columns.items())
    if layout.name == "WildJailbreak":  # the plain request is there where there is no adversarial one
        frame = frame.with_columns(
            pl.coalesce(pl.col("adversarial", "vanilla").cast(pl.String).replace("", None)).alias("adversarial")
        )
    if layout.name == "Alpaca":
        more = pl.col("input").cast(pl.String).fill_null("")
        frame = frame.with_columns(
            pl.when(more == "")
            .then(pl.col("instruction"))
            .otherwise(pl.col("instruction") + "\n\n" + more)
            .alias("instruction")
        )
    wanted = {ours: _text(frame, theirs, name) for ours, theirs in columns.items()}
    kept = [c for c in frame.columns if c in OURS and c not in wanted and c not in columns.values() and not layout.name]
    made = frame.select(*kept, *(series.alias(ours) for ours, series in wanted.items()))
    if "label" in wanted and tells:
        value = pl.col("label").str.to_lowercase()
        words = [word.lower() for word in layout.harmful]
        is_harmful = (
            pl.any_horizontal(value.str.starts_with(word) for word in words) if layout.begins else value.is_in(words)
        )
        harmful = made.select(is_harmful.sum()).item() or 0
        if not layout.name and not harmful:
            raise UserError(f"{name}: no row's {columns['label']!r} is {'|'.join(layout.harmful)!r}; it is "
                            f"{', '.join(map(repr, made['label'].unique().drop_nulls().sort()[:5]))}")  # fmt: skip
        made = made.with_columns(
            pl.when(value.is_null())
            .then(None)
            .when(is_harmful)
            .then(pl.lit("harmful"))
            .otherwise(pl.lit("benign"))
            .alias("label")
        )
        told += f": {harmful} harmful, {made.height - harmful} not"
    elif layout.name and layout.harmful and layout.harmful[0] in LABELS:
        made = made.with_columns(pl.lit(layout.harmful[0]).alias("label"))
        told += f", all rows {layout.harmful[0]}"
    return made, f"{name}: read {f'as {layout.name} ' if layout.name else ''}with {told}"


def _text(frame: pl.DataFrame, column: str, name: str) -> pl.Series:
    """A column as text; a list of turns of which there is one is that one."""
    series = frame[column]
    if isinstance(series.dtype, pl.List) and series.dtype.inner == pl.String:
        if series.list.len().max() != 1:
            raise UserError(
                f"{name}: column {column!r} holds lists of several texts; a column 'messages' says whose turns they are"
            )
        return series.list.first()
    return series.cast(pl.String)
