"""Who may ask: the request's host, origin and token, and how much it may send. Plain ASGI, before anything reads a body."""

import asyncio
import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass
from typing import Any

from serving.wire import RequestError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BYTES = 1 << 20  # of a request's body
BODY_SECONDS = 30.0  # that a body may take to arrive
SEND_SECONDS = 60.0  # that a client may take to accept what is there for it
LOOPBACK = ("localhost", "127.0.0.1", "::1")
OPEN = ("/", "/health")  # what needs no token: neither says anything of a run
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


@dataclass(frozen=True)
class Rules:
    """Who may ask.

    Attributes:
        token: What a request must bear; empty where the server is reached from this machine alone.
        hosts: Names that the server goes by beside those of the loopback.
        origins: Pages of other sites that may ask, as `scheme://host[:port]`.
        addresses: Whether any IP address may stand as the host, as where the server listens on several.
    """

    token: str = ""
    hosts: Collection[str] = ()
    origins: Collection[str] = ()
    addresses: bool = False


class Guard:
    """An application, and what keeps others out of it."""

    def __init__(self, app: Application, rules: Rules) -> None:
        """Around an application."""
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        origin = headers.get(b"origin")
        allowed = [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin")] if origin in self.rules.origins and origin else []  # fmt: skip

        async def answer(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *HEADERS, *allowed]}
            await asyncio.wait_for(send(message), SEND_SECONDS)

        try:
            self._check(scope, headers, origin)
            if allowed and scope["method"] == "OPTIONS":
                await _preflight(answer)
                return
            self._check_token(scope, headers)
            await self.app(scope, _limited(receive, headers), answer)
        except RequestError as error:
            await refuse(error, answer)

    def _check(self, scope: Scope, headers: dict[bytes, str], origin: str | None) -> None:
        """Host and origin: a page elsewhere may reach this address by a name of its own, and must not get an answer."""
        hosts = [value for name, value in scope["headers"] if name.lower() == b"host"]
        host = headers.get(b"host", "")
        if len(hosts) != 1 or not self._knows(host):
            raise RequestError("this server does not go by that name; see --allow-host", status=403, code="host")
        own = (f"http://{host}", f"https://{host}")
        if origin is not None and origin not in own and origin not in self.rules.origins:
            raise RequestError("pages of other sites may not ask; see --allow-origin", status=403, code="origin")
        if headers.get(b"sec-fetch-site") == "cross-site" and origin is None and scope["method"] != "GET":
            raise RequestError("pages of other sites may not ask; see --allow-origin", status=403, code="origin")

    def _knows(self, host: str) -> bool:
        name = host_name(host)
        if name in LOOPBACK or name in self.rules.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.rules.addresses  # no name leads to an address that is asked for as such

    def _check_token(self, scope: Scope, headers: dict[bytes, str]) -> None:
        if not self.rules.token or scope["path"] in OPEN:
            return
        given = headers.get(b"authorization", "").removeprefix("Bearer ").strip()
        if not hmac.compare_digest(given.encode(), self.rules.token.encode()):
            raise RequestError("this server needs its token: Authorization: Bearer …", status=401, code="invalid_api_key")  # fmt: skip


def host_name(host: str) -> str:
    """The name in a Host header, without its port and brackets, in lower case."""
    name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
    return name.strip("[]").lower().rstrip(".")


def _limited(receive: Receive, headers: dict[bytes, str]) -> Receive:
    """The same body, if it is neither too long nor too slow.

    Raises:
        RequestError: It says itself that it is too long.
    """
    told = headers.get(b"content-length", "0")
    if not told.isdecimal() or int(told) > MOST_BYTES:
        raise RequestError(f"a request's body may have {MOST_BYTES:,} bytes", status=413, code="too_large")
    seen, whole = 0, False
    end = asyncio.get_running_loop().time() + BODY_SECONDS

    async def limited() -> MutableMapping[str, Any]:
        nonlocal seen, whole
        if whole:
            return await receive()  # waits for the client to leave
        left = end - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(receive(), max(left, 0.001))
        except TimeoutError:
            raise RequestError("the request's body did not arrive in time", status=408, code="timeout") from None
        seen += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if seen > MOST_BYTES:
            raise RequestError(f"a request's body may have {MOST_BYTES:,} bytes", status=413, code="too_large")
        return message

    return limited


async def _preflight(send: Send) -> None:
    """What a browser asks before it lets a page of an allowed origin ask."""
    headers = [(b"access-control-allow-methods", b"GET, POST"), (b"access-control-allow-headers", b"authorization, content-type")]  # fmt: skip
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def refuse(error: RequestError, send: Send) -> None:
    """An error in OpenAI's shape."""
    headers = [(b"content-type", b"application/json")]
    headers += [(b"retry-after", b"1")] if error.status == 429 else []
    headers += [(b"connection", b"close")] if error.status in (408, 413) else []
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(error.body).encode()})
