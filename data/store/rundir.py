"""The run directory: artefacts that appear whole, one record for each in `run.json`, one writer at a time."""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from data.errors import UserError
from data.store.files import check_replaceable, open_own, room_for, settle

UNFINISHED = ".unfinished."  # begins the name of a file or folder that has not got its own yet
DYING = 1.0  # seconds that a killed process, large as it is, may take to let go of its lock
Record = dict[str, Any]  # what `run.json` says of one artefact
_WRITTEN: list[Path] = []  # run directories whose locks this process holds
NEEDED = ("id", "key", "options", "start", "end")  # of a record's fields
FIELDS = {"id": str, "key": dict, "options": dict, "start": str, "end": str, "data": list, "model": str, "revision": str,
          "template": str, "dtype": str, "quantize": str, "backend": str, "n_layers": int, "seed": int, "prompt_format": dict, "earlier": list,
          "sha256": dict}  # fmt: skip
PACKAGES = ("nnsight", "torch", "transformers", "polars", "altair", "bitsandbytes")  # those that are installed


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the run directory's lock; the system frees it when its holder dies, however it dies.

    What a command that was killed left half-written goes, and a directory that was made for a command that then wrote nothing.

    Raises:
        UserError: Another process writes there; it is named. Or a folder in there is a link to one elsewhere.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for inside in folder.iterdir():
        if inside.is_symlink() and inside.is_dir():
            raise UserError(f"{inside} is a link to a folder elsewhere, where files would be replaced; remove the link")
    with _holding(folder) as lock:
        lock.truncate(0)
        lock.write(f"pid {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        _clean(folder)
        _WRITTEN.append(folder)
        try:
            yield
        finally:
            _WRITTEN.pop()
            lock.truncate(0)
            _take_back(folder, missing)


@contextlib.contextmanager
def _holding(folder: Path) -> Iterator[IO[str]]:
    """The locked `.lock` of a run directory.

    Raises:
        UserError: Another process holds it; it is named.
    """
    path, deadline = folder / ".lock", time.monotonic() + DYING
    while True:
        with room_for(path), open_own(path, "a+") as lock:
            while not _locked(lock):
                if time.monotonic() > deadline:
                    lock.seek(0)
                    holder = lock.read().strip() or "another process"
                    raise UserError(f"{folder} is being written by {holder}; wait for it, or pass another --run")
                time.sleep(0.05)
            if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                yield lock
                return
        folder.mkdir(parents=True, exist_ok=True)  # who held it has taken it back with its directory


def _take_back(folder: Path, made: list[Path]) -> None:
    """Remove the directories that were made for a command, innermost first, if it left no file there but its lock."""
    if folder not in made or [path for path in folder.rglob("*") if not path.is_dir()] != [folder / ".lock"]:
        return
    with contextlib.suppress(OSError):
        shutil.rmtree(folder)
        for path in made[1:]:
            path.rmdir()


def _clean(folder: Path) -> None:
    """Remove what a command that was killed had not given its name yet; journals, which are gone on from, stay."""
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            if name.startswith(UNFINISHED):
                path = Path(parent, name)
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        folders[:] = [name for name in folders if not name.startswith(UNFINISHED)]


def written_to() -> Path | None:
    """The run directory that this process writes, if it writes one."""
    return _WRITTEN[-1] if _WRITTEN else None


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` by rename when the block ends without an error.

    Raises:
        UserError: There is no room on the disk, or something that is no file has the name.
    """
    check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with room_for(path):
        handle, unfinished = tempfile.mkstemp(prefix=f"{UNFINISHED}{path.name[:100]}.", dir=path.parent)
    os.close(handle)
    try:
        with room_for(path):
            yield Path(unfinished)
            settle(Path(unfinished))
            Path(unfinished).chmod(0o644)
            Path(unfinished).replace(path)
            settle(path.parent)
    finally:
        Path(unfinished).unlink(missing_ok=True)


def records(folder: Path) -> dict[str, Record]:
    """What `run.json` says, artefact by artefact, held against what a record is.

    Raises:
        UserError: The file is damaged; what is wrong is named.
    """
    kept = read_records(folder)
    for name, entry in kept.items():
        odd = _odd(entry)
        if odd:
            raise UserError(f"{folder / 'run.json'} is damaged: the record of {name!r} {odd}; delete it, or pass another --run")  # fmt: skip
    return kept


def _odd(entry: Any) -> str:
    """What of a record is not as it should be; nothing if all is."""
    if not isinstance(entry, dict):
        return "is none"
    for field, kind in FIELDS.items():
        if not isinstance(entry.get(field), kind) and (field in NEEDED or entry.get(field) is not None):
            return f"has no valid {field!r}"
    if identity(entry["key"]) != entry["id"]:
        return "has a key that its id is not of"
    try:
        moments = [datetime.fromisoformat(entry[name]).utcoffset() for name in ("start", "end")]
    except ValueError:
        moments = [None]
    if None in moments:
        return "has no valid time"
    if not all(isinstance(one, str) for one in entry.get("data") or []):
        return "has no valid 'data'"
    earlier = entry.get("earlier") or []
    if not all(isinstance(one, dict) and isinstance(one.get("arms"), list) for one in earlier):
        return "has no valid 'earlier'"
    for options in (entry["options"], entry.get("prompt_format") or {}, *earlier):
        values = [one for value in options.values() for one in (value if isinstance(value, list) else [value])]
        if any(isinstance(one, (dict, list)) for one in values):
            return "has an option of no kind"
    return ""


def identity(key: dict[str, Any]) -> str:
    """A short hash of what an artefact is made from."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def read_records(folder: Path) -> dict[str, Any]:
    """What `run.json` says, whatever its records hold.

    Raises:
        UserError: The file is damaged.
    """
    path = folder / "run.json"
    if not path.exists():
        return {}
    try:
        kept = json.loads(path.read_text("utf-8"), parse_constant=_no_number)["artefacts"]
        if not isinstance(kept, dict):
            raise TypeError
        return kept
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path} is damaged; delete it, or pass another --run") from None


def _no_number(word: str) -> None:
    raise ValueError(word)  # NaN and Infinity are Python's, not JSON's


def record(folder: Path, artefact: str, entry: Record) -> None:
    """Write an artefact's record, with versions and the end time.

    Raises:
        UserError: It holds what JSON can't.
    """
    kept = read_records(folder)
    kept[artefact] = {**entry, "versions": versions(), "end": now()}
    try:
        text = json.dumps({"format": 1, "artefacts": kept}, indent=2, ensure_ascii=False, allow_nan=False)
        content = (text + "\n").encode()
    except ValueError as error:  # half a character of a UTF-16 pair is one as well
        raise UserError(f"{folder / 'run.json'} can't hold the record of {artefact}: {error}") from None
    with replacing(folder / "run.json") as path:
        path.write_bytes(content)


def versions() -> dict[str, str]:
    """Python's and the packages' versions."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def now() -> str:
    """This moment, UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _put(made: Path, folder: Path, old: Path | None) -> None:
    """Give a folder its name; one that has it is moved to `old`. Another process may do the same at this moment."""
    for last in (False, False, True):
        if old is not None and folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):
                folder.rename(old)
        try:
            made.rename(folder)
        except OSError:
            if old is None and folder.is_dir():
                return
            if last or not folder.exists():
                raise
        else:
            return


@contextlib.contextmanager
def appearing(folder: Path, *, replace: bool) -> Iterator[Path]:
    """An empty folder to fill, which becomes `folder` by rename when the block ends without an error.

    Args:
        folder: The folder to make.
        replace: Whether one that stands there by then gives way; else it stays, since another process was faster.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{UNFINISHED}{folder.name[:100]}-", dir=folder.parent))
    old = Path(f"{unfinished}-old")
    try:
        with room_for(folder):
            yield unfinished
            unfinished.chmod(0o755)
            for file in unfinished.rglob("*"):
                file.chmod(0o755 if file.is_dir() else 0o644)
                settle(file)
            settle(unfinished)
        _put(unfinished, folder, old if replace else None)
        settle(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
