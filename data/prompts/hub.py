"""One door to the data sets of the Hugging Face hub, and to a folder that holds some of them in the hub's own layout.

Everything goes through `datasets.load_dataset`, whose environment (`HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT`,
`HF_HUB_OFFLINE`, …) is left as it is; whatever it fails with comes out as one `UserError` that says what to do.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import polars as pl

from data.errors import OutOfReachError, UserError
from data.prompts.mirror import cache_of, check_inside

if TYPE_CHECKING:
    from datasets import Dataset

PAGE = "https://huggingface.co/datasets/"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def fetch(
    hub: str,
    config: str | None = None,
    *,
    columns: Collection[str],
    optional: Collection[str] = (),
    revision: str | None = None,
    mirror: Path | None = None,
    csv: Mapping[str, Any] | None = None,
) -> dict[str, pl.DataFrame]:
    """Load every split of one config, in the order of its files.

    Args:
        hub: Id on the hub, `owner/name`.
        config: The hub's name of the config; None for a set's only one.
        columns: Columns that must be there.
        optional: Columns that are taken if they are there; any others are dropped.
        revision: Commit to load from the hub; a mirror is taken as it is.
        mirror: Folder with `owner/name` folders in it, used instead of the hub.
        csv: Options of the CSV reader, where the files are CSV or TSV.

    Returns:
        Split name -> frame.

    Raises:
        UserError: The set is gated, unknown, without that config or a column, or can't be read.
        OutOfReachError: The hub does not answer.
    """
    from datasets import load_dataset

    options: dict[str, Any] = dict(csv or {})
    folder = None if mirror is None else _folder(mirror, hub)
    if folder is None:
        options["revision"] = revision
        if Path(hub).exists():
            raise UserError(f"{hub} is also a folder here and would be read instead of the hub; pass --data-mirror .")
    elif not _holds_csv(folder):
        options = {}
    if folder is not None:
        check_inside(folder)
        options["cache_dir"] = cache_of(folder)
    try:
        with _quiet(), nullcontext() if folder is None else cached_only():
            loaded = load_dataset(str(folder or hub), config, **options)
    except Exception as error:  # the libraries beneath raise their own kinds of nearly everything
        kind = OutOfReachError if folder is None and _unreachable(error) else UserError
        raise kind(_explained(error, hub, config, folder)) from error
    name = f"{hub}:{config}" if config else hub
    return {str(split): _frame(rows, name, columns, optional) for split, rows in loaded.items()}


@contextmanager
def cached_only() -> Iterator[None]:
    """While it lasts, the hub is not asked; what of it lies in the cache is read. Each try takes half a minute."""
    import datasets.config as reader
    import huggingface_hub.constants as client

    with patch.object(client, "HF_HUB_OFFLINE", True), patch.object(reader, "HF_HUB_OFFLINE", True):
        yield


@contextmanager
def mirrored(mirror: Path | None) -> Iterator[None]:
    """While it lasts, whoever calls `datasets.load_dataset` gets the mirror's copy of what the mirror has.

    For libraries that load by hub ids of their own.

    Raises:
        UserError: The mirror is no folder.
    """
    import datasets

    if mirror is None:
        yield
        return
    folder, load = mirror.expanduser().resolve(), datasets.load_dataset
    if not folder.is_dir():
        raise UserError(f"--data-mirror {mirror}: no such folder; it holds data sets under their hub names")

    def load_copy(path: str, name: str | None = None, *rest: Any, **options: Any) -> Any:
        copy = folder / path
        if not (HUB_NAME.fullmatch(path) and copy.is_dir()):
            return load(path, name, *rest, **options)
        check_inside(copy)
        options.pop("revision", None)
        with cached_only():
            return load(str(copy), name, *rest, **options | {"cache_dir": cache_of(copy)})

    with patch.object(datasets, "load_dataset", load_copy):
        yield


def _folder(mirror: Path, hub: str) -> Path:
    folder = mirror.expanduser() / hub
    if not mirror.expanduser().is_dir():
        raise UserError(f"--data-mirror {mirror}: no such folder; it holds data sets under their hub names ({hub})")
    if not folder.is_dir():
        raise UserError(
            f"--data-mirror {mirror} has no {hub}: fetch it with `hf download {hub} --repo-type dataset "
            f"--local-dir {folder}`, or leave --data-mirror out"
        )
    return folder


def _holds_csv(folder: Path) -> bool:
    return any(path.suffix in (".csv", ".tsv") for path in folder.rglob("*.?sv"))


def _frame(rows: "Dataset", name: str, columns: Collection[str], optional: Collection[str]) -> pl.DataFrame:
    from datasets import ClassLabel

    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise UserError(f"{name}: no column {missing[0]!r}; it has {', '.join(map(repr, rows.column_names))}")
    wanted = [column for column in rows.column_names if column in {*columns, *optional}]
    frame = rows.select_columns(wanted).to_polars()
    assert isinstance(frame, pl.DataFrame)
    classes = {c: feature for c in wanted if isinstance(feature := rows.features[c], ClassLabel)}
    return frame.with_columns(
        pl.col(c).replace_strict(dict(enumerate(feature.names)), default=None, return_dtype=pl.String)
        for c, feature in classes.items()
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no log lines of the libraries: what matters comes out as an error."""
    import datasets
    import huggingface_hub.utils as hub_utils

    loggers = (datasets.logging, hub_utils.logging)
    levels = [logger.get_verbosity() for logger in loggers]
    bars = [not library.are_progress_bars_disabled() for library in (datasets, hub_utils)]
    try:
        for library, logger in zip((datasets, hub_utils), loggers, strict=True):
            library.disable_progress_bars()
            logger.set_verbosity(50)
        yield
    finally:
        for library, logger, level, shown in zip((datasets, hub_utils), loggers, levels, bars, strict=True):
            logger.set_verbosity(level)
            if shown:
                library.enable_progress_bars()


def _explained(error: Exception, hub: str, config: str | None, folder: Path | None) -> str:
    """One line: what went wrong, and what to do."""
    from datasets.exceptions import DatasetNotFoundError

    text = str(error)
    configs = re.search(r"(?:Available: |available configs: )\[(.*?)\]", text)
    if configs:
        names = configs[1].replace("'", "")
        return f"{hub} has no config {config!r}; it has {names}" if config else f"{hub}: name a config, {hub}:{names}"
    if isinstance(error, DatasetNotFoundError) and "gated" in text:
        return f"{hub} is gated: accept its terms at {PAGE}{hub} and run `hf auth login`, or pass --data-mirror DIR"
    if isinstance(error, DatasetNotFoundError) and "Revision" in text:
        return f"{hub}: the pinned revision is gone from the hub; see {PAGE}{hub}, or pass --data-mirror DIR"
    if isinstance(error, DatasetNotFoundError):
        return f"no data set {hub!r} on the hub, or a private one: check {PAGE}{hub}, or run `hf auth login`"
    if _unreachable(error):
        return f"{hub}: the hub is out of reach (offline?); pass --data-mirror DIR with a copy of it"
    reason = " ".join(text.split())[:200] or type(error).__name__
    return f"{folder or hub}: not readable as a data set of the hub: {reason}"


def _unreachable(error: Exception) -> bool:
    from datasets.exceptions import DatasetNotFoundError

    named = re.search("Connect|Timeout", type(error).__name__)
    connection = isinstance(error, (ConnectionError, TimeoutError)) or named is not None
    return connection and not isinstance(error, DatasetNotFoundError)
