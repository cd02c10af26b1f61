"""Reading prompts: a name or a file in, a checked polars frame out.

Every frame has the columns of `PROMPT_COLUMNS`, all strings. A row's key is (`dataset`, `id`).
"""

import csv
import difflib
import gzip
import hashlib
import io
import json
import logging
import re
import zlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import polars as pl

from data.contract import LABELS, SPLITS
from data.errors import UserError
from data.prompts import catalogue
from data.prompts import sample as embedded
from data.prompts.conversations import as_prompt
from data.prompts.hub import fetch
from data.prompts.layouts import laid_out, mapped
from data.store.tables import PROMPTS, read_parquet

log = logging.getLogger(__name__)

PROMPT_COLUMNS = tuple(PROMPTS)
HALF = re.compile("[\ud800-\udfff]")  # JSON's escapes can write one half of a UTF-16 pair, which is no text
CONVERSATIONS = ("messages", "conversations", "conversation")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?(/[\w.-]+)?")


def load_all(sources: Iterable[str], mirror: Path | None = None, *, benign: bool = False) -> pl.DataFrame:
    """Load and stack several sources; the keys of all of them must differ.

    Args:
        sources: Names and files, each as `load` takes them.
        mirror: Folder with hub data sets under their own names, used instead of the hub.
        benign: As `load` takes it.

    Raises:
        UserError: A source is unknown or bad, or two sources hold the same (`dataset`, `id`).
    """
    return stacked([load(source, mirror, benign=benign) for source in sources])


def stacked(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Prompts of several sources in one frame.

    Raises:
        UserError: Two of them hold the same (`dataset`, `id`).
    """
    frame = pl.concat(frames)
    twice = frame.filter(frame.select("dataset", "id").is_duplicated())
    if twice.height:
        row = twice.row(0, named=True)
        raise UserError(f"{row['dataset']}: id {row['id']!r} comes from two --data sources; give each once, and "
                        "files names that differ")  # fmt: skip
    return frame


def load(source: str, mirror: Path | None = None, *, benign: bool = False) -> pl.DataFrame:
    """Load one source of prompts.

    Args:
        source: `embedded` or `embedded:lessons`, with `/SPLIT` or without; a name of `data.prompts.catalogue`,
            `NAME[:CONFIG][/PART]`; the id of any hub data set with a column `prompt`, `OWNER/NAME[:CONFIG][/SPLIT]`; or
            a .jsonl, .json, .csv, .tsv or .parquet file, with `:prompt=COL,label=COL,harmful=VALUE` behind it or not, or a
            .txt of one prompt a line.
        mirror: Folder with hub data sets under their own names, used instead of the hub.
        benign: Only its benign rows, and those without a label are: a category does not make them harmful.

    Raises:
        UserError: There is no such source, it can't be reached or read, or its rows are not in shape.
    """
    frame = _load(source, mirror, "benign" if benign else "harmful")
    if not benign:
        return frame
    rows = frame.filter(pl.col("label").fill_null("benign") == "benign").with_columns(pl.lit("benign").alias("label"))
    if rows.is_empty():
        raise UserError(f"{source}: all its rows are labelled harmful, so that it adds no benign one")
    if rows.height < frame.height:
        _say(f"{source}: {frame.height - rows.height} rows are labelled harmful and left out of the benign ones")
    return rows


def _load(source: str, mirror: Path | None, unlabelled: str) -> pl.DataFrame:
    source, columns = mapped(source)
    path = Path(source).expanduser()
    own, split = embedded.named(source)
    if own:
        return _load_embedded(own, split)
    inner = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    reader = READERS.get(inner.suffix.lower())
    if reader is not None:
        if not path.is_file():
            raise UserError(f"{source}: no such file")
        frame, told = laid_out(reader(path, source), source, columns)
        if told:
            _say(told)
        return _checked(frame, source, _name_of(inner), unlabelled)
    found = catalogue.find(source)
    if found is not None:
        known, part = found
        return _checked(catalogue.read(known, part, mirror), source, known.name, unlabelled)
    if path.is_file() or not HUB_ID.fullmatch(source):
        raise UserError(_unknown(source))
    return _load_hub(source, mirror, unlabelled)


def _name_of(path: Path) -> str:
    """A file's name as a data set: a known set's, whose rows the hub would be asked for, is no other's."""
    if path.stem not in (*embedded.FILES, *(known.name for known in catalogue.CATALOGUE)):
        return path.stem
    _say(f"{path}: its data set is called {path.name!r}, as {path.stem!r} is another one")
    return path.name


@cache
def _say(words: str) -> None:
    """A line, once."""
    log.warning("%s", words)


def _load_embedded(name: str, split: str) -> pl.DataFrame:
    frame = _checked(_read_jsonl(embedded.FILES[name], name), name, name)
    chosen = frame.filter(pl.col("split") == split) if split else frame
    if chosen.is_empty():
        raise UserError(f"{name} has no split {split!r}; it has {', '.join(_splits(frame))}")
    return chosen


def _load_hub(source: str, mirror: Path | None, unlabelled: str) -> pl.DataFrame:
    """Any data set of the hub whose columns are named as ours; its splits are ours if it has more than one of them."""
    owner, name, *rest = source.split("/", 2)
    name, _, config = name.partition(":")
    hub = f"{owner}/{name}"
    fetched = fetch(hub, config or None, columns=["prompt"], optional=PROMPT_COLUMNS, mirror=mirror)
    if rest and rest[0] not in fetched:
        raise UserError(f"{hub} has no split {rest[0]!r}; it has {', '.join(fetched)}")
    frames = [_numbered(_text_only(frame, source), split, len(fetched) > 1) for split, frame in fetched.items()]
    frame = pl.concat(frames, how="diagonal_relaxed")
    chosen = frame.filter(pl.col("hub split") == rest[0]) if rest else frame
    return _checked(chosen, source, f"{hub}:{config}" if config else hub, unlabelled)


def _numbered(frame: pl.DataFrame, split: str, among_others: bool) -> pl.DataFrame:
    """A hub split with ids that stay the same when it is loaded alone, and with its name if it is one of ours."""
    frame = frame.with_columns(pl.lit(None).alias(c) for c in ("id", "split") if c not in frame.columns)
    lead, ours = (f"{split}-", split if split in SPLITS else None) if among_others else ("", None)
    return frame.with_row_index("row").with_columns(
        pl.col("id").cast(pl.String).fill_null(pl.format(f"{lead}{{}}", "row")),
        pl.col("split").cast(pl.String).fill_null(pl.lit(ours, pl.String)),
        pl.lit(split).alias("hub split"),
    )


def is_known(source: str) -> bool:
    """Whether a name, with or without a part, is one of this project's or of the catalogue's sets."""
    try:
        return bool(embedded.named(source)[0]) or catalogue.find(source) is not None
    except UserError:  # the set is known, that config is not
        return False


def _unknown(source: str) -> str:
    known = [*embedded.FILES, *(known.name for known in catalogue.CATALOGUE)]
    bases = list(dict.fromkeys(name.partition(":")[0] for name in known))
    near = difflib.get_close_matches(source.lower().partition("/")[0], [*bases, *known], n=3)
    return f"unknown data {source!r}: " + (
        f"did you mean {' or '.join(dict.fromkeys(near))}?" if near
        else "pass a name that `datasets` lists, a hub id OWNER/NAME, or a .jsonl, .csv, .parquet or .txt file"
    )  # fmt: skip


def for_split(frame: pl.DataFrame, split: str) -> pl.DataFrame:
    """Keep the rows that serve `split`: those of that split and those without any."""
    return frame.filter(pl.col("split").is_null() | (pl.col("split") == split))


def fingerprint(frame: pl.DataFrame) -> str:
    """A SHA-256 over every row's columns, in order: equal exactly when the prompts are."""
    digest = hashlib.sha256()
    for row in frame.select(PROMPT_COLUMNS).iter_rows():
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def _splits(frame: pl.DataFrame) -> list[str]:
    return sorted(frame["split"].drop_nulls().unique())


def _utf8(path: Path, name: str) -> str:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{name}: not readable as gzip ({error})") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{name}, line {line}: not UTF-8; save the file as UTF-8") from None


def _read_jsonl(path: Path, name: str) -> pl.DataFrame:
    return _of_objects(list(_objects(path, name)), name, "line")


def _read_json(path: Path, name: str) -> pl.DataFrame:
    """An array of objects, or an object of which one field is such an array."""
    try:
        rows = json.loads(_utf8(path, name))
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
        _say(f"{name}: its rows are those of the field {arrays[0]!r}")
        rows = rows[arrays[0]]
    if not isinstance(rows, list):
        raise UserError(f"{name}: no array of objects")
    if bad := next((at for at, row in enumerate(rows, 1) if not isinstance(row, dict)), None):
        raise UserError(f"{name}, row {bad}: expected a JSON object, got {type(rows[bad - 1]).__name__}")
    return _of_objects(list(enumerate(rows, 1)), name, "row")


def _of_objects(found: list[tuple[int, dict[str, object]]], name: str, unit: str) -> pl.DataFrame:
    """Objects of JSON as a frame of text; what is nested stays aside, a conversation becomes a prompt."""
    renamed = _renamed([key for _, row in found for key in row], name)
    nested = {
        key
        for _, row in found
        for key, value in row.items()
        if isinstance(value, (dict, list)) and key not in PROMPT_COLUMNS
    }
    known = {key for _, row in found for key in row} | set(renamed.values())
    is_layout = "prompt" not in known and not known & set(CONVERSATIONS)
    rows = []
    for number, row in found:
        called = f"{name}, {unit} {number}"
        row = {renamed.get(key, key): value for key, value in row.items()} if renamed else row
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


def _objects(path: Path, name: str) -> Iterator[tuple[int, dict[str, object]]]:
    """Each line's number and object."""
    for number, line in enumerate(_utf8(path, name).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise UserError(f"{name}, line {number}: expected a JSON object, got {type(row).__name__}")
        yield number, row


def _renamed(columns: Iterable[str], name: str) -> dict[str, str]:
    """Column -> one of ours that it is for its capitals and blanks alone, which is said; ours itself goes before it."""
    there = list(dict.fromkeys(columns))
    told: dict[str, str] = {}
    for column in there:
        plain = column.strip().lower()
        if column == plain or plain not in PROMPT_COLUMNS:
            continue
        if plain in there or plain in told.values():
            _say(f"{name}: column {column!r} is not read, as there is {plain!r} already")
        else:
            told[column] = plain
            _say(f"{name}: column {column!r} is read as {plain!r}")
    return told


def _text(value: object) -> str | None:
    """A value of JSON as text; what is no number is missing, as pandas writes it."""
    if isinstance(value, float) and value != value:
        return None
    return value if isinstance(value, str) else json.dumps(value)


def _read_csv(path: Path, name: str) -> pl.DataFrame:
    text = _utf8(path, name)
    if not text.strip():
        return pl.DataFrame(schema={"prompt": pl.String})
    if "\r" in text and "\n" not in text:
        text = text.replace("\r", "\n")
        _say(f"{name}: its lines end in CR alone, and are read so")
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
        _say(f"{name}: its columns are parted by {found[1]!r}, as its first line says")
        return rest, found[1]
    if path.name.lower().removesuffix(".gz").endswith(".tsv"):
        return text, "\t"
    if "," not in first and first.count(";"):
        _say(f"{name}: its columns are parted by ';', and are read so")
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


def _read_parquet(path: Path, name: str) -> pl.DataFrame:
    try:
        return _spoken(read_parquet(path), name)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{name}: not a readable parquet file: {str(error).splitlines()[0]}") from None


def _read_txt(path: Path, name: str) -> pl.DataFrame:
    """One prompt a line; nothing is known of them but their words."""
    lines = [line for line in _utf8(path, name).splitlines() if line.strip()]
    _say(f"{name}: {len(lines)} prompts, one a line, without labels: they can be answered and traced, and with --benign they count "
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
    ".txt": _read_txt,
}


def _text_only(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    nested = [c for c in PROMPT_COLUMNS if c in frame.columns and frame.schema[c].is_nested()]
    if nested:
        raise UserError(f"{name}: column {nested[0]!r} must be text, not {frame.schema[nested[0]]}")
    return frame


def _checked(frame: pl.DataFrame, name: str, dataset: str, unlabelled: str = "harmful") -> pl.DataFrame:
    """Bring a raw frame into shape, or say which row is wrong; rows count from 1.

    A row with a category and without a label is `unlabelled`.
    """
    frame = frame.rename(_renamed(frame.columns, name))
    if frame.is_empty():
        raise UserError(f"{name}: no rows")
    if "prompt" not in frame.columns:
        raise UserError(f"{name}: no column 'prompt'; it has {', '.join(map(repr, frame.columns))}")
    frame = (
        _text_only(frame, name)
        .with_columns(pl.selectors.float().fill_nan(None))  # what is no number is missing
        .with_columns([pl.lit(None, pl.String).alias(c) for c in PROMPT_COLUMNS if c not in frame.columns])
        .select([pl.col(c).cast(pl.String) for c in PROMPT_COLUMNS])
    )
    blank_is_null = [
        pl.when(pl.col(c).str.strip_chars() != "").then(pl.col(c).str.strip_chars())
        for c in PROMPT_COLUMNS
        if c != "prompt"
    ]
    frame = frame.with_columns(blank_is_null).with_row_index("row", offset=1)

    def refuse(bad: pl.Expr, reason: str, column: str) -> None:
        rows = frame.filter(bad)
        if rows.height:
            raise UserError(f"{name}, row {rows['row'][0]}: " + reason.format(repr(rows[column][0])))

    refuse(pl.col("prompt").fill_null("").str.strip_chars() == "", "empty prompt", "prompt")
    refuse(
        ~pl.col("label").is_in(LABELS),
        "unknown label {}; use 'harmful' (should be declined), 'benign' or nothing",
        "label",
    )
    refuse(~pl.col("split").is_in(SPLITS), f"unknown split {{}}; use {', '.join(SPLITS)} or nothing: rows without one are put "
           "into splits by --holdout", "split")  # fmt: skip
    guessed = frame.filter(pl.col("label").is_null() & pl.col("category").is_not_null())
    if guessed.height:
        _say(f"{name}: {guessed.height} rows have a category and no label: read as {unlabelled} "
             f"(the first is row {guessed['row'][0]}); a column 'label' says otherwise")  # fmt: skip
    frame = frame.with_columns(
        pl.col("id").fill_null((pl.col("row") - 1).cast(pl.String)),
        pl.col("dataset").fill_null(pl.lit(dataset)),
        # A category is a reason to refuse: without a label the row reads as harmful.
        pl.when(pl.col("label").is_null() & pl.col("category").is_not_null())
        .then(pl.lit(unlabelled))
        .otherwise(pl.col("label"))
        .alias("label"),
    )
    twice = ~pl.struct("dataset", "id").is_first_distinct()
    refuse(twice, "duplicate id {}; ids must differ within a data set", "id")
    return frame.drop("row")
