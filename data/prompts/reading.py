"""Reading prompts: a name or a file in, a checked polars frame out.

Every frame has the columns of `PROMPT_COLUMNS`, all strings. A row's key is (`dataset`, `id`).
"""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from data.contract import LABELS, SPLITS
from data.errors import UserError
from data.prompts import catalogue
from data.prompts import sample as embedded
from data.prompts.files import PROMPT_COLUMNS, THEME, inner, is_file_name, read_file, renamed, say
from data.prompts.hub import fetch
from data.prompts.layouts import laid_out, mapped

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
            a .jsonl, .json, .csv, .tsv, .parquet or .xlsx file, or a .txt of one prompt a line, with
            `:prompt=COL,label=COL,harmful=VALUE,encoding=cp1252` behind it or not; all but the last two also .gz or .zst.
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
        say(f"{source}: {frame.height - rows.height} rows are labelled harmful and left out of the benign ones")
    return rows


def is_file(source: str) -> bool:
    """Whether a source is a file of prompts by its ending, there or not."""
    return not embedded.named(source)[0] and is_file_name(_path(source))


def name_of(source: str) -> str:
    """What the data set of a file is called, where its rows don't say."""
    return inner(_path(source)).stem


def own_themes(source: str) -> pl.DataFrame:
    """`dataset`, `id`, `prompt`, `theme` of the rows of a file whose column `theme` says one.

    Raises:
        UserError: The file is gone or not in shape.
    """
    frame = _load_file(source, "harmful", (*PROMPT_COLUMNS, THEME))
    return frame.filter(pl.col(THEME).is_not_null()).select("dataset", "id", "prompt", THEME)


def _path(source: str) -> Path:
    return Path(mapped(source)[0]).expanduser()


def _load_file(source: str, unlabelled: str, wanted: tuple[str, ...] = PROMPT_COLUMNS) -> pl.DataFrame:
    (name, columns), path = mapped(source), _path(source)
    if not path.is_file():
        raise UserError(f"{name}: no such file")
    frame, told = laid_out(read_file(path, name, columns.pop("encoding", None)), name, columns)
    if told:
        say(told)
    return _checked(frame, name, _name_of(inner(path)), unlabelled, wanted)


def _load(source: str, mirror: Path | None, unlabelled: str) -> pl.DataFrame:
    own, split = embedded.named(source)
    if own:
        return _load_embedded(own, split)
    if is_file(source):
        return _load_file(source, unlabelled)
    source, _ = mapped(source)
    path = Path(source).expanduser()
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
    say(f"{path}: its data set is called {path.name!r}, as {path.stem!r} is another one")
    return path.name


def _load_embedded(name: str, split: str) -> pl.DataFrame:
    frame = _checked(read_file(embedded.FILES[name], name), name, name)
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


def _text_only(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    nested = [c for c in (*PROMPT_COLUMNS, THEME) if c in frame.columns and frame.schema[c].is_nested()]
    if nested:
        raise UserError(f"{name}: column {nested[0]!r} must be text, not {frame.schema[nested[0]]}")
    return frame


def _checked(
    frame: pl.DataFrame,
    name: str,
    dataset: str,
    unlabelled: str = "harmful",
    wanted: tuple[str, ...] = PROMPT_COLUMNS,
) -> pl.DataFrame:
    """Bring a raw frame into shape, the columns `wanted`, or say which row is wrong; rows count from 1.

    A row with a category and without a label is `unlabelled`.
    """
    frame = frame.rename(renamed(frame.columns, name))
    if frame.is_empty():
        raise UserError(f"{name}: no rows")
    if "prompt" not in frame.columns:
        raise UserError(f"{name}: no column 'prompt'; it has {', '.join(map(repr, frame.columns))}")
    frame = (
        _text_only(frame, name)
        .with_columns(pl.selectors.float().fill_nan(None))  # what is no number is missing
        .with_columns([pl.lit(None, pl.String).alias(c) for c in wanted if c not in frame.columns])
        .select([pl.col(c).cast(pl.String) for c in wanted])
    )
    blank_is_null = [
        pl.when(pl.col(c).str.strip_chars() != "").then(pl.col(c).str.strip_chars()) for c in wanted if c != "prompt"
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
        say(f"{name}: {guessed.height} rows have a category and no label: read as {unlabelled} "
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
