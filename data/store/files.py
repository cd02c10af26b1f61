"""Files as this tool writes them: whole, on the disk before they have their name, never through somebody's link."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from data.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
NOTHING = 16 << 10  # bytes; a file takes more
FULL_WORDS = ("No space left on device", "Disk quota exceeded", "os error 28", "os error 122")


def open_own(path: Path, mode: str, **options: Any) -> IO[Any]:
    """Open a file of a run directory to write: the file itself, never what a link of its name points to.

    Raises:
        UserError: It is a link, or a device, pipe or folder.
    """
    return open(path, mode, opener=_opener, **options)  # a path's own `open` takes no opener


def _opener(path: str, flags: int) -> int:
    try:
        # A pipe would else be waited for.
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise UserError(f"{path} is a link or a pipe, and this tool writes through none; remove it") from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError(f"{path} is no regular file; remove it, or pass another path")
    return handle


def check_replaceable(path: Path) -> None:
    """May a file take this name? A device, a pipe or a folder must not give way to one.

    Raises:
        UserError: Something else is there, itself or behind a link.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is there already and is no regular file; pass another path")


def write_all(handle: int, content: bytes, at: int) -> None:
    """Write all of it at a place of a file: a disk that fills up takes the beginning alone, and says so by a number."""
    left = memoryview(content)
    while left:
        written = os.pwrite(handle, left, at)
        left, at = left[written:], at + written


def reserve(handle: int, size: int) -> None:
    """Give a file its size and the room on the disk for it, so that no write into it runs out of room later."""
    if size and hasattr(os, "posix_fallocate"):  # not on a Mac
        os.posix_fallocate(handle, 0, size)
    os.ftruncate(handle, size)


def settle(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems know nothing of the kind for folders
            raise
    finally:
        os.close(handle)


def is_full(error: BaseException | None) -> bool:
    """Whether a disk without room is behind an error; libraries wrap what the system says in errors of their own."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(words in str(error) for words in FULL_WORDS):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def room_for(path: Path) -> Iterator[None]:
    """While it lasts, a disk without room is one line that names the file.

    Raises:
        UserError: There is no room.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not (is_full(error) or _is_filled(path.parent)):
            raise
        raise UserError(no_room(path)) from error


def _is_filled(folder: Path) -> bool:
    """Whether nothing is left on the disk: polars does not always say why a write failed."""
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize < NOTHING


def no_room(path: Path | None = None) -> str:
    """What to say of a full disk."""
    where = f" for {path}" if path else ""
    return f"no room left on the disk{where}: free some and run the same command again; what is finished is kept"
