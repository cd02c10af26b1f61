"""A vLLM engine behind an nnsight-serve: this process holds no weights, and every request is one of HTTP.

nnsight-serve runs what it is sent, for whoever reaches it and has its key; what it sends back is read here as any server's
is, as tensors and plain values alone.
"""

# vLLM is no dependency of the project; where it is installed, an environment of its own holds it.
# pyright: reportMissingImports=false

import json
import os
import queue
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nnsight.modeling.vllm import VLLM
from nnsight.modeling.vllm.registration import RegisteringTracer, Registration
from nnsight.schema.request import RequestModel
from nnsight.tracing.backend import Backend as NnsightBackend
from nnsight.tracing.tracer import mark
from nnsight.tracing.util import push

from data.contract import DTYPES
from data.errors import UserError
from interventions.backends.backend import VLLMOptions
from interventions.backends.ndif.client import (
    Client,
    LateError,
    PassingError,
    TooLongError,
    address_of,
    cleaned,
    detail,
    shown,
)
from interventions.backends.ndif.result import UnfitError, load_result
from interventions.backends.tracing_lock import tracing, waiting
from interventions.backends.vllm.engine import Asking, Reply
from interventions.backends.vllm.local import SETTINGS, no_accelerator, vllm_version
from interventions.traced.requests import PREEMPTED, ask_one, install_held

MOST_THREADS = 64
RESULT_BYTES = 1 << 30
RETRY_SECONDS = 1.0
OURS = (
    "hidden_size",
    "num_hidden_layers",
    "vocab_size",
    "num_attention_heads",
    "intermediate_size",
    "rope_theta",
    "model_type",
)


class Served:
    """An engine at an address."""

    tells = False

    def __init__(self, source: str, dtype: str, options: VLLMOptions, settings: Mapping[str, Any]) -> None:
        """Build the tree of modules that blocks are written against, and see what the server holds.

        Raises:
            UserError: No server, none that takes the key, or one that holds another model.
        """
        found = vllm_version()
        self._client = Client(address_of(options.serve, insecure=options.insecure, option="--serve"), options.timeout)
        self._threads = min(options.requests, MOST_THREADS)
        self._post("GET", "/health")
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        with no_accelerator():
            self.network: Any = VLLM(source, dtype=dtype, trust_remote_code=False, **settings)
        held, kind = self._held()
        if odd := other_model(source, self.network._module.config.to_dict(), held):
            raise UserError(f"the nnsight-serve at {shown(self._client.address)} holds {odd}")
        self.record: Mapping[str, Any] = {"engine": "vllm", "vllm": found, "dtype": kind,
                       "serve": shown(self._client.address), "tensor_parallel": None}  # fmt: skip

    def ask(self, requests: Sequence[Asking], tokens: int, stops: Sequence[int]) -> list[Reply]:
        """As `Transport` says. Who asks are daemons: whoever interrupts this waits for none of them."""
        todo: queue.SimpleQueue[tuple[int, Asking]] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, Reply | BaseException]] = queue.SimpleQueue()
        for numbered in enumerate(requests):
            todo.put(numbered)
        end = threading.Event()

        def work() -> None:
            while not end.is_set():
                try:
                    at, asked = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    with tracing():
                        reply = self._one(asked, tokens, stops)
                except BaseException as error:
                    done.put((at, error))
                    return
                done.put((at, reply))

        for _ in range(min(self._threads, len(requests))):
            threading.Thread(target=work, daemon=True).start()
        found: dict[int, Reply] = {}
        try:
            while len(found) < len(requests):
                at, reply = done.get()
                if isinstance(reply, BaseException):
                    raise reply
                found[at] = reply
        finally:
            end.set()
        return [found[at] for at in range(len(requests))]

    def _one(self, asked: Asking, tokens: int, stops: Sequence[int]) -> Reply:
        edits = [asked.edit] if asked.edit else []
        new, saves = ask_one(self.network, _Sending(self), list(asked.ids), tokens, list(stops), edits)
        if not isinstance(new, list) or not all(isinstance(token, int) for token in new) or not isinstance(saves, dict):
            raise UserError(f"the nnsight-serve at {shown(self._client.address)} sent back something else than tokens")
        return Reply(new, saves)

    def _held(self) -> tuple[dict[str, Any], str]:
        """The configuration of the model that the server holds, and the type that it holds it in."""
        handle = install_held(self.network, self.edit, "edit-held")
        try:
            (reply,) = self.ask([Asking([1], "edit-held")], 1, ())
        finally:
            handle.clear()
        try:
            config, kind = json.loads(reply.saves["config"]), str(reply.saves["kind"]).removeprefix("torch.")
        except (KeyError, TypeError, ValueError):
            config, kind = None, ""
        if not isinstance(config, dict) or kind not in DTYPES:
            raise UserError(
                f"the server at {shown(self._client.address)} doesn't say what it holds; is it an nnsight-serve?"
            )
        return config, kind

    def send(self, blob: bytes) -> dict[str, Any]:
        """Send a trace, and read what it saved.

        Raises:
            UserError: It can't be sent, or what comes back is none.
        """
        try:
            found = load_result(self._post("POST", "/v1/nnsight/generate", blob), RESULT_BYTES)
        except UnfitError as error:
            raise UserError(
                f"what the nnsight-serve at {shown(self._client.address)} sent back is not used: {error}"
            ) from None
        saves, error = found.get("saves"), found.get("error")
        if isinstance(error, dict) and error.get("message") == PREEMPTED:
            raise UserError(
                f"the nnsight-serve at {shown(self._client.address)} ran out of cache and dropped a steered request: pass fewer --requests"
            )
        if isinstance(error, dict) and not error.get("is_control_flow"):
            raise UserError(
                f"the nnsight-serve at {shown(self._client.address)} failed: {cleaned(str(error.get('message')))[:300]}"
            )
        return saves if isinstance(saves, dict) else {}

    def _post(self, method: str, path: str, content: bytes = b"") -> bytes:
        """One exchange, tried again where that may help, within the deadline.

        Raises:
            UserError: It failed for good.
        """
        at, deadline = shown(self._client.address), time.monotonic() + self._client.timeout
        headers = {"Content-Type": "application/octet-stream", "nnsight-compress": "False"}
        while True:
            try:
                with waiting():
                    answer = self._client.exchange(
                        method, path, deadline - time.monotonic(), RESULT_BYTES, content=content, headers=headers
                    )
            except PassingError as error:
                if (
                    time.monotonic() + RETRY_SECONDS > deadline
                    or "nothing listens" in str(error)
                    or "no such host" in str(error)
                ):
                    raise UserError(
                        f"no nnsight-serve answers at {at} ({error}): start one, or check --serve"
                    ) from None
                with waiting():
                    time.sleep(RETRY_SECONDS)
                continue
            except LateError:
                raise UserError(
                    f"the nnsight-serve at {at} took longer than {self._client.timeout:g} s: pass a longer --timeout, or fewer --requests"
                ) from None
            except TooLongError as error:
                raise UserError(f"what the nnsight-serve at {at} sent back is not used: {error}") from None
            if answer.status_code in (401, 403):
                raise UserError(f"the nnsight-serve at {at} does not take your key: set NDIF_API_KEY to its --api-key")
            if answer.status_code != 200:
                raise UserError(
                    f"the server at {at} answers {answer.status_code} ({detail(answer)}); is it an nnsight-serve?"
                )
            return answer.content

    def edit(self, *, name: str) -> RegisteringTracer:
        """What installs a block under a name on the server's engine."""
        return _Installing(self, name)

    def install(self, number: str, name: str | None, payload: bytes) -> None:
        """Put a block on the server's engine."""
        self._post("POST", f"/v1/nnsight/register/{number}?name={quote(name or '', safe='')}", payload)

    def uninstall(self, number: str) -> None:
        """Take it off again."""
        self._post("POST", f"/v1/nnsight/register/{number}/clear")


class _Installing(RegisteringTracer):
    """A block that goes to a server's engine."""

    def __init__(self, served: Served, name: str) -> None:
        super().__init__(served.network, serve="a server", name=name)
        self._served = served

    def __reduce__(self) -> tuple[Any, ...]:
        # A block that loops refers to its tracer, which travels with it: as nnsight's own, without the line to the server.
        state = {name: value for name, value in self.__getstate__().items() if name not in ("_served", "registration")}
        return object.__new__, (RegisteringTracer,), state

    def _handle(self) -> Registration:
        return _Handle(self._served, self._name)

    def __exit__(self, *exception: Any) -> bool:
        handled = super().__exit__(*exception)
        self._model._installed_edits.clear()  # the list travels with the network, and a handle can't
        return handled


class _Handle(Registration):
    """A block on a server's engine."""

    def __init__(self, served: Served, name: str | None) -> None:
        super().__init__(served.network, f"registration-{uuid.uuid4().hex}", name=name)
        self._served = served

    def install(self, payload: bytes) -> None:
        self._served.install(self.id, self.name, payload)

    def uninstall(self) -> None:
        self._served.uninstall(self.id)


class _Sending(NnsightBackend):
    """A trace that goes to a server, and what it saved comes back into its frame."""

    def __init__(self, served: Served) -> None:
        self._served = served

    def __call__(self, tracer: Any) -> None:
        saves = self._served.send(RequestModel.serialize(tracer, compress=False))
        for value in saves.values():
            mark(value)
        push(tracer.info.frame, saves)


def other_model(source: str, wanted: Mapping[str, Any], held: Mapping[str, Any]) -> str:
    """In what the model that a server holds is another one, in words; empty where it is the one.

    By its configuration, and by the last part of its name: a folder may lie elsewhere there.
    """
    name = str(held.get("_name_or_path") or "")
    odd = [key for key in OURS if wanted.get(key) != held.get(key)]
    if odd:
        return f"another model, {cleaned(name)[:200]} ({', '.join(f'{key} {held.get(key)!r}, not {wanted.get(key)!r}' for key in odd)})"
    return (
        ""
        if Path(name).name == Path(source).name
        else f"{cleaned(name)[:200]}, not {source}: pass --model with what it holds"
    )
