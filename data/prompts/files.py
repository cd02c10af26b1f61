"""Files of prompts as they come: JSON, JSON lines, CSV, parquet, Excel and text, to a frame of text or a line that says what is wrong."""

import csv
import gzip
import io
import json
import logging
import re
import zlib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import polars as pl

from data.errors import UserError
from data.prompts.conversations import as_prompt
from data.store.tables import PROMPTS, read_parquet

log = logging.getLogger(__name__)

PROMPT_COLUMNS = tuple(PROMPTS)
THEME = "theme"  # of a user's file: which of its prompts resemble one another
PACKED = {".gz": "gzip", ".zst": "zstd"}
HALF = re.compile("[\ud800-\udfff]")  # JSON's escapes can write one half of a UTF-16 pair, which is no text
CONVERSATIONS = ("messages", "conversations", "conversation")


@cache
def say(words: str) -> None:
    """A line, once."""
    log.warning("%s", words)


def inner(path: Path) -> Path:
    """A file's name without that it is packed."""
    return path.with_suffix("") if path.suffix.lower() in PACKED else path


def is_file_name(path: Path) -> bool:
    """Whether a name is that of a file which can be read here."""
    return inner(path).suffix.lower() in READERS


def read_file(path: Path, name: str, encoding: str | None = None) -> pl.DataFrame:
    """A file's rows as they stand, each column text.

    Args:
        path: A .jsonl, .json, .csv, .tsv or .txt, packed by gzip or zstd or not; a .parquet or .xlsx.
        name: What messages call it.
        encoding: Of its text; default UTF-8.

    Raises:
        UserError: It can't be read, with the line or row and what to do.
    """
    return READERS[inner(path).suffix.lower()](path, name, encoding or "utf-8-sig")


def _unpacked(path: Path, name: str) -> bytes:
    raw, kind = path.read_bytes(), path.suffix.lower()
    try:
        if kind == ".gz":
            return gzip.decompress(raw)
        if kind == ".zst":
            pyarrow = import_module("pyarrow")
            with pyarrow.input_stream(pyarrow.BufferReader(raw), compression="zstd") as stream:
                return stream.read()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{name}: not readable as {PACKED[kind]} ({error})") from None
    return raw


def _text_of(path: Path, name: str, encoding: str) -> str:
    raw = _unpacked(path, name)
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        line, what = raw[: error.start].count(b"\n") + 1, "UTF-8" if encoding == "utf-8-sig" else encoding
        more = ", or write FILE:encoding=cp1252 if Windows wrote it" if what == "UTF-8" else ""
        raise UserError(f"{name}, line {line}: not {what}; save the file as UTF-8{more}") from None
    except LookupError:
        raise UserError(f"{name}: no encoding {encoding!r} is known; utf-8, utf-16, cp1252, latin-1 and others are") from None  # fmt: skip


def _read_jsonl(path: Path, name: str, encoding: str) -> pl.DataFrame:
    return _of_objects(list(_objects(path, name, encoding)), name, "line")


def _read_json(path: Path, name: str, encoding: str) -> pl.DataFrame:
    """An array of objects, or an object of which one field is such an array."""
    try:
        rows = json.loads(_text_of(path, name, encoding))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: not JSON ({error})") from None
    if isinstance(rows, dict):
        arrays = [
            field for field, value in rows.items() if isinstance(value, list) and value and isinstance(value[0], dict)
        ]
        if len(arrays) != 1:
            raise UserError(
                f"{name}: an object of which {len(arrays)} fields are arrays of objects; one array of rows is read"
            )
        say(f"{name}: its rows are those of the field {arrays[0]!r}")
        rows = rows[arrays[0]]
    if not isinstance(rows, list):
        raise UserError(f"{name}: no array of objects")
    if bad := next((at for at, row in enumerate(rows, 1) if not isinstance(row, dict)), None):
        raise UserError(f"{name}, row {bad}: expected a JSON object, got {type(rows[bad - 1]).__name__}")
    return _of_objects(list(enumerate(rows, 1)), name, "row")


def _of_objects(found: list[tuple[int, dict[str, object]]], name: str, unit: str) -> pl.DataFrame:
    """Objects of JSON as a frame of text; what is nested stays aside, a conversation becomes a prompt."""
    ours = renamed([key for _, row in found for key in row], name)
    nested = {
        key
        for _, row in found
        for key, value in row.items()
        if isinstance(value, (dict, list)) and key not in PROMPT_COLUMNS
    }
    known = {key for _, row in found for key in row} | set(ours.values())
    is_layout = "prompt" not in known and not known & set(CONVERSATIONS)
    rows = []
    for number, row in found:
        called = f"{name}, {unit} {number}"
        row = {ours.get(key, key): value for key, value in row.items()} if ours else row
        chat = next((column for column in CONVERSATIONS if row.get(column) is not None), None)
        if row.get("prompt") is None and chat:
            row = row | {"prompt": as_prompt(row[chat], called)}
        if "prompt" not in row and not is_layout:
            raise UserError(f"{called}: no field 'prompt'")
        texts = {}
        for column, value in row.items():
            if column in PROMPT_COLUMNS and isinstance(value, (dict, list)):
                raise UserError(f"{called}: field {column!r} must be text, not {type(value).__name__}")
            if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
                value = value[0]
            elif column in nested:
                continue
            text = texts[column] = None if value is None else _text(value)
            if text is not None and HALF.search(text):
                raise UserError(f"{called}: field {column!r} holds half a character, a \\ud800 without its pair")
        rows.append(texts)
    columns = dict.fromkeys([*(PROMPT_COLUMNS if not is_layout else ()), *(column for row in rows for column in row)])
    return pl.DataFrame(
        [{column: row.get(column) for column in columns} for row in rows], schema=dict.fromkeys(columns, pl.String)
    )


def _objects(path: Path, name: str, encoding: str) -> Iterator[tuple[int, dict[str, object]]]:
    """Each line's number and object."""
    for number, line in enumerate(_text_of(path, name, encoding).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise UserError(f"{name}, line {number}: expected a JSON object, got {type(row).__name__}")
        yield number, row


def renamed(columns: Iterable[str], name: str) -> dict[str, str]:
    """Column -> one of ours that it is for its capitals and blanks alone, which is said; ours itself goes before it."""
    there = list(dict.fromkeys(columns))
    told: dict[str, str] = {}
    for column in there:
        plain = column.strip().lower()
        if column == plain or plain not in (*PROMPT_COLUMNS, THEME):
            continue
        if plain in there or plain in told.values():
            say(f"{name}: column {column!r} is not read, as there is {plain!r} already")
        else:
            told[column] = plain
            say(f"{name}: column {column!r} is read as {plain!r}")
    return told


def _text(value: object) -> str | None:
    """A value of JSON as text; what is no number is missing, as pandas writes it."""
    if isinstance(value, float) and value != value:
        return None
    return value if isinstance(value, str) else json.dumps(value)


def _read_csv(path: Path, name: str, encoding: str) -> pl.DataFrame:
    text = _text_of(path, name, encoding)
    if not text.strip():
        return pl.DataFrame(schema={"prompt": pl.String})
    if "\r" in text and "\n" not in text:
        text = text.replace("\r", "\n")
        say(f"{name}: its lines end in CR alone, and are read so")
    text, delimiter = _delimited(text, path, name)
    text = re.sub(r"(?:\r?\n[ \t]*)+\Z", "\n", text)  # a blank line is a row of one column, but not at the end
    lines = _lines(text, name, delimiter)
    headings = next(lines)[1]
    rows = []
    for line, cells in lines:
        if len(cells) != len(headings) and cells:
            raise UserError(f"{name}, line {line}: {len(cells)} columns, where the heading has {len(headings)}; quote "
                            "texts that hold commas")  # fmt: skip
        rows.append(cells or [""] * len(headings))
    twice = [heading for heading in headings if headings.count(heading) > 1 and heading in PROMPT_COLUMNS]
    if twice:
        raise UserError(f"{name}: column {twice[0]!r} is there twice; rename one")
    wanted = {heading: at for at, heading in enumerate(headings)}
    return pl.DataFrame({heading: [row[at] for row in rows] for heading, at in wanted.items()},
                        schema=dict.fromkeys(wanted, pl.String))  # fmt: skip


def _delimited(text: str, path: Path, name: str) -> tuple[str, str]:
    """A table's text, and what parts its columns: a tab in .tsv, else a comma; what it says itself, and a semicolon, are told."""
    first, _, rest = text.partition("\n")
    if found := re.fullmatch(r"sep=(.)\r?", first):
        say(f"{name}: its columns are parted by {found[1]!r}, as its first line says")
        return rest, found[1]
    if inner(path).suffix.lower() == ".tsv":
        return text, "\t"
    if "," not in first and first.count(";"):
        say(f"{name}: its columns are parted by ';', and are read so")
        return text, ";"
    return text, ","


def _lines(text: str, name: str, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV file, each with the line it begins in; quotes within a quoted text are doubled, or it is refused."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    line = 1
    try:
        for cells in reader:
            yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        why = (
            "write a quote within a quoted text as two, not with a backslash"
            if '\\"' in text
            else "is a quote left open?"
        )
        raise UserError(f"{name}, line {line}: not readable as CSV ({error}); {why}") from None


def _read_parquet(path: Path, name: str, _encoding: str) -> pl.DataFrame:
    try:
        return _spoken(read_parquet(path), name)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{name}: not a readable parquet file: {str(error).splitlines()[0]}") from None


def _read_xlsx(path: Path, name: str, _encoding: str) -> pl.DataFrame:
    """The first sheet of an Excel file, its first row the headings."""
    try:
        frame = pl.read_excel(path, engine="calamine", infer_schema_length=0, drop_empty_rows=True)
    except ModuleNotFoundError:
        raise UserError(
            f"{name}: Excel files need the package fastexcel: pip install fastexcel, or save it as .csv"
        ) from None
    except Exception as error:  # whatever the reader makes of a damaged file
        raise UserError(f"{name}: not a readable Excel file ({' '.join(str(error).split())[:200]}); save it as .csv") from None  # fmt: skip
    say(f"{name}: its first sheet is read, {frame.height} rows")
    return frame


def _read_txt(path: Path, name: str, encoding: str) -> pl.DataFrame:
    """One prompt a line; nothing is known of them but their words."""
    lines = [line for line in _text_of(path, name, encoding).splitlines() if line.strip()]
    say(f"{name}: {len(lines)} prompts, one a line, without labels: they can be answered and traced, and with --benign they count "
         "as benign; fitting takes a column 'label' of a .csv or .jsonl")  # fmt: skip
    return pl.DataFrame({"prompt": lines}, schema={"prompt": pl.String})


def _spoken(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """A frame with a column of conversations as prompts, where it has no prompts of its own."""
    chat = next((column for column in CONVERSATIONS if column in frame.columns), None)
    if chat is None or "prompt" in frame.columns:
        return frame
    made = [as_prompt(value, f"{name}, row {at}") for at, value in enumerate(frame[chat].to_list(), 1)]
    return frame.drop(chat).with_columns(pl.Series("prompt", made, pl.String))


READERS = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".xlsx": _read_xlsx,
    ".txt": _read_txt,
}
