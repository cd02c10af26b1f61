"""A folder that holds a data set as the hub lays it out, by whomever: its card may name files, and only ones inside it."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.errors import UserError

CARDS = ("README.md", ".huggingface.yaml")
MOST_CARD = 16 << 20  # bytes
FRONT = re.compile(r"\A\s*---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)
READ_FROM = ("data_files", "data_dir")


def check_inside(folder: Path) -> None:
    """Would reading this data set read its own files alone: none elsewhere on this machine, and no address?

    Raises:
        UserError: It would not, or its card can't be read; the folder is named.
    """
    for card in CARDS:
        for place in _places(folder / card):
            if ":" in place or place.startswith(("/", "~", "\\")) or ".." in re.split(r"[/\\]", place):
                raise UserError(f"{folder}: its {card} reads {place[:100]!r}, which is not in that folder; "
                                "only a data set's own files are read")  # fmt: skip
    home = folder.resolve()
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(home):
            raise UserError(f"{folder}: {path.relative_to(folder)} is a link out of that folder; only a data set's own "
                            "files are read: copy it there")  # fmt: skip


def cache_of(folder: Path) -> str:
    """Where `datasets` keeps what it makes of this data set's files: a place of its own for each state that they are in.

    By itself it tells local data sets apart by name and card alone, so that it would give the rows of other files of that name.
    """
    import datasets.config

    home = folder.resolve()
    files = sorted((str(path.relative_to(home)), path.stat()) for path in home.rglob("*") if path.is_file())
    state = [str(home), [(name, told.st_size, told.st_mtime_ns, told.st_ctime_ns) for name, told in files]]
    return str(
        Path(datasets.config.HF_DATASETS_CACHE)
        / "mirrors"
        / hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]
    )


def _places(card: Path) -> Iterator[str]:
    """Everything that a card says data is read from."""
    if not card.exists():
        return
    if not card.is_file() or card.stat().st_size > MOST_CARD:
        raise UserError(f"{card}: no card of a data set")
    text = card.read_text("utf-8", errors="replace")
    found = FRONT.match(text.replace("\r\n", "\n").lstrip("\ufeff")) if card.suffix == ".md" else None
    if card.suffix == ".md" and found is None:
        return
    yield from _named(_yaml(found[1] if found else text, card), reads=False)


def _yaml(text: str, card: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        raise UserError(f"{card}: its front matter is no YAML; mend it, or fetch the data set again") from None


def _named(value: Any, *, reads: bool) -> Iterator[str]:
    """Texts below `data_files` and `data_dir`, but for names of splits."""
    if isinstance(value, str) and reads:
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _named(part, reads=reads)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _named(part, reads=(reads and key != "split") or key in READ_FROM)
