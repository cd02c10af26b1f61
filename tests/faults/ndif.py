"""A server that speaks NDIF's protocol and does as it is told; it runs no model."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
import zstandard

LISTING = {
    "deployments": {
        "ModelActor:1": {"application_state": "RUNNING", "deployment_level": "HOT", "dtype": "bfloat16",
                         "repo_id": "meta-llama/Llama-3.1-70B", "n_params": 70_000_000_000,
                         "config": json.dumps({"model_type": "llama"})},
        "ModelActor:2": {"application_state": "DEPLOYING", "deployment_level": "HOT", "dtype": "bfloat16",
                         "repo_id": "meta-llama/Llama-3.1-8B-Instruct", "n_params": 8_000_000_000,
                         "config": json.dumps({"model_type": "llama"})},
        "ModelActor:3": {"application_state": "RUNNING", "deployment_level": "HOT", "dtype": "bfloat16",
                         "repo_id": "openai-community/gpt2", "n_params": 100_000_000,
                         "config": json.dumps({"model_type": "gpt2"})},
        "ModelActor:4": {"application_state": "RUNNING", "deployment_level": "HOT", "dtype": "bfloat16",
                         "repo_id": "meta-llama/Llama-3.3-70B-Instruct", "n_params": 70_000_000_000,
                         "config": json.dumps({"model_type": "llama"})},
        "ModelActor:5": {"application_state": "UNHEALTHY", "deployment_level": "HOT", "dtype": "bfloat16",
                         "repo_id": "meta-llama/Llama-3.3-70B-Instruct", "n_params": 70_000_000_000,
                         "config": json.dumps({"model_type": "llama"})},
        "meta-llama/Llama-3.2-1B": {"deployment_level": "COLD", "repo_id": "meta-llama/Llama-3.2-1B"},
    }
}  # fmt: skip
VERSIONS = {
    "python_version": "3.12.4 (main)",
    "packages": {"nnsight": "0.8.1", "torch": "2.1.0", "transformers": "5.23.0"},
}

Answer = tuple[int, Any]  # HTTP status and body: bytes as they are, anything else as JSON


def packed(**saved: Any) -> bytes:
    """What a server makes of saved values."""
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    return zstandard.ZstdCompressor().compress(buffer.getvalue())


@dataclass
class StandIn:
    """Programmable answers, and what was asked.

    Attributes:
        on_submit: Number of the submitted job -> answer; None takes the job.
        on_poll: Id, how often it was asked for before -> answer; None says that it is done.
        result: Id -> what the job saved.
        asked: Method, path and headers of every request.
    """

    on_submit: Callable[[int], Answer | None] = lambda _: None
    on_poll: Callable[[str, int], Answer | None] = lambda *_: None
    on_fetch: Callable[[str], Answer | None] = lambda _: None
    result: Callable[[str], bytes] = lambda _: packed(seen=torch.arange(3.0))
    pages: dict[str, Answer] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    polls: dict[str, int] = field(default_factory=dict)
    address: str = ""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._submitted = 0

    @property
    def submitted(self) -> int:
        """How many jobs were sent, refused ones included."""
        return self._submitted

    def answer(self, method: str, path: str) -> Answer:
        """What to say."""
        if path in self.pages:
            return self.pages[path]
        if path == "/request":
            with self._lock:
                number, self._submitted = self._submitted, self._submitted + 1
            return self.on_submit(number) or (
                200,
                {"id": f"job{number}", "status": "RECEIVED", "description": "got it"},
            )
        kind, _, name = path.removeprefix("/").partition("/")
        if kind == "response":
            with self._lock:
                before = self.polls[name] = self.polls.get(name, -1) + 1
            done = {"id": name, "status": "COMPLETED", "description": "done", "data": f"{self.address}/result/{name}"}
            return self.on_poll(name, before) or (200, done)
        if kind == "result":
            return self.on_fetch(name) or (200, self.result(name))
        return {"/ping": (200, "pong"), "/connected": (200, {"status": "connected"}), "/env": (200, VERSIONS),
                "/status": (200, LISTING), "/whoami": (200, {"email": None})}.get(path, (404, {"detail": "Not Found"}))  # fmt: skip


def says(status: str, words: str = "") -> Answer:
    """A job's status."""
    return 200, {"id": "x", "status": status, "description": words}


@contextmanager
def standing_in(**program: Any) -> Iterator[StandIn]:
    """A stand-in that listens on a free port."""
    server = StandIn(**program)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            server.asked.append((self.command, self.path, dict(self.headers)))
            code, body = server.answer(self.command, self.path)
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = _serve

        def log_message(self, format: str, *args: Any) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    server.address = f"http://127.0.0.1:{listener.server_address[1]}"
    threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True).start()  # how soon it ends
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
