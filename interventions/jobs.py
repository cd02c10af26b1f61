"""One trace as a job on an NDIF server: sent, watched, tried again where that can help, collected, never lost.

nnsight runs a trace through a *backend*; `Job` is one. Where nnsight's own waits for ever, this one polls under a
deadline; and it writes down what it sends, so that a process that takes over collects a result instead of asking again.
"""

import hashlib
import io
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import torch
from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status

from data.errors import UserError
from interventions.server import PREFLIGHT_SECONDS, api_key, detail, shown

TRIES = 6  # of one step in a row; the waits between them add up to about a minute
FIRST_WAIT, LONGEST_WAIT = 0.05, 2.0  # seconds between polls
RETRY_WAIT = 1.0  # seconds, doubled each time
FORGOTTEN_SECONDS = 20.0  # a job that its server does not know for so long is lost
QUIET_SECONDS = 30.0  # a single answer may take so long
CHUNK = 1 << 18

# nnsight's traces are captured per thread, but share caches and the model: one thread at a time, except while waiting.
_tracing = threading.Lock()
_thread = threading.local()


@dataclass
class Traffic:
    """What went over the line.

    Attributes:
        jobs: Jobs sent.
        collected: Results of jobs that an earlier process had sent.
        retried: Jobs sent again.
        sent: Bytes sent.
        received: Bytes received.
    """

    jobs: int = 0
    collected: int = 0
    retried: int = 0
    sent: int = 0
    received: int = 0


@dataclass(frozen=True, eq=False)
class Line:
    """How jobs reach a server.

    Attributes:
        address: The server's.
        timeout: Seconds that a job may take, all its tries included.
        traffic: Counted here.
        watch: Told of each change: job, state, the server's words.
        client: HTTP client, shared by threads.
    """

    address: str
    timeout: float
    traffic: Traffic = field(default_factory=Traffic)
    watch: Callable[[str, str, str], None] = lambda *_: None
    client: httpx.Client = field(default_factory=lambda: httpx.Client(headers=_headers()))

    @property
    def mark(self) -> str:
        """Tells servers apart in a journal without naming them: an address may hold a key."""
        return hashlib.sha256(self.address.encode()).hexdigest()[:12]


class PassingError(Exception):
    """Something that may be over in a moment; `lost` if the job is gone and must be sent again."""

    def __init__(self, reason: str, *, lost: bool) -> None:
        """Say what happened."""
        super().__init__(reason)
        self.lost = lost


class Job(RemoteBackend):
    """nnsight backend for one trace.

    Args:
        model: The nnsight model, which names itself to the server.
        line: How to get there.
        name: For people and the journal.
        known: What a journal says of this job from an earlier process: `id`, `server`, `sent`, `again`.
        note: Called with such a dictionary whenever it changes.
    """

    def __init__(
        self,
        model: Any,
        line: Line,
        name: str,
        known: dict[str, Any] | None = None,
        note: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        """Prepare; nothing is sent before the trace ends."""
        super().__init__(model.to_model_key(), host=line.address, env=model._remoteable_get_env(), api_key=api_key())
        self._line, self._name, self._note = line, name, note
        self._noted = dict(known or {})
        if self._noted.get("server") != line.mark or self._noted.get("failed"):
            self._noted = {"server": line.mark, "id": None, "again": False}
        self.deadline = time.monotonic() + line.timeout
        self._words = "not sent yet"

    def __call__(self, tracer: Any = None) -> Any:
        """Run the trace there and put what it saved into the caller's frame.

        Raises:
            UserError: It failed for good, or the deadline passed; one line.
        """
        ours = self._noted.get("id") is not None
        failures = 0
        while True:
            try:
                if self._noted.get("id") is None:
                    self._send(tracer)
                with waiting():
                    content = self._wait(ours)
                break
            except PassingError as error:
                failures += 1
                if failures >= TRIES or self._left() <= 0:
                    raise self._given_up(str(error)) from None
                if error.lost:
                    self._noted |= {"id": None}
                    self._line.traffic.retried += 1
                    ours = False
                self._line.watch(self._name, "RETRY", str(error))
                with waiting():
                    self._pause(RETRY_WAIT * 2 ** (failures - 1) * random.uniform(0.5, 1.5))
        self._line.traffic.received += len(content)
        self._line.traffic.collected += ours
        result = self.finalize(content)
        self._line.watch(self._name, "COMPLETED", self._words)
        if isinstance(result, dict):
            self._push(result, tracer)
        return result

    def finalize(self, content: bytes) -> Any:
        """Read a result: tensors and plain values only, so that a server can't run code here."""
        if self.compress:
            import zstandard

            content = zstandard.ZstdDecompressor().decompress(content)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)

    def _send(self, tracer: Any) -> None:
        """Journal the intent, send, journal the id."""
        blob = self._serialize(tracer)
        self._noted |= {"sent": time.time()}
        self._note(self._noted)
        request = RequestModel(model_key=self.model_key, compress=self.compress, env=self.env)
        with waiting():
            answer = self._ask(
                "POST",
                "/request",
                data={"data": request.metadata()},
                files={"blob": ("request", blob, "application/octet-stream")},
                headers=_versions(),
            )
        response = ResponseModel.model_validate_json(answer.text)
        self._noted |= {"id": response.id}
        self._note(self._noted)
        self._line.traffic.jobs += 1
        self._line.traffic.sent += len(blob)
        self._tell(response)

    def _wait(self, collecting: bool) -> bytes:
        """Poll until the job is done; its result as it came over the line."""
        wait, silent_since, failures = FIRST_WAIT, time.monotonic(), 0
        old = collecting and time.time() - float(self._noted.get("sent") or 0) > self._line.timeout
        while True:
            try:
                answer = self._ask("GET", f"/response/{self._noted['id']}", missing_is_fine=True)
                failures = 0
            except PassingError as error:
                failures += 1
                if failures >= TRIES:
                    raise self._given_up(str(error)) from None
                self._line.watch(self._name, "RETRY", str(error))
                self._pause(RETRY_WAIT * 2 ** (failures - 1) * random.uniform(0.5, 1.5))
                continue
            if answer.status_code == 404:
                if time.monotonic() - silent_since > FORGOTTEN_SECONDS and not self._noted["again"]:
                    self._noted["again"] = True
                    raise PassingError("the server does not know the job any more", lost=True)
            else:
                silent_since = time.monotonic()
                response = ResponseModel.model_validate_json(answer.text)
                self._tell(response)
                if response.status == Status.COMPLETED:
                    return self._download(response.data)
                if response.status == Status.ERROR:
                    raise self._failure(response.description)
                if old and not self._noted["again"]:  # an earlier process gave it all the time there is
                    self._noted["again"] = True
                    raise PassingError("the job is older than its deadline", lost=True)
            self._pause(min(wait, LONGEST_WAIT))
            wait *= 1.4

    def _failure(self, description: str) -> Exception:
        """What a job's ERROR means: a passing one, or a UserError with the server's last line."""
        if description.startswith(("Error submitting request", "Service temporarily unavailable")):
            return PassingError(" ".join(description.split())[:200], lost=True)
        self._note(self._noted | {"failed": True})
        lines = [text.strip() for text in description.strip().splitlines() if text.strip()] or ["no reason given"]
        return UserError(f"the server refused job {self._name}: {lines[-1][:400]}")

    def _ask(self, method: str, path: str, missing_is_fine: bool = False, **content: Any) -> httpx.Response:
        """One exchange; what can pass raises `PassingError`, what can't `UserError`."""
        left = self._left()
        if left <= 0:
            raise self._given_up("")
        seconds = min(QUIET_SECONDS, left)
        limits = httpx.Timeout(seconds, connect=min(PREFLIGHT_SECONDS, left))
        try:
            answer = self._line.client.request(method, f"{self._line.address}{path}", timeout=limits, **content)
        except httpx.TimeoutException:
            if self._left() <= 0:
                raise self._given_up("") from None
            raise PassingError(f"no answer within {seconds:.0f} s", lost=False) from None
        except (httpx.HTTPError, OSError) as error:
            raise PassingError(f"{type(error).__name__}: {error}"[:200], lost=False) from None
        if answer.status_code == 404 and missing_is_fine:
            return answer
        if answer.status_code == 429 or answer.status_code >= 500:
            raise PassingError(f"{answer.status_code}: {detail(answer)}", lost=False)
        if answer.is_error:
            hint = "; check NDIF_API_KEY" if answer.status_code in (401, 403) else ""
            raise UserError(f"the server at {shown(self._line.address)} refused the request: {detail(answer)}{hint}")
        return answer

    def _download(self, source: Any) -> bytes:
        """The result: in the answer itself, or behind an address."""
        if isinstance(source, (bytes, bytearray)):
            return bytes(source)
        if not source:
            raise UserError(f"job {self._name} came back empty; the server may be of another version (see `status`)")
        parts: list[bytes] = []
        limits = httpx.Timeout(min(QUIET_SECONDS, max(self._left(), 1)))
        try:
            with httpx.stream("GET", source, timeout=limits) as answer:
                if answer.status_code in (403, 404, 410):
                    raise PassingError("the server no longer holds the result", lost=True)
                answer.raise_for_status()
                for chunk in answer.iter_bytes(CHUNK):
                    parts.append(chunk)
                    if self._left() <= 0:
                        raise self._given_up("while its result came over the line")
        except (httpx.HTTPError, OSError) as error:
            raise PassingError(f"the result did not arrive ({type(error).__name__})", lost=False) from None
        return b"".join(parts)

    def _tell(self, response: ResponseModel) -> None:
        words = " ".join(response.description.split())[:120]
        if (words, response.status) != (self._words, self.status):
            self.status, self._words = response.status, words
            if response.status not in (Status.COMPLETED, Status.ERROR):
                self._line.watch(self._name, response.status.value, words)

    def _left(self) -> float:
        return self.deadline - time.monotonic()

    def _pause(self, seconds: float) -> None:
        if self._left() <= 0:
            raise self._given_up("")
        time.sleep(max(0.0, min(seconds, self._left())))

    def _given_up(self, reason: str) -> UserError:
        at = shown(self._line.address)
        if self._left() > 0:
            return UserError(
                f"job {self._name} failed {TRIES} times at {at} ({reason}); run the same command again to go on"
            )
        last = reason or (f"last heard: {self.status.value}, {self._words}" if self.status else "it never answered")
        return UserError(
            f"job {self._name} was not done within {self._line.timeout:g} s (--timeout) at {at} ({last}); run the same "
            "command again to collect it, or see `status`"
        )


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


def _headers() -> dict[str, str]:
    return {"ndif-api-key": api_key()} if api_key() else {}


def _versions() -> dict[str, str]:
    import sys
    from importlib.metadata import version

    return {"nnsight-version": version("nnsight"), "python-version": sys.version, "ndif-timestamp": repr(time.time())}
