"""uvicorn with this tool's manners: it says when it listens, and ends cleanly on Ctrl-C and SIGTERM."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from data.errors import UserError
from serving.guard import Guard

GRACE = 5  # seconds for answers under way once the server is to end
CONNECTIONS = 512


class _Server(uvicorn.Server):
    """uvicorn's, which would end the process by the signal again."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


def run_server(app: Guard, address: str, port: int, ready: Callable[[int], None]) -> int:
    """Serve until a signal comes; gives how many requests were answered.

    Args:
        app: What to serve.
        address: Where to listen.
        port: 0 takes any that is free.
        ready: Called with the port once it listens.

    Raises:
        UserError: The address or port can't be had.
    """
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    listening = _socket(address, port)
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=GRACE, limit_concurrency=CONNECTIONS,
                            timeout_keep_alive=30, h11_max_incomplete_event_size=64 << 10, server_header=False, ws="none")  # fmt: skip
    server = _Server(config)

    async def served() -> None:
        ready(listening.getsockname()[1])
        await server.serve(sockets=[listening])

    asyncio.run(served())
    return server.server_state.total_requests


def _socket(address: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        made.listen(128)
    except OSError as error:
        raise UserError(f"can't listen on {address} port {port} ({error.strerror or error}): pass another --port or --listen") from None  # fmt: skip
    return made
