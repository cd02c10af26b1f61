"""One thread traces at a time, except while it waits: nnsight's traces share caches and the model."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

# nnsight's traces are captured per thread, but share caches and the model: one thread at a time, except while waiting.
_tracing = threading.Lock()
_thread = threading.local()


@contextmanager
def tracing() -> Iterator[None]:
    """Hold the right to trace, in a program where several threads do."""
    with _tracing:
        _thread.holds = True
        try:
            yield
        finally:
            _thread.holds = False


@contextmanager
def waiting() -> Iterator[None]:
    """Let other threads trace while this one waits; nothing where only one thread traces."""
    if not getattr(_thread, "holds", False):
        yield
        return
    _tracing.release()
    try:
        yield
    finally:
        _tracing.acquire()
