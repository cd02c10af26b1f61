"""The line to a server: its address, the user's key, and exchanges that end in time whatever is at the other end."""

import hashlib
import ipaddress
import os
import queue
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from data.errors import UserError

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

CONNECT_SECONDS = 10.0
QUIET_SECONDS = 30.0  # between two bytes of an answer
CHUNK = 1 << 18
ANSWER_BYTES = 16 << 20  # of what is no result
BUCKET = "ndif-results"  # what NDIF's own code calls it, on Amazon's S3 unless its settings say otherwise
AMAZON = re.compile(rf"({BUCKET}\.)?s3([.-][a-z0-9-]+)?\.amazonaws\.com")
PASSING_CODES = (408, 425, 429)  # of HTTP, beside all from 500 on: the same request may do later


class PassingError(Exception):
    """Something that may be over in a moment; `lost` if what was asked for is gone and must be asked for again."""

    def __init__(self, reason: str, *, lost: bool = False) -> None:
        """Say what happened, without the user's key."""
        super().__init__(cleaned(reason)[:300])
        self.lost = lost


class LateError(Exception):
    """The time for an exchange is over."""


class TooLongError(Exception):
    """An answer that is longer than what was asked for can be, or of a form that hides its length."""


@dataclass
class Traffic:
    """What went over a line.

    Attributes:
        jobs: Jobs sent, those sent again included.
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
    _noted: dict[str, int] = field(default_factory=dict, repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def add(self, **counts: int) -> None:
        """Count; from any thread."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    def counts(self) -> dict[str, int]:
        """Every count, by name."""
        with self._lock:
            return {name: getattr(self, name) for name in ("jobs", "collected", "retried", "sent", "received")}

    def since_noted(self) -> dict[str, int]:
        """Every count since this was last asked."""
        before, self._noted = self._noted, self.counts()
        return {name: number - before.get(name, 0) for name, number in self._noted.items()}


@dataclass(frozen=True, eq=False)
class Client:
    """How jobs reach a server.

    Attributes:
        address: The server's.
        timeout: Seconds that a job may take, all its tries included.
        watch: Told of each change: job, state, the server's words.
        traffic: Counted here.
        sandbox: Whether the server is asked to run jobs as those of an ordinary key, whatever the key.
        insecure: Whether results may come from stores that NDIF does not name.
    """

    address: str
    timeout: float
    watch: Callable[[str, str, str], None] = lambda *_: None
    traffic: Traffic = field(default_factory=Traffic)
    sandbox: bool = False
    insecure: bool = False
    _clients: dict[bool, Any] = field(default_factory=dict, repr=False)

    @property
    def mark(self) -> str:
        """Tells servers apart in a journal; made of the address without what may be a key."""
        return hashlib.sha256(shown(self.address).encode()).hexdigest()[:12]

    def exchange(
        self, method: str, url: str, seconds: float, most: int = ANSWER_BYTES, **content: Any
    ) -> "httpx.Response":
        """One request and its whole answer, within `seconds`; a path goes to the server, with the user's key.

        Raises:
            LateError: There was no whole answer in time.
            TooLongError: It is longer than `most` bytes, or packed although that was not asked for.
            PassingError: None that can be used, but the next try may bring one.
        """
        import httpx

        if seconds <= 0:
            raise LateError
        ours = url.startswith("/")
        deadline = time.monotonic() + seconds
        limits = httpx.Timeout(min(QUIET_SECONDS, seconds), connect=min(CONNECT_SECONDS, seconds))

        def call() -> httpx.Response:
            client = self._client(ours)
            request = client.build_request(method, f"{self.address}{url}" if ours else url, timeout=limits, **content)
            answer = client.send(request, stream=True)
            try:
                parts, length = [], 0
                if answer.headers.get("content-encoding", "identity") != "identity":
                    raise TooLongError("it is packed, which was not asked for")
                for chunk in answer.iter_raw(CHUNK):
                    parts.append(chunk)
                    length += len(chunk)
                    if length > most:
                        raise TooLongError(f"it is longer than the {most >> 20} MB that it may be")
                    if time.monotonic() > deadline:
                        raise LateError
            finally:
                answer.close()
            body = b"".join(parts)
            self.traffic.add(sent=int(request.headers.get("Content-Length", 0)), received=len(body))
            headers = {name: answer.headers[name] for name in ("content-type", "location") if name in answer.headers}
            return httpx.Response(answer.status_code, headers=headers, content=body, request=request)

        try:
            answer = within(seconds, call)
        except httpx.TimeoutException:
            if time.monotonic() >= deadline:
                raise LateError from None
            raise PassingError(f"no answer within {limits.read:.0f} s") from None
        except (httpx.HTTPError, OSError) as error:
            raise PassingError(failure_words(error)) from None
        if answer.status_code >= 500 or answer.status_code in PASSING_CODES:
            raise PassingError(f"{answer.status_code}: {detail(answer)}")
        return answer

    def _client(self, ours: bool) -> "httpx.Client":
        """One client for the server, which gets the key, and one for wherever it keeps results, which must not."""
        import httpx

        if ours not in self._clients:
            plain = {"Accept-Encoding": "identity"}
            self._clients[ours] = httpx.Client(headers=plain | (key_header() if ours else {}))
        return self._clients[ours]


def within(seconds: float, work: Callable[[], T]) -> T:
    """Do `work` in a thread of its own, and wait for it no longer than `seconds`.

    Timeouts of sockets are no bound: looking up a name has none, and a byte now and then starts them anew.

    Raises:
        LateError: It took longer. The thread is left alone; it does not keep the process.
    """
    box: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            box.put((work(), None))
        except BaseException as error:
            box.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = box.get(timeout=max(seconds, 0))
    except queue.Empty:
        raise LateError from None
    if error is not None:
        raise error
    return value  # type: ignore[return-value]  # no error: the work's own value


def address_of(host: str | None, *, insecure: bool = False, option: str = "--host") -> str:
    """The server's address: given with an option, else `NDIF_HOST`, else nnsight's configuration.

    Raises:
        UserError: It is no http address; or, unless `insecure`, a key would go over the network as plain text.
    """
    if not host and not os.environ.get("NDIF_HOST"):
        from nnsight.schema.config import CONFIG

        host = CONFIG.API.HOST
    address = (host or os.environ["NDIF_HOST"]).strip().rstrip("/")
    parts = None
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if parts is None or not good:
        raise UserError(
            f"{option} {shown(address)!r} must start with http:// or https://, such as http://127.0.0.1:8001"
        )
    if parts.scheme == "http" and not is_loopback(address) and api_key() and not insecure:
        raise UserError(f"{option} {shown(address)} would get your key as plain text that anybody on the way can read; "
                        "use https://, or --insecure where you trust the way")  # fmt: skip
    return address


def shown(address: str) -> str:
    """An address without user name, password and query, which may hold a key."""
    head, _, tail = address.rpartition("@")
    scheme = head.partition("://")[0] + "://" if "://" in head else ""
    return (scheme + tail if head else address).partition("?")[0]


def is_loopback(address: str) -> bool:
    """Whether a server's address is this machine."""
    name = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def may_hold_results(url: str, address: str) -> bool:
    """Whether an address that a server names may be asked for a result.

    The server's own host, one of ndif.us, or the bucket on S3 that NDIF's code names: whoever can name another bucket, or
    any host, could have this machine ask there.
    """
    try:
        there, own = urlsplit(url), urlsplit(address)
        name = (there.hostname or "").rstrip(".")
    except ValueError:
        return False
    if name == own.hostname:
        return True
    amazon = AMAZON.fullmatch(name)
    bucket = bool(amazon and (amazon[1] or there.path.startswith(f"/{BUCKET}/")))
    return there.scheme == "https" and (bucket or name.endswith(".ndif.us"))


def api_key() -> str:
    """The user's key, from `NDIF_API_KEY` or nnsight's configuration; empty without one.

    Raises:
        UserError: It holds what no header can; it is not shown.
    """
    from nnsight.schema.config import CONFIG

    key = (os.environ.get("NDIF_API_KEY") or CONFIG.API.APIKEY or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError("the NDIF key (NDIF_API_KEY, or nnsight's configuration) holds odd characters; copy it anew")
    return key


def key_header() -> dict[str, str]:
    """The header that carries the key."""
    return {"ndif-api-key": api_key()} if api_key() else {}


def cleaned(text: str) -> str:
    """Text in one line, without what steers a terminal, and without the key: servers and libraries quote what they don't like."""
    text = "".join(letter if letter.isprintable() else "?" for letter in " ".join(str(text).split()))
    key = api_key()
    return text.replace(key, "(your key)") if key else text


def failure_words(error: Exception) -> str:
    """What a failed connection means, in few words."""
    text = str(error)
    if "Name or service" in text or "resolution" in text or "nodename" in text:
        return "no such host"
    if "refused" in text:
        return "nothing listens there"
    return cleaned(f"{type(error).__name__}: {text}" if text else type(error).__name__)[:200]


def detail(answer: "httpx.Response") -> str:
    """The server's own words for an error, in one line."""
    try:
        body = answer.json()
        text = body.get("detail", body) if isinstance(body, dict) else body
    except (ValueError, RecursionError):
        text = answer.reason_phrase
    return cleaned(str(text))[:300] or str(answer.status_code)
