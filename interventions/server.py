"""What an NDIF server says of itself: is it there, which models are up, do its versions fit ours."""

import json
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import urlparse

from data.errors import UserError

PREFLIGHT_SECONDS = 5.0
STATUS_SECONDS = 20.0
CRITICAL = ("nnsight", "transformers", "torch")  # where these differ, traces break in ways that nobody understands
RUNNING = "RUNNING"


@dataclass(frozen=True)
class Deployment:
    """A model on a server.

    Attributes:
        name: Hub id, or a folder of the server's machine.
        state: The server's word: `RUNNING`, `DEPLOYING`, `NOT_STARTED`, `UNHEALTHY`.
        level: `HOT` (on a device), `WARM` (in memory), `COLD` (on disk).
        dtype: Type of the weights there, or None.
        config: The model's configuration.
        parameters: How many it has, or None.
    """

    name: str
    state: str
    level: str
    dtype: str | None
    config: dict[str, Any]
    parameters: int | None

    @property
    def is_llama(self) -> bool:
        """Whether it is a Llama."""
        return self.config.get("model_type") == "llama"

    @property
    def is_instruct(self) -> bool:
        """Whether its name says that it was tuned to follow instructions."""
        name = self.name.lower()
        return any(word in name for word in ("instruct", "chat", "-it", "sft", "zephyr", "tulu"))

    @property
    def size(self) -> int:
        """Parameters, else what the configuration suggests: layers × width²."""
        text = self.config.get("text_config") or self.config
        return self.parameters or 12 * int(text.get("num_hidden_layers") or 0) * int(text.get("hidden_size") or 0) ** 2


def address_of(host: str | None) -> str:
    """The server's address: given, else `NDIF_HOST`, else nnsight's configuration.

    Raises:
        UserError: It is no http address.
    """
    if not host and not os.environ.get("NDIF_HOST"):
        from nnsight.schema.config import CONFIG

        host = CONFIG.API.HOST
    address = (host or os.environ["NDIF_HOST"]).rstrip("/")
    if urlparse(address).scheme not in ("http", "https") or not urlparse(address).hostname:
        raise UserError(f"--host {shown(address)!r} must start with http:// or https://, such as http://127.0.0.1:8001")
    return address


def shown(address: str) -> str:
    """An address without user name, password and query, which may hold a key."""
    head, _, tail = address.rpartition("@")
    scheme = head.partition("://")[0] + "://" if "://" in head else ""
    return (scheme + tail if head else address).partition("?")[0]


def is_loopback(address: str) -> bool:
    """Whether a server's address is this machine."""
    name = urlparse(address).hostname or ""
    return name in ("localhost", "::1") or name.startswith("127.")


def api_key() -> str:
    """The user's key, from `NDIF_API_KEY` or nnsight's configuration; empty without one."""
    from nnsight.schema.config import CONFIG

    return os.environ.get("NDIF_API_KEY") or CONFIG.API.APIKEY or ""


def preflight(address: str, seconds: float = PREFLIGHT_SECONDS) -> None:
    """Does an NDIF server answer there, with its compute behind it, and could it understand us?

    Raises:
        UserError: Nothing answers, something else does, its compute is not up, or versions that can't work together.
    """
    ping = get(address, "/ping", seconds)
    if ping != "pong":
        raise UserError(f"{shown(address)} is a web server, but no NDIF server; check --host")
    get(address, "/connected", seconds)
    try:
        theirs = get(address, "/env", seconds).get("packages", {})
    except (UserError, AttributeError):
        return  # an own server may not tell; a job will say what is wrong
    mine, other = version("nnsight"), theirs.get("nnsight")
    if other and _numbers(other)[:2] < _numbers(mine)[:2]:
        raise UserError(
            f"nnsight is {mine} here and {other} at {shown(address)}: a client newer than its server is not understood; "
            f"pip install nnsight=={other}, or ask for an upgrade"
        )


def get(address: str, path: str, seconds: float) -> Any:
    """JSON of a GET, or one line that says why there is none.

    Raises:
        UserError: No answer within `seconds`, or one that is no success.
    """
    import httpx

    headers = {"ndif-api-key": api_key()} if api_key() else None
    try:
        answer = httpx.get(f"{address}{path}", timeout=seconds, headers=headers)
    except httpx.TimeoutException:
        raise UserError(
            f"{shown(address)} accepts connections but did not answer {path} within {seconds:g} s; "
            "it may be overloaded or frozen: try later, or another --host"
        ) from None
    except httpx.ConnectError as error:
        what = (
            "no such host" if "Name or service" in str(error) or "resolution" in str(error) else "nothing listens there"
        )
        raise UserError(
            f"no NDIF server answers at {shown(address)} ({what}); check --host, or run with --local"
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise UserError(
            f"no NDIF server answers at {shown(address)} ({type(error).__name__}); check --host, or run with --local"
        ) from None
    if answer.status_code == 503:
        raise UserError(
            f"the NDIF server at {shown(address)} is up, but its compute is not: {detail(answer)}; try again later"
        )
    if answer.is_error:
        raise UserError(
            f"{shown(address)} answered {path} with {answer.status_code} ({detail(answer)}); is it an NDIF server? check --host"
        )
    try:
        return answer.json()
    except ValueError:
        raise UserError(f"{shown(address)} is a web server, but no NDIF server; check --host") from None


def detail(answer: Any) -> str:
    """The server's own words for an error, in one line."""
    try:
        body = answer.json()
        text = body.get("detail", body) if isinstance(body, dict) else body
    except ValueError:
        text = answer.reason_phrase
    text = " ".join(str(text).split())[:300] or str(answer.status_code)
    return text.replace(api_key(), "(your key)") if api_key() else text  # servers quote a key that they don't like


def deployments(address: str, seconds: float = STATUS_SECONDS) -> list[Deployment]:
    """The models on a server, one entry each whatever its replicas, running ones first.

    Raises:
        UserError: The server does not tell.
    """
    found: dict[str, Deployment] = {}
    body = get(address, "/status", seconds)
    for name, entry in (body.get("deployments") or {}).items():
        config = entry.get("config") or {}
        if isinstance(config, str):
            config = json.loads(config)
        one = Deployment(
            name=entry.get("repo_id") or name,
            state=entry.get("application_state") or "UNHEALTHY",
            level=entry.get("deployment_level") or "COLD",
            dtype=entry.get("dtype"),
            config=config,
            parameters=entry.get("n_params"),
        )
        held = found.get(one.name)
        if held is None or (held.state != RUNNING and one.state == RUNNING):
            found[one.name] = one
    return sorted(found.values(), key=lambda one: (one.state != RUNNING, one.name))


def pick_llama(address: str) -> Deployment:
    """The first running Llama: instruct before base, then smallest.

    Raises:
        UserError: None runs; it names what does.
    """
    up = [one for one in deployments(address) if one.state == RUNNING]
    llamas = sorted((one for one in up if one.is_llama), key=lambda one: (not one.is_instruct, one.size, one.name))
    if not llamas:
        others = ", ".join(one.name for one in up) or "nothing"
        raise UserError(
            f"no Llama runs at {shown(address)} (up: {others}); pass --model with a hub id to have it deployed"
        )
    return llamas[0]


def version_table(address: str, seconds: float = STATUS_SECONDS) -> list[dict[str, Any]]:
    """Python's and the critical packages' versions, here and there: `package`, `here`, `there`, `fits`."""
    import platform

    theirs = get(address, "/env", seconds)
    pairs = [("python", platform.python_version(), str(theirs.get("python_version", "?")).split()[0])]
    for package in CRITICAL:
        try:
            mine = version(package)
        except PackageNotFoundError:
            mine = "none"
        pairs.append((package, mine, str(theirs.get("packages", {}).get(package, "?"))))
    return [
        {"package": name, "here": here, "there": there, "fits": _fits(name, here, there)} for name, here, there in pairs
    ]


def _fits(name: str, here: str, there: str) -> bool:
    if name == "nnsight":
        return _numbers(there)[:2] >= _numbers(here)[:2]
    return _numbers(here)[:2] == _numbers(there)[:2]


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split("+")[0].split(".") if part.isdigit()]
