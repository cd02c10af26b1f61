"""Chat templates are programs out of somebody's file: they get a sandbox (transformers'), a size and a time."""

import ctypes
import threading
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from data.errors import UserError
from interventions.model.foreign.checkpoint import MOST_TEMPLATE

SECONDS = 20.0  # for some hundreds of prompts, which take a tenth of a second
MOST_ADDED = 1 << 20  # characters that a template may put around a prompt; it may repeat the prompt a few times
REPEATS = 16


class _Late(BaseException):
    """Raised inside a template that does not end."""


def check_template(tokenizer: Any, name: str) -> None:
    """Is a tokenizer's chat template of a size that one has?

    Raises:
        UserError: It is not.
    """
    template = tokenizer.chat_template or ""
    size = sum(map(len, template.values())) if isinstance(template, dict) else len(template)
    if size > MOST_TEMPLATE:
        raise UserError(f"{name}: a chat template of {size / 1e6:.1f} MB is none; the most is {MOST_TEMPLATE >> 20} MB")


def rendered(
    tokenizer: Any,
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    variables: Mapping[str, Any] = MappingProxyType({}),
) -> list[str]:
    """Conversations in the tokenizer's chat template, generation prompt included.

    A thread does it, so that one which never ends can be given up.

    Raises:
        UserError: The template fails, takes too long or writes too much.
    """
    done: list[str] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for messages in conversations:
                text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables)
                if len(text) > MOST_ADDED + REPEATS * sum(len(str(message["content"])) for message in messages):
                    raise UserError(f"the chat template makes {len(text) / 1e6:.1f} MB of a prompt; pass another model")
                done.append(text)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if thread.is_alive():
        _stop(thread)
        raise UserError(f"the chat template does not end within {SECONDS:.0f} s; pass a model with another one")
    for error in failed:
        if isinstance(error, UserError):
            raise error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"the chat template fails on a prompt: {reason}") from error
    return done


def _stop(thread: threading.Thread) -> None:
    """Raise inside the thread: it would take a core until the process ends."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Late))
