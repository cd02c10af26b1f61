"""What an NDIF server says of itself: is it there, which models are up, do its versions fit ours."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from data.errors import UserError
from interventions.backends.ndif.client import (
    Client,
    LateError,
    PassingError,
    TooLongError,
    api_key,
    cleaned,
    detail,
    shown,
)

PREFLIGHT_SECONDS = 5.0
STATUS_SECONDS = 20.0
CRITICAL = ("nnsight", "transformers", "torch")  # where these differ, traces break in ways that nobody understands
RUNNING = "RUNNING"
STATES = (RUNNING, "DEPLOYING", "NOT_STARTED", "UNHEALTHY")  # best first


@dataclass(frozen=True)
class Deployment:
    """A model on a server.

    Attributes:
        name: Hub id, or a folder of the server's machine.
        state: The server's word, one of `STATES`.
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


def preflight(address: str, seconds: float = PREFLIGHT_SECONDS) -> None:
    """Does an NDIF server answer there, with its compute behind it, and could it understand us?

    Raises:
        UserError: Nothing answers, something else does, its compute is not up, or versions that can't work together.
    """
    ping(address, seconds)
    get(address, "/connected", seconds)
    try:
        theirs = get(address, "/env", seconds).get("packages", {})
    except (UserError, AttributeError):
        return  # an own server may not tell; a job will say what is wrong
    mine, other = version("nnsight"), theirs.get("nnsight")
    if other and not _fits("nnsight", mine, other):
        raise UserError(
            f"nnsight is {mine} here and {other} at {shown(address)}: a client newer than its server is not understood; "
            f"pip install nnsight=={other}, or ask for an upgrade"
        )


def ping(address: str, seconds: float = PREFLIGHT_SECONDS) -> None:
    """Does an NDIF server answer there?

    Raises:
        UserError: Nothing does, or something else.
    """
    if get(address, "/ping", seconds) != "pong":
        raise UserError(_no_server(address))


def get(address: str, path: str, seconds: float) -> Any:
    """JSON of a GET, or one line that says why there is none.

    Raises:
        UserError: No answer within `seconds`, or one that is no success.
    """
    at = shown(address)
    try:
        answer = Client(address, seconds).exchange("GET", path, seconds)
    except LateError:
        raise UserError(
            f"{at} did not answer {path} within {seconds:g} s; it may be overloaded or frozen: try later, or another --host"
        ) from None
    except TooLongError as error:
        raise UserError(
            f"what {at} answers to {path} is not used: {error}; is it an NDIF server? check --host"
        ) from None
    except PassingError as error:
        code, _, words = str(error).partition(": ")
        if code == "503":
            raise UserError(
                f"the NDIF server at {at} is up, but its compute is not: {words.rstrip('.')}; try again later"
            ) from None
        if code.isdigit():
            raise UserError(f"the server at {at} fails ({code}: {words}); try again later, or another --host") from None
        raise UserError(f"no NDIF server answers at {at} ({error}); check --host, or run with --local") from None
    if answer.is_redirect:
        raise UserError(
            f"{at} sends its visitors on to {shown(cleaned(answer.headers.get('location', '?')))[:200]}; check --host"
        )
    if answer.is_error:
        raise UserError(
            f"{at} answered {path} with {answer.status_code} ({detail(answer)}); is it an NDIF server? check --host"
        )
    try:
        return answer.json()
    except (ValueError, RecursionError):
        raise UserError(_no_server(address)) from None


def _no_server(address: str) -> str:
    return f"{shown(address)} is a web server, but no NDIF server; check --host"


def deployments(address: str, seconds: float = STATUS_SECONDS) -> list[Deployment]:
    """The models on a server, one entry each whatever its replicas, running ones first.

    Raises:
        UserError: The server does not tell.
    """
    body = get(address, "/status", seconds)
    try:
        return listed(body["deployments"])
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        raise UserError(f"what {shown(address)} says of its models can't be read; is it an NDIF server?") from None


def listed(entries: dict[str, dict[str, Any]]) -> list[Deployment]:
    """The entries of an NDIF server's `/status`, one for each replica, as models; the best state of each counts."""
    found: dict[str, Deployment] = {}
    for name, entry in entries.items():
        config = entry.get("config") or {}
        one = Deployment(
            name=cleaned(entry.get("repo_id") or name)[:200],
            state=entry.get("application_state")
            or ("NOT_STARTED" if entry.get("deployment_level") == "COLD" else "UNHEALTHY"),
            level=entry.get("deployment_level") or "COLD",
            dtype=entry.get("dtype"),
            config=json.loads(config) if isinstance(config, str) else config,
            parameters=entry.get("n_params"),
        )
        held = found.get(one.name)
        if held is None or _rank(one) < _rank(held):
            found[one.name] = one
    return sorted(found.values(), key=lambda one: (_rank(one), one.name))


def _rank(one: Deployment) -> int:
    return STATES.index(one.state) if one.state in STATES else len(STATES)


def pick(models: Sequence[Deployment]) -> Deployment | None:
    """The Llama to use where none is named: among those that run, instruct before base, then the smallest."""
    llamas = [one for one in models if one.state == RUNNING and one.is_llama]
    return min(llamas, key=lambda one: (not one.is_instruct, one.size, one.name), default=None)


def pick_llama(address: str) -> Deployment:
    """What `pick` picks on a server.

    Raises:
        UserError: No Llama runs; it names what does.
    """
    models = deployments(address)
    llama = pick(models)
    if llama is None:
        others = ", ".join(one.name for one in models if one.state == RUNNING) or "nothing"
        raise UserError(
            f"no Llama runs at {shown(address)} (up: {others}); pass --model with a hub id to have one deployed"
        )
    return llama


def key_words(address: str, seconds: float = PREFLIGHT_SECONDS) -> str:
    """What a server makes of the user's key: `none`, `trusted`, `ordinary` (its code runs in a sandbox), `not known there`."""
    if not api_key():
        return "none"
    try:
        told = get(address, "/whoami", seconds)
        if "trusted" in (told.get("tags") or []):
            return "trusted"
        return (
            "ordinary: its code runs in a sandbox, where lowrank can't" if told.get("email") else "set, not known there"
        )
    except (UserError, AttributeError):
        return "set"


def version_table(address: str, seconds: float = STATUS_SECONDS) -> list[dict[str, Any]]:
    """Python's and the critical packages' versions, here and there: `package`, `here`, `there`, `fits`.

    Raises:
        UserError: The server does not tell.
    """
    import platform

    theirs = get(address, "/env", seconds)
    try:
        packages, python = dict(theirs["packages"]), str(theirs["python_version"]).split()[0]
    except (KeyError, TypeError, ValueError, IndexError):
        raise UserError(f"what {shown(address)} says of its versions can't be read; is it an NDIF server?") from None
    pairs = [("python", platform.python_version(), python)]
    for package in CRITICAL:
        try:
            mine = version(package)
        except PackageNotFoundError:
            mine = "none"
        pairs.append((package, mine, str(packages.get(package, "?"))))
    return [
        {"package": name, "here": here, "there": there, "fits": _fits(name, here, there)} for name, here, there in pairs
    ]


def _fits(name: str, here: str, there: str) -> bool:
    """Whether both can work together: traces travel as source, so Python's minor version is free."""
    if name == "nnsight":
        return _numbers(there)[:2] >= _numbers(here)[:2]
    depth = 1 if name == "python" else 2
    return _numbers(here)[:depth] == _numbers(there)[:depth]


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split("+")[0].split(".") if part.isdigit()]
