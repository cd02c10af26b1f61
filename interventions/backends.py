"""Where a trace runs: in this process, shipped and rebuilt in-process, or on an NDIF server."""

import os
from urllib.parse import urlparse

from data.errors import UserError

PREFLIGHT_SECONDS = 5.0


def resolve(where: str, host: str | None) -> bool | str:
    """What nnsight's `remote=` is given: False, "local" (simulated), or the server's address.

    Raises:
        UserError: The server's address is no address, or nothing answers there.
    """
    if where == "local":
        return False
    if where == "simulate":
        return "local"
    from nnsight.schema.config import CONFIG

    CONFIG.APP.REMOTE_LOGGING = False  # its spinner would stand in the way of our own progress
    address = (host or os.environ.get("NDIF_HOST") or CONFIG.API.HOST).rstrip("/")
    if urlparse(address).scheme not in ("http", "https"):
        raise UserError(f"--host {address!r} must start with http:// or https://")
    _preflight(address)
    return address


def is_loopback(address: str) -> bool:
    """Whether a server's address is this machine."""
    name = urlparse(address).hostname or ""
    return name in ("localhost", "::1") or name.startswith("127.")


def _preflight(address: str) -> None:
    import httpx

    try:
        answer = httpx.get(f"{address}/ping", timeout=PREFLIGHT_SECONDS)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise UserError(
            f"no NDIF server answers at {address} ({type(error).__name__}); check --host, or run with --local"
        ) from None
