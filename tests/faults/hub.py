"""A stand-in for the hub on a loopback port: serves a folder of data sets over the hub's own HTTP interface."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote


@contextmanager
def serve(root: Path, refused: dict[str, tuple[int, str]]) -> Iterator[tuple[str, list[str]]]:
    """Serve `root`/OWNER/NAME at every revision; `refused` maps an id to a status and the hub's error code.

    Yields the endpoint and the list of paths asked for, which grows.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format, *args):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            words = unquote(self.path.partition("?")[0]).strip("/").split("/")
            asked.append("/".join(words))
            words = words[1:] if words[0] == "api" else words
            hub = "/".join(words[1:3])
            if hub in refused:
                self.answer(refused[hub][0], b"{}", X_Error_Code=refused[hub][1])
            elif words[0] != "datasets" or not (root / hub).is_dir():
                self.answer(404, b"{}", X_Error_Code="RepoNotFound")
            elif words[3] == "resolve":
                self.file(root / hub / "/".join(words[5:]), words[4])
            else:
                self.listing(root / hub, words[3], words[4])

        def file(self, path: Path, revision: str):
            if not path.is_file():
                return self.answer(404, b"{}", X_Error_Code="EntryNotFound", X_Repo_Commit=revision)
            body = path.read_bytes()
            return self.answer(200, body, X_Repo_Commit=revision, ETag=f'"{hashlib.sha1(body).hexdigest()}"')

        def listing(self, folder: Path, kind: str, revision: str):
            files = [path for path in folder.rglob("*") if path.is_file()]
            names = [str(path.relative_to(folder)) for path in files]
            if kind == "revision":
                answer: object = {"id": folder.name, "sha": revision, "siblings": [{"rfilename": n} for n in names]}
            else:
                answer = [
                    {"type": "file", "path": name, "size": path.stat().st_size, "oid": "0" * 40}
                    for name, path in zip(names, files, strict=True)
                ]
            self.answer(200, json.dumps(answer).encode(), Content_Type="application/json")

        def answer(self, status: int, body: bytes, **headers: str):
            self.send_response(status)
            for name, value in {**headers, "Content_Length": str(len(body))}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # how soon it ends
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
