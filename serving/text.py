"""Tokens to text as they come: whole characters only, and nothing that might still become a stop text."""

from collections.abc import Sequence
from typing import Any

HELD = "\ufffd"  # what the bytes of half a character decode to


class Decoding:
    """One answer's text.

    Attributes:
        text: All of it that is certain, stop texts cut off.
        stopped: Whether a stop text was found.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = (), leave_out: Sequence[int] = ()) -> None:
        """Of a tokenizer of its own thread.

        Args:
            tokenizer: Decodes.
            stops: Texts at which the answer ends.
            leave_out: Ids that are no text where they open an answer: control tokens.
        """
        self._tokenizer, self._stops, self._leave_out = tokenizer, [text for text in stops if text], set(leave_out)
        self._ids: list[int] = []
        self._start = self._read = 0
        self._pending = ""
        self._first = True
        self.text, self.stopped = "", False

    def add(self, token: int) -> str:
        """What is new and certain."""
        first, self._first = self._first, False
        if self.stopped or (first and token in self._leave_out):
            return ""
        self._ids.append(token)
        before = self._decoded(self._ids[self._start : self._read])
        now = self._decoded(self._ids[self._start :])
        if now.endswith(HELD) or len(now) <= len(before):
            return ""
        self._start, self._read = self._read, len(self._ids)  # what was read last is what the next is decoded behind
        return self._certain(now[len(before) :])

    def end(self) -> str:
        """What is left when no more tokens come."""
        if self.stopped:
            return ""
        before, now = self._decoded(self._ids[self._start : self._read]), self._decoded(self._ids[self._start :])
        rest = self._pending + now[len(before) :]
        self._pending = ""
        return self._kept(self._cut(rest))

    def _decoded(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def _certain(self, new: str) -> str:
        """New text without what may be the beginning of a stop text."""
        text = self._cut(self._pending + new)
        held = 0 if self.stopped else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._pending = text[len(text) - held :]
        return self._kept(text[: len(text) - held])

    def _cut(self, text: str) -> str:
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        self.stopped = self.stopped or bool(found)
        return text[: min(found)] if found else text

    def _kept(self, text: str) -> str:
        self.text += text
        return text


def _overlap(text: str, stop: str) -> int:
    """How many last characters of a text begin a stop text."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
