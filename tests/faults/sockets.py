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


def trickling(opening):
    """Begins an answer and never ends it."""

    def trickle(connection):
        connection.recv(1 << 16)
        try:
            connection.sendall(opening)
            while True:
                connection.sendall(b"y")
                time.sleep(0.05)
        except OSError:
            pass

    return trickle


trickle_head = trickling(b"HTTP/1.1 200 OK\r\nX: ")
trickle_body = trickling(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")


def redirecting(connection):
    """Sends its visitors on."""
    connection.recv(1 << 16)
    connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: https://me:pw@else/x\r\nContent-Length: 0\r\n\r\n")
