"""NDIF's sandbox, imitated in this process: a block runs beside the model, on copies, with modules that hold no weights.

What NDIF 0.1.2 does with an ordinary key's code (`ndif/services/ray/sandbox`): the block's workers live in one process
and the model in another. What a worker reads is pickled and sent to it, and pickled and sent back after, so that edits
in place count; what a trace is given is pickled, too. Here both are one process, and what would cross is copied.
"""

import contextlib
import copy
import io
from collections.abc import Iterator
from typing import Any

import torch
from nnsight.intervention.batching import Batcher
from nnsight.intervention.envoy import Envoy
from nnsight.intervention.interleaver import (
    EarlyStopException,
    Event,
    Interleaver,
    Mediator,
    OutOfOrderError,
    Pending,
)

CALL = "CALL"


class Apart(Interleaver):
    """The block's side of a request: its workers, and no model to hook them to.

    Attributes:
        network: The model's side.
        stopped: Whether a trace was stopped; NDIF 0.1.2 can serve no other after it.
    """

    def __init__(self, network: Any) -> None:
        """Begin a request."""
        super().__init__()
        self.network, self.stopped = network, False

    def instrument(self, envoy: Any) -> None:
        """There is nothing to hook: the forward pass runs elsewhere."""


class Proxy(Mediator):
    """The model's side of one worker."""

    def __init__(self, apart: Mediator, side: Apart) -> None:
        """Stand in for a worker that waits for its first value."""
        super().__init__(None, {}, {})
        self._apart, self._side = apart, side
        self._held: list[Pending | None] = []
        self.batch_group = apart.batch_group
        self.adopt(apart.pending)

    @property
    def alive(self) -> bool:
        """Whether the worker waits for something."""
        return self.pending is not None

    def start(self, interleaver: Any = None) -> None:
        """Join a run; the worker has begun already."""
        self.interleaver = interleaver
        self.counts_at_start = dict(interleaver.counts)

    def switch(self, *args: Any) -> Any:
        """Give the worker a copy of what it waits for; what it did to a read comes back before its next wish."""
        if self._held:
            self.adopt(self._held.pop())
            return self.pending
        waited, served = self.pending, crossed(args)
        self._apart.iteration = self.iteration
        try:
            park = self._apart.switch(*served)
        except EarlyStopException:
            self._side.stopped = True
            raise
        if args and waited is not None and waited.event is Event.VALUE:
            self._held.append(park)
            return waited._replace(event=Event.SWAP, value=crossed(served[0]))
        self.adopt(park)
        return self.pending

    def adopt(self, park: Any) -> None:
        """Take up the worker's next wish; calls of modules are answered at once."""
        while park is not None and park.event == CALL:
            hook, args, kwargs = crossed(park.value)
            found = module_at(self._side.network, park.provider)(*args, hook=hook, **kwargs)
            park = self._apart.switch(crossed(found))
        if park is not None:
            self.iteration = self._apart.iteration
            wanted = self.occurrence(park.provider) if self.iteration is None else self.iteration
            park = park._replace(iteration=wanted, value=crossed(park.value))
        self.pending = park

    def end(self) -> None:
        """What becomes of a worker that waits for what never came: a loop ends, anything else is an error."""
        error = OutOfOrderError(f"{self.pending} was requested but the model already ran past it")
        worker: Any = self._apart.worker
        with contextlib.suppress(OutOfOrderError) if self.iteration != 0 else contextlib.nullcontext():
            worker.throw(error)


def crossed(value: Any) -> Any:
    """What arrives at the other side of NDIF's socket."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def module_at(network: Any, path: str) -> Any:
    """The envoy at a path, which begins at the root."""
    for part in path.split(".")[1:]:
        network = network[int(part)] if part.isdigit() else getattr(network, part)
    return network


def persistent_objects(network: Any) -> dict[str, Any]:
    """What a request's names stand for beside the model: modules without weights."""
    with torch.device("meta"):
        module = type(network._module)(copy.deepcopy(network._module.config))
    known = dict(module.named_modules())
    found = {name: one for name, one in network._remoteable_persistent_objects().items() if ":" not in name}
    for envoy in network.modules():
        found[f"Module:{envoy.path}"] = known.get(envoy.path.partition(".")[2], envoy._module)
    return found | {"Interleaver": Apart(network)}


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Let a request's blocks run beside the model."""
    kept = {name: vars(Envoy)[name] for name in ("interleave", "__call__")}

    def interleave(self: Any, fn: Any, *args: Any, batcher: Any = None, **kwargs: Any) -> Any:
        if not isinstance(self.interleaver, Apart):
            return kept["interleave"](self, fn, *args, batcher=batcher, **kwargs)
        return run(self.interleaver, fn if isinstance(fn, str) else fn.__name__, batcher, kwargs)

    def call(self: Any, *args: Any, hook: bool = False, **kwargs: Any) -> Any:
        if not isinstance(self.interleaver, Apart):
            return kept["__call__"](self, *args, hook=hook, **kwargs)
        worker: Any = Mediator.current(self.path).worker
        return worker.parent.switch(Pending(CALL, self.path, None, (hook, args, kwargs)))  # type: ignore[arg-type]  # an event of our own

    Envoy.interleave, Envoy.__call__ = interleave, call  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(Envoy, name, method)


def run(side: Apart, name: str, batcher: Any, kwargs: dict[str, Any]) -> Any:
    """One trace: the model's method of this name, with the workers of the block's side."""
    if side.stopped:
        raise BrokenPipeError("a trace after a tracer.stop() of the same request")
    network, host, result = side.network, side.network.interleaver, None
    try:
        with side:
            proxies = [Proxy(mediator, side) for mediator in side.mediators]
            host.mediators = proxies
            with host:
                inputs = Batcher(network)
                for some, more in crossed(batcher.invokes if batcher is not None else []):
                    inputs.add(*some, **more)
                method = getattr(network, name)
                args, assembled = inputs.assemble(method)
                host.batcher = inputs
                result = method(*args, **{**assembled, **crossed(kwargs)})
                host.handle("result", result)
            if not side.stopped:
                for proxy in proxies:
                    if proxy.alive:
                        proxy.end()
    finally:
        host.mediators, host.batcher = [], None
        side.cancel()
    return crossed(result)
