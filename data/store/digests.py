"""SHA-256 of a run's files: taken when a file is made, in its artefact's record, and held against the file before it is used.

`.digests.json` beside `run.json` is a ledger of what this tool made there: the SHA-256 of each file, and with which size, time and
inode it was last seen to have it, so that a file is hashed again only where one of these is another. A file gets its line before
it gets its name: one that is not as its record says was either made by a command that ended before it was recorded, or by
nobody here.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.store.files import room_for
from data.store.rundir import UNFINISHED, Record, records, replacing, written_to

LEDGER = ".digests.json"
SHA256 = "sha256"  # of a record: file -> digest; names are relative to the run directory, those elsewhere absolute
Stat = list[int]  # size, time of the last change in nanoseconds, inode


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, read in pieces, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def making(path: Path) -> Iterator[Path]:
    """As `replacing`, for files that records tell of: in a run directory that is being written, its ledger gets a line."""
    with replacing(path) as unfinished:
        yield unfinished
        enter(unfinished, path)


def enter(unfinished: Path, path: Path) -> None:
    """Tell the ledger of a file that is about to get its name; nothing where no run directory of it is being written."""
    folder = written_to()
    if folder is None or not path.absolute().is_relative_to(folder.absolute()):
        return
    ledger = _Ledger(folder)
    ledger.lines[name_of(path, folder)] = {SHA256: sha256_of(unfinished), "stat": _stat(unfinished)}
    with room_for(folder / LEDGER):
        ledger.write()


def name_of(path: Path, folder: Path) -> str:
    """What records of a run directory call a file."""
    path, folder = path.absolute(), folder.absolute()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()


def digests(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """Name -> SHA-256 of those files that are there, of folders of every file in them: what a record holds of an artefact."""
    ledger, found = _Ledger(folder), {}
    for path in files:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                name = name_of(file, folder)
                found[name] = ledger.digest(name, file)
    ledger.keep(folder)
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Altered:
    """A file that is not as its record says.

    Attributes:
        path: Where it lies.
        is_own: Whether a command made it that ended before the record was written.
    """

    path: Path
    is_own: bool

    @property
    def words(self) -> str:
        """What is wrong and what to do."""
        if self.is_own:
            return f"{self.path} was made by a command that ended before it was recorded: run that command again"
        return (f"{self.path} is not the file that was made here: its SHA-256 is another than in run.json; put that file back, "
                "or delete this one to have it made again")  # fmt: skip


def altered(folder: Path, record: Record | None, only: str | None = None) -> Altered | None:
    """The first of an artefact's files that is there and is not as its record says; None if all are, or none is told of.

    Args:
        folder: The run directory.
        record: The artefact's.
        only: The one file to look at.
    """
    told = record.get(SHA256) if isinstance(record, dict) else None
    if not isinstance(told, dict):
        return None
    ledger = _Ledger(folder)
    for name in told if only is None else {only} & told.keys():
        path = folder / name
        if not path.exists():
            continue
        made = ledger.lines.get(name, {}).get(SHA256)
        found = ledger.digest(name, path, (told[name], made)) if path.is_file() else ""  # a device has no end
        if found != told[name]:
            return Altered(path, made == found)
    ledger.keep(folder)
    return None


def check_files(folder: Path, record: Record | None) -> None:
    """Are an artefact's files those that its record tells of?

    Raises:
        UserError: One is not; it is named.
    """
    found = altered(folder, record)
    if found is not None:
        raise UserError(found.words)


def check_made_here(folder: Path, files: Iterable[Path]) -> None:
    """Were files that no record tells of made by a command that ended before it recorded them?

    Raises:
        UserError: One was not: what nothing here made is not replaced.
    """
    ledger = _Ledger(folder)
    for path in files:
        if not path.is_file() or path.is_symlink():  # a link gives way, and what it leads to stays
            continue
        name = name_of(path, folder)
        made = ledger.lines.get(name, {}).get(SHA256)
        if made is None or ledger.digest(name, path, (made,)) != made:
            raise UserError(
                f"{path} has no record in run.json, so that it is neither used nor replaced: move it away, or pass another --run"
            )


def verify(folder: Path) -> Iterator[tuple[str, str, bool | None]]:
    """Hash every file that `run.json` tells of: artefact, file, and whether it is as it was; None where it is gone.

    Raises:
        UserError: `run.json` is damaged.
    """
    for artefact, record in records(folder).items():
        for name, digest in record.get(SHA256, {}).items():
            path = folder / name
            yield artefact, name, sha256_of(path) == digest if path.is_file() else None


class _Ledger:
    """`.digests.json`; where it can't be read there is none, and files are hashed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER
        self.lines: dict[str, dict[str, Any]] = {}
        self.is_newer = False
        with contextlib.suppress(OSError, ValueError, RecursionError):
            kept = json.loads(self.path.read_text("utf-8"))
            if isinstance(kept, Mapping):
                self.lines = {name: line for name, line in kept.items() if isinstance(line, dict)}

    def digest(self, name: str, path: Path, known: Container[Any] | None = None) -> str:
        """A file's SHA-256, from the line of its size, time and inode, or from itself; then it gets a line, if it is one of `known`."""
        line, stat = self.lines.get(name, {}), _stat(path)
        if line.get("stat") == stat and isinstance(line.get(SHA256), str):
            return line[SHA256]
        found = sha256_of(path)
        if known is None or found in known:
            self.lines[name] = {SHA256: found, "stat": stat}
            self.is_newer = True
        return found

    def keep(self, folder: Path) -> None:
        """Write what was found out, if this process writes the run directory; it only saves time."""
        if self.is_newer and written_to() == folder:
            with contextlib.suppress(OSError):
                self.write()

    def write(self) -> None:
        """Write it whole; it need not outlive a power cut."""
        handle, unfinished = tempfile.mkstemp(prefix=f"{UNFINISHED}{LEDGER}.", dir=self.path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(self.lines, file)
            Path(unfinished).replace(self.path)
        finally:
            Path(unfinished).unlink(missing_ok=True)


def _stat(path: Path) -> Stat:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ino]
