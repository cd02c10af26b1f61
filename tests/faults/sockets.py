"""Servers of a few lines that keep to no protocol."""

import socket
import threading
import time
from contextlib import contextmanager


@contextmanager
def raw_server(answer):
    """A socket on which `answer(connection)` says anything it likes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


def silent(connection):
    """Hears, and says nothing."""
    connection.recv(1 << 16)
    time.sleep(30)


def trickle_head(connection):
    """Begins an answer's head and never ends it."""
    connection.recv(1 << 16)
    try:
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            connection.sendall(b"y")
            time.sleep(0.05)
    except OSError:
        pass


def trickle_body(connection):
    """Begins an answer's body and never ends it."""
    connection.recv(1 << 16)
    try:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            connection.sendall(b"y")
            time.sleep(0.05)
    except OSError:
        pass


def redirecting(connection):
    """Sends its visitors on."""
    connection.recv(1 << 16)
    connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: https://me:pw@else/x\r\nContent-Length: 0\r\n\r\n")
