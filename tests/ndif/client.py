"""Ways to an NDIF server: the command line in a process of its own, and the doors that an open model takes."""

import sys

from interventions.backends.backend import Backend, open_backend
from tests import ROOT
from tests.ndif.server import Server

SECONDS = 300  # for what should end well, on a machine that does other things too


def command(*words: object, host: str) -> list[str]:
    """The command line that runs on the server at `host`."""
    return [sys.executable, str(ROOT / "cli.py"), "--remote", "--host", host, *map(str, words)]


def doors(server: Server) -> dict[str, str | Backend]:
    """What `remote` may be to give the same as here: the server, and its simulation in this process."""
    return {"remote": open_backend("remote", server.url, timeout=SECONDS), "simulate": "local"}
