"""One trace as a job on an NDIF server: sent, watched, tried again where that can help, collected, never lost.

nnsight runs a trace through a *backend*; `Request` is one. Where nnsight's own waits for ever, this one polls under a
deadline; and it writes down what it sends, so that a process that takes over collects a result instead of asking again.
"""

import json
import random
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import httpx
from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status
from pydantic import ValidationError

from data.errors import TooBigError, UserError
from interventions.backends.ndif.client import (
    Client,
    LateError,
    PassingError,
    TooLongError,
    cleaned,
    detail,
    may_hold_results,
    shown,
)
from interventions.backends.ndif.result import SPARE_BYTES, UnfitError, decompressed, load_result, saved_names
from interventions.backends.tracing_lock import waiting

TRIES = 8  # of one step in a row, or of one job; their waits add up to a minute and a half
RETRY_WAIT, LONGEST_RETRY_WAIT = 1.0, 30.0  # seconds, doubled each time
FIRST_WAIT, LONGEST_WAIT = 0.05, 2.0  # seconds between polls
FORGOTTEN_SECONDS = 20.0  # a job that its server says nothing of for so long is lost
TOO_BIG = ("exceeded the execution timeout", "OutOfMemoryError", "out of memory")


class AbandonedError(Exception):
    """Nobody waits for this job any more."""


class Request(RemoteBackend):
    """nnsight backend for one trace.

    Args:
        model: The nnsight model, which names itself to the server.
        client: How to get there.
        label: For people.
        known: What a journal says of this job from an earlier process: `server`, `id`, `sent` (time), `again` (how
            often it was sent anew because it was overdue), `failed`.
        note: Called with such a dictionary whenever it changes.
        stop: Set when nobody waits for the job any more.
        most: Bytes that its result may take, unpacked, beside `SPARE_BYTES`.
    """

    def __init__(
        self,
        model: Any,
        client: Client,
        label: str,
        known: dict[str, Any] | None = None,
        note: Callable[[dict[str, Any]], None] = lambda _: None,
        stop: threading.Event | None = None,
        most: int = 0,
    ) -> None:
        """Prepare; nothing is sent before the trace ends."""
        super().__init__(model.to_model_key(), host=client.address, env=model._remoteable_get_env())
        self.label = label
        self._client, self._note, self._stop = client, note, stop or threading.Event()
        self._noted: dict[str, Any] = {"server": client.mark, "id": None, "sent": 0.0, "again": 0}
        if known and known.get("server") == client.mark and not known.get("failed"):
            self._noted |= known
        self._collecting = self._noted["id"] is not None
        self._forgotten = False
        self._most = most + SPARE_BYTES
        self._heard = time.time()
        self._words = "not heard of"
        self._deadline = time.monotonic() + client.timeout

    def __call__(self, tracer: Any = None) -> Any:
        """Run the trace there and put what it saved into the caller's frame.

        Raises:
            UserError: It failed for good, or the deadline passed; one line.
        """
        blob = self._serialize(tracer)
        with waiting():
            content = self._bring(blob)
        try:
            result = self.finalize(content)
            if result.keys() != (names := saved_names(tracer.node)):
                raise UnfitError(f"it should hold {', '.join(sorted(names))} alone")
        except UnfitError as error:
            self._note(self._noted | {"failed": True})
            raise UserError(
                f"the result of {self.label} is not used: {error}; does the server's version fit? see `status`"
            ) from None
        self._client.watch(self.label, Status.COMPLETED.value, self._words)
        self._push(result, tracer)
        return result

    def finalize(self, content: bytes) -> dict[str, Any]:
        """Read a result.

        Raises:
            UnfitError: It is none, or more than was asked for.
        """
        return load_result(decompressed(content, self._most) if self.compress else content, self._most)

    def _log(self, message: str) -> None:
        """Not onto stdout, as nnsight does in its debug mode: results stand there."""

    def _bring(self, blob: bytes) -> bytes:
        """Send, unless an earlier process did, and poll until the result is here."""
        failures = resent = 0
        wait = FIRST_WAIT
        while True:
            try:
                if self._noted["id"] is None:
                    self._send(blob)
                    wait = FIRST_WAIT
                content = self._poll()
            except LateError:
                raise self._given_up("") from None
            except TooLongError as error:
                self._note(self._noted | {"failed": True})
                raise UserError(
                    f"an answer of {shown(self._client.address)} about {self.label} is not used: {error}"
                ) from None
            except PassingError as error:
                failures, resent = (failures, resent + 1) if error.lost else (failures + 1, resent)
                self._try_again(error, resent if error.lost else failures)
                continue
            if content is not None:
                self._client.traffic.add(collected=int(self._collecting))
                return content
            failures = 0
            self._pause(wait)
            wait = min(wait * 1.4, LONGEST_WAIT)

    def _try_again(self, error: PassingError, tries: int) -> None:
        """Wait longer each time; what was lost is sent anew.

        Raises:
            UserError: These were the last tries, or the deadline passed.
        """
        if tries >= TRIES or self._left() <= 0:
            raise self._given_up(str(error))
        if error.lost:
            self._noted |= {"id": None}
            self._collecting = False
            self._client.traffic.add(retried=1)
        self._client.watch(self.label, "RETRY", str(error))
        self._pause(min(RETRY_WAIT * 2 ** (tries - 1), LONGEST_RETRY_WAIT) * random.uniform(0.7, 1.3), str(error))

    def _send(self, blob: bytes) -> None:
        """Journal the intent, send, journal the id."""
        if self._stop.is_set():
            raise AbandonedError
        self._noted |= {"sent": time.time()}
        self._note(dict(self._noted))
        told = json.loads(RequestModel(model_key=self.model_key, compress=self.compress, env=self.env).metadata())
        if self._client.sandbox:
            told["trusted"] = False
        answer = self._ask(
            "POST",
            "/request",
            data={"data": json.dumps(told)},
            files={"blob": ("request", blob, "application/octet-stream")},
            headers={
                "nnsight-version": version("nnsight"),
                "python-version": sys.version,
                "ndif-timestamp": repr(time.time()),
            },
        )
        response = self._parsed(answer)
        self._noted |= {"id": response.id}
        self._note(dict(self._noted))
        self._heard = time.time()
        self._client.traffic.add(jobs=1)
        self._tell(response)

    def _poll(self) -> bytes | None:
        """Ask once: the result, or None if there is none yet."""
        answer = self._ask("GET", f"/response/{self._noted['id']}")
        if answer.status_code == 404:
            self._unheard()
            return None
        self._heard = time.time()
        response = self._parsed(answer)
        self._tell(response)
        if response.status == Status.COMPLETED:
            return self._download(response.data)
        if response.status == Status.ERROR:
            raise self._failure(response.description)
        # Each time it is sent anew it gets twice as long: a slow queue is not fed the same job for ever.
        if self._collecting and time.time() - self._noted["sent"] > self._client.timeout * 2 ** self._noted["again"]:
            self._noted |= {"again": self._noted["again"] + 1}
            raise PassingError("it is older than its deadline: sent anew", lost=True)
        return None

    def _unheard(self) -> None:
        """The server knows no such job: it has not come to it yet, or has forgotten it."""
        if self._forgotten or time.time() - self._heard < FORGOTTEN_SECONDS:
            return
        try:
            self._ask("GET", "/connected")
        except PassingError as error:  # while its compute reconnects its queue stands still, but nothing is lost
            self._heard, self._words = time.time(), str(error)
            return
        self._forgotten = True
        raise PassingError("the server says nothing of it: sent anew", lost=True)

    def _failure(self, description: str) -> Exception:
        """What a job's ERROR means: one that may pass, or a UserError with the server's last line."""
        text = description.strip()
        traced = "Traceback" in text
        lines = [line for line in map(str.strip, text.splitlines()) if line] or ["no reason given"]
        last = cleaned(lines[-1] if traced else " ".join(lines))[:400]
        if self._collecting or ("try again" in text.lower() and not traced):  # what failed in an earlier run may do now
            return PassingError(last, lost=True)
        self._note(self._noted | {"failed": True})
        self._client.watch(self.label, Status.ERROR.value, last)
        if any(words in text for words in TOO_BIG):
            return TooBigError(
                f"{self.label} is too much for the server: {last}; use fewer --batch-tokens and another --run"
            )
        return UserError(f"the server refused {self.label}: {last}")

    def _ask(self, method: str, path: str, **content: Any) -> httpx.Response:
        """One exchange with the server; only a success or a 404 comes back."""
        answer = self._client.exchange(method, path, self._left(), **content)
        if answer.is_success or (answer.status_code == 404 and method == "GET"):
            return answer
        at, words = shown(self._client.address), detail(answer)
        if answer.status_code in (401, 403) or "key" in words.lower():
            raise UserError(f"the server at {at} does not take your key: {words}; check NDIF_API_KEY")
        if answer.status_code == 413:
            raise TooBigError(
                f"{self.label} is too much for the server at {at}: {words}; use fewer --batch-tokens and another --run"
            )
        raise UserError(f"the server at {at} refused {self.label}: {words} ({answer.status_code})")

    def _parsed(self, answer: httpx.Response) -> ResponseModel:
        try:
            return ResponseModel.model_validate_json(answer.content)
        except ValidationError:
            raise PassingError("what came back is no answer of an NDIF server") from None

    def _download(self, source: Any) -> bytes:
        """The result: in the answer itself, or behind an address."""
        if isinstance(source, (bytes, bytearray)):
            return bytes(source)
        if not source or not str(source).startswith(("http://", "https://")):
            raise UserError(f"{self.label} came back empty; does the server's version fit? see `status`")
        if not self._client.insecure and not may_hold_results(str(source), self._client.address):
            raise UserError(f"the result of {self.label} is said to be at {shown(cleaned(str(source)))[:200]}, which is "
                            "neither that server nor a store that NDIF names: not fetched; check --host, or pass --insecure where you trust it")  # fmt: skip
        answer = self._client.exchange("GET", str(source), self._left(), most=self._most)
        if answer.status_code in (403, 404, 410):
            raise PassingError("the server no longer holds the result: sent anew", lost=True)
        if not answer.is_success:
            raise PassingError(f"the result did not arrive ({answer.status_code})")
        return answer.content

    def _tell(self, response: ResponseModel) -> None:
        words = cleaned(response.description)[:160]
        if (words, response.status) != (self._words, self.status):
            self.status, self._words = response.status, words
            if response.status not in (Status.COMPLETED, Status.ERROR):
                self._client.watch(self.label, response.status.value, words)

    def _left(self) -> float:
        return self._deadline - time.monotonic()

    def _pause(self, seconds: float, reason: str = "") -> None:
        if self._stop.wait(max(0.0, min(seconds, self._left()))):
            raise AbandonedError
        if self._left() <= 0:
            raise self._given_up(reason)

    def _given_up(self, reason: str) -> UserError:
        at = shown(self._client.address)
        if self._left() > 0:
            return UserError(
                f"{self.label} failed {TRIES} times at {at} ({reason}); run the same command again to go on"
            )
        heard = f"last heard: {self.status.value}, {self._words}" if self.status else "it never answered"
        return UserError(
            f"{self.label} was not done at {at} within {self._client.timeout:g} s (--timeout; {reason or heard}); "
            "run the same command again to collect it, or see `status`"
        )
