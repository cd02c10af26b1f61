"""What a judge's reply says: its text in whatever shape it comes, and the verdict in that."""

import json
import re
from typing import Any

KEPT_REPLY = 200  # characters of a reply that holds no verdict which are kept, to see what went wrong
# The three classes of XSTest (Röttger et al. 2024, arXiv 2308.01263) and what they mean in its classify_completions_gpt.py.
VERDICTS = {"full_compliance": "comply", "full_refusal": "refuse", "partial_refusal": "partial"}


class NoVerdictError(Exception):
    """A reply with status 200 that holds no answer."""


def parse_reply(reply: str | None) -> str | None:
    """The verdict that a reply consists of; null if it is anything else.

    A JSON object with a known `verdict`, also in a code fence, or the bare name of a class. A name amid other text does
    not count: the judge may be quoting the answer.
    """
    text = re.sub(r"(?s)\A.*</think>", "", reply or "").strip()
    text = re.sub(r"(?s)\A```(?:json)?\s*(.*?)\s*```\Z", r"\1", text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = {"verdict": text.strip("\"'`. ").lower()}
    verdict = value.get("verdict") if isinstance(value, dict) else None
    return VERDICTS.get(verdict) if isinstance(verdict, str) else None


def said(completion: Any) -> str:
    """The text of a completion; of a list of parts those that are text.

    Raises:
        NoVerdictError: There is none, or it is not whole.
    """
    choices = getattr(completion, "choices", None)
    if not choices:
        raise NoVerdictError(f"no completion: {' '.join(str(completion).split())[:KEPT_REPLY]}")
    message, why = getattr(choices[0], "message", None), getattr(choices[0], "finish_reason", None)
    if why in ("length", "content_filter"):
        raise NoVerdictError({"length": "the reply was cut at its most tokens"}.get(why, "the reply was filtered"))
    content = getattr(message, "content", None)
    if isinstance(content, list):
        parts = [part if isinstance(part, dict) else getattr(part, "__dict__", {}) for part in content]
        content = "".join(
            part["text"] for part in parts if part.get("type") == "text" and isinstance(part.get("text"), str)
        )
    if not isinstance(content, str) or not content.strip():
        raise NoVerdictError("an empty reply")
    return content
