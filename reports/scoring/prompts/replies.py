"""What a judge's reply says: its text in whatever shape it comes, and the class or the numbers in that."""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from reports.scoring.prompts.prompt import Found

KEPT_REPLY = 200  # characters of a reply that holds no verdict which are kept, to see what went wrong
CHANNEL = re.compile(r"(?s)\A.*<\|channel\|>final\b[^<]*<\|message\|>")  # of OpenAI's harmony format, unparsed
TEXT_PARTS = ("text", "output_text", None)
MARKS = "\"'`*_. \n\t\ufeff\u200b"


class NoVerdictError(Exception):
    """A reply with status 200 that holds no answer."""


def read_class(reply: str | None, classes: Mapping[str, str]) -> Found:
    """The verdict that a reply consists of; none if it is anything else.

    A JSON object with a known `verdict`, also in a code fence, or the bare name of a class. A name amid other text does
    not count: the judge may be quoting the answer.

    Args:
        reply: The judge's text.
        classes: What its words mean, lower case, with `_` between words.
    """
    verdict = read_object(reply).get("verdict")
    if not isinstance(verdict, str):
        return Found(None)
    return Found(classes.get(re.sub(r"[\s-]+", "_", verdict.strip(MARKS).lower())))


def read_object(reply: str | None) -> dict[str, Any]:
    """The JSON object that a reply consists of, its keys in lower case; else its whole text as `verdict`.

    Also one in a code fence, in a list by itself, in a string of JSON, or as Python writes it.
    """
    text = without_thoughts(reply).strip("\ufeff\u200b \n\t")
    text = re.sub(r"(?s)\A```\w*\s*(.*?)\s*```\Z", r"\1", text)
    value: Any = _parsed(text)
    if isinstance(value, str):
        value = _parsed(value) if value.lstrip().startswith("{") else value
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        return {str(key).strip().lower(): part for key, part in value.items()}
    return {"verdict": value if isinstance(value, str) else text}


def without_thoughts(reply: str | None) -> str:
    """A reply without the thinking that stands before it."""
    return re.sub(r"(?s)\A.*</think>", "", CHANNEL.sub("", reply or "")).strip()


def said(completion: Any) -> str:
    """The text of a completion; of a list of parts those that are text; of a call of a tool its arguments.

    Raises:
        NoVerdictError: There is none, or it is not whole.
    """
    if isinstance(completion, str) and completion.lstrip().startswith("data:"):
        return _streamed(completion)
    choices = getattr(completion, "choices", None)
    if not isinstance(choices, list) or not choices:
        error = getattr(completion, "error", None) or getattr(completion, "detail", None)
        raise NoVerdictError(f"no completion: {_words(error or completion)}")
    choice = choices[0]
    message, why = getattr(choice, "message", None), getattr(choice, "finish_reason", None)
    _check_end(why, getattr(choice, "error", None))
    refusal = getattr(message, "refusal", None)
    text = _text(getattr(message, "content", None)) or _text(getattr(choice, "text", None)) or _called(message)
    if not text.strip():
        raise NoVerdictError(
            f"the judge itself declined: {refusal}" if isinstance(refusal, str) and refusal else "an empty reply"
        )
    return text


def _check_end(why: Any, error: Any = None) -> None:
    """Is a reply whole?"""
    if why in ("length", "content_filter"):
        raise NoVerdictError({"length": "the reply was cut at its most tokens"}.get(why, "the reply was filtered"))
    if why == "error" or error:
        raise NoVerdictError(f"the reply ended in an error: {_words(error or 'without a cause')}")


def _words(error: Any) -> str:
    """What an error says, on one line."""
    told = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(told).split())[:KEPT_REPLY]


def _text(content: Any) -> str:
    parts = content if isinstance(content, list) else [content]
    told = []
    for part in parts:
        plain = part if isinstance(part, dict) else getattr(part, "__dict__", {})
        text = part if isinstance(part, str) else plain.get("text") if plain.get("type") in TEXT_PARTS else None
        told.append(text if isinstance(text, str) else "")
    return "".join(told)


def _called(message: Any) -> str:
    calls = getattr(message, "tool_calls", None)
    arguments = (
        getattr(getattr(calls[0], "function", None), "arguments", None) if isinstance(calls, list) and calls else None
    )
    return arguments if isinstance(arguments, str) else ""


def _streamed(body: str) -> str:
    """The text of a stream of events that nobody asked for.

    Raises:
        NoVerdictError: It holds none, or breaks off.
    """
    told, ended = [], False
    for line in body.splitlines():
        event = _parsed(line.removeprefix("data:").strip()) if line.startswith("data:") else None
        ended = ended or line.strip() == "data: [DONE]"
        choices = event.get("choices") if isinstance(event, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        _check_end(choice.get("finish_reason"))
        ended = ended or choice.get("finish_reason") is not None
        delta = choice.get("delta") or choice.get("message")
        told.append(_text(delta.get("content")) if isinstance(delta, dict) else "")
    if not ended or not "".join(told).strip():
        raise NoVerdictError(f"no completion: {_words(body)}")
    return "".join(told)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if len(text) > 2000 or not text.startswith("{"):
        return None
    try:
        return ast.literal_eval(text)  # what Python prints is no JSON
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None
