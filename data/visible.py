"""Text of data, models and servers as it may be shown: what steers a terminal or can't be seen is written out."""

import json
import logging
import re
import unicodedata
from typing import Any

# What may stand between letters though it shows nothing: joiners of scripts and emoji.
HARMLESS = "\n\t\u200c\u200d"
HIDDEN = ("C", "Zl", "Zp")  # Unicode's categories
STEERING = re.compile("[\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # which JSON leaves as it is


def visible(text: str) -> str:
    """Text with control characters, direction marks and other invisible ones written out as \\u2026-like escapes."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(c) if c not in HARMLESS and unicodedata.category(c).startswith(HIDDEN) else c for c in text)


def visible_json(value: Any) -> str:
    """JSON in one line whose strings steer no terminal that it is shown on; it reads back as it was."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return STEERING.sub(lambda found: _escaped(found[0]), text)


class VisibleFormatter(logging.Formatter):
    """Messages of a log as they may be shown."""

    def format(self, record: logging.LogRecord) -> str:
        """The whole message, a traceback included."""
        return visible(super().format(record))


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\u{{{code:x}}}"
