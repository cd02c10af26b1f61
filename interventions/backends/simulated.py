"""A trace shipped and rebuilt in this process: what would fail on a server fails here, before queueing for it."""

import contextlib
import io
import linecache
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from nnsight.intervention.backends.local import LocalSimulationBackend
from nnsight.ndif import pull_env
from nnsight.schema.request import RequestModel
from nnsight.tracing.globals import BLOCKS, SOURCES
from nnsight.tracing.tracer import _saves, save
from nnsight.tracing.util import push

from interventions.backends.ndif.result import load_result
from interventions.backends.sandboxed import apart, persistent_objects


class Simulation(LocalSimulationBackend):
    """nnsight backend that does what an NDIF server does, without one; in a sandbox what it does with an ordinary key.

    nnsight's own runs the caller's tracer with the rebuilt code. This one runs the rebuilt tracer and brings back what
    it saved, as bytes: a list made outside the block stays empty here too. And it rebuilds from source that nnsight
    may have cached otherwise: a block's source, as it is shipped, is laid out anew, so that lines move.
    """

    def __init__(self, model: Any, *, sandbox: bool = False) -> None:
        """Prepare; nothing runs before the trace ends."""
        super().__init__(model)
        self._sandbox = sandbox

    def __call__(self, tracer: Any) -> None:
        """Serialize, deserialize with this machine's modules hidden, run, and put what was saved into the frame."""
        pull_env()
        blob = RequestModel.serialize(tracer, compress=False)
        known = persistent_objects(self.model) if self._sandbox else self.model._remoteable_persistent_objects()
        with _sources_apart(tracer.info.frame.f_code.co_filename), apart() if self._sandbox else nullcontext():
            with self._modules_hidden():
                rebuilt = RequestModel.deserialize(blob, known, compress=False)
            rebuilt.execute(rebuilt.info.code)
        marked = _saves()
        saved = {name: value for name, value in rebuilt.info.frame.f_locals.items() if id(value) in marked}
        result = load_result(_as_bytes(saved))
        for value in result.values():
            save(value)
        push(tracer.info.frame, result)

    @contextlib.contextmanager
    def _modules_hidden(self) -> Iterator[None]:
        paths = list(sys.path)
        hidden = self._hide_local_modules()
        try:
            yield
        finally:
            self._restore(hidden)
            sys.path[:] = paths  # nnsight puts the hidden ones back at the end, where other packages may shadow ours


@contextlib.contextmanager
def _sources_apart(filename: str) -> Iterator[None]:
    """Let a shipped block be read from its own source, and forget it after, as NDIF's `block_scope` does."""
    stores: list[Any] = [linecache.cache, SOURCES, BLOCKS]
    kept = [(store, dict(store)) for store in stores]
    SOURCES.pop(filename, None)
    for site in [site for site in BLOCKS if site[0] == filename]:
        del BLOCKS[site]
    try:
        yield
    finally:
        for store, before in kept:
            store.clear()
            store.update(before)


def _as_bytes(saved: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    return buffer.getvalue()
