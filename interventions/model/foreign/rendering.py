"""Chat templates are programs out of somebody's file: they get a sandbox (transformers'), a size, a time and some memory.

A thread renders, which is given up when its time is over. What would hold the interpreter in one step, products and powers of
large numbers and long texts, is refused by Jinja's own hook for operators; for all else the process gets some memory more
than it has, as long as the template runs.
"""

import contextlib
import ctypes
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jinja2.sandbox import SandboxedEnvironment

from data.errors import UserError
from interventions.model.foreign.checkpoint import MOST_TEMPLATE

SECONDS = 20.0  # for some hundreds of prompts, which take a tenth of a second
MOST_ADDED = 1 << 20  # characters that a template may put around a prompt; it may repeat the prompt a few times
REPEATS = 16
MEMORY = 1 << 30  # bytes that a template may take
MOST_BITS, MOST_ITEMS = 1 << 16, 1 << 24  # of a product or power


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


def _operator(_environment: Any, _context: Any, operator: str, left: Any, right: Any) -> Any:
    """`*` and `**` of a template, of no more than a prompt takes.

    Raises:
        ValueError: It would be far larger.
    """
    whole = isinstance(left, int) and isinstance(right, int)
    if operator == "**":
        large = whole and right > 0 and left.bit_length() * right > MOST_BITS
        result = 0 if large else left**right
    else:
        sizes = [one.bit_length() if whole else one if isinstance(one, int) else len(one) if hasattr(one, "__len__") else 1
                 for one in (left, right)]  # fmt: skip
        large = sum(sizes) > MOST_BITS if whole else sizes[0] * sizes[1] > MOST_ITEMS
        result = 0 if large else left * right
    if large:
        raise ValueError(f"a {operator} of more than a prompt takes")
    return result


# Asked for by every sandbox of Jinja's that compiles a template from now on, transformers' among them; constants are folded no more.
SandboxedEnvironment.intercepted_binops = frozenset({"*", "**"})
SandboxedEnvironment.call_binop = _operator  # pyright: ignore[reportAttributeAccessIssue]


@contextlib.contextmanager
def _bounded_memory() -> Iterator[None]:
    """While it lasts, this process may take `MEMORY` more than it has; where the system knows no such bound, nothing."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        before = resource.getrlimit(resource.RLIMIT_AS)
        most = pages * resource.getpagesize() + MEMORY
        if before[0] != resource.RLIM_INFINITY:
            most = min(most, before[0])
        resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    except (ImportError, OSError, ValueError):  # not Linux
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def rendered(
    tokenizer: Any,
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    variables: Mapping[str, Any] = MappingProxyType({}),
) -> list[str]:
    """Conversations in the tokenizer's chat template, generation prompt included.

    A thread does it, so that one which never ends can be given up.

    Raises:
        UserError: The template fails, takes too long or too much memory, or writes too much.
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
    with _bounded_memory():
        thread.start()
        thread.join(SECONDS)
    if thread.is_alive():
        _stop(thread)
        raise UserError(f"the chat template does not end within {SECONDS:.0f} s; pass a model with another one")
    for error in failed:
        if isinstance(error, UserError):
            raise error
        if isinstance(error, MemoryError):
            raise UserError(
                f"the chat template takes more than {MEMORY >> 30} GB of memory; pass a model with another one"
            )
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"the chat template fails on a prompt: {reason}") from error
    return done


def _stop(thread: threading.Thread) -> None:
    """Raise inside the thread: it would take a core until the process ends."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Late))
