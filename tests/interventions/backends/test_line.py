"""Exchanges with a server: they end in time, and the key goes to it alone."""

import json
import socket
import time

import pytest

from data.errors import UserError
from interventions.backends.ndif.client import Client, LateError, PassingError, address_of, is_loopback, shown
from interventions.backends.ndif.server import preflight
from tests.faults.ndif import standing_in
from tests.faults.sockets import raw_server, silent, trickle_body, trickle_head
from tests.ndif.client import CANARY, ask

pytestmark = pytest.mark.usefixtures("fast")


@pytest.mark.parametrize("answer", [silent, trickle_head, trickle_body])
def test_an_exchange_ends_in_time_whatever_the_server_does(answer):
    with raw_server(answer) as address:
        start = time.monotonic()
        with pytest.raises(LateError):
            Client(address, 1).exchange("GET", "/ping", 0.6)
        assert time.monotonic() - start < 10


def test_an_exchange_ends_in_time_though_the_name_is_never_found(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(30))
    start = time.monotonic()
    with pytest.raises(LateError):
        Client("http://nowhere.example", 1).exchange("GET", "/ping", 0.4)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("code", [429, 500, 502, 503])
def test_what_may_pass_is_told_from_what_does_not(code):
    with standing_in(pages={"/a": (code, {"detail": "later"}), "/b": (418, {"detail": "never"})}) as server:
        with pytest.raises(PassingError, match=f"{code}: later"):
            Client(server.address, 1).exchange("GET", "/a", 5)
        assert Client(server.address, 1).exchange("GET", "/b", 5).status_code == 418


def test_the_key_goes_to_the_server_and_to_nobody_else(tiny):
    with standing_in() as other, standing_in() as server:
        server.on_poll = lambda name, _: (
            200,
            {"id": name, "status": "COMPLETED", "data": f"{other.address}/result/{name}"},
        )
        ask(tiny, Client(server.address, 10))
        assert all(headers["ndif-api-key"] == CANARY for _, _, headers in server.asked)
        ((method, path, headers),) = other.asked
        assert (method, path) == ("GET", "/result/job0") and CANARY not in str(headers)


def test_a_key_is_never_shown(tiny, monkeypatch, tmp_path):
    notes = []
    quoting = {"detail": f"Invalid API key format: '{CANARY}'"}
    with standing_in(on_submit=lambda _: (400, quoting)) as server:
        with pytest.raises(UserError) as error:
            ask(tiny, Client(server.address.replace("//", f"//me:{CANARY}@"), 5), note=notes.append)
        assert "NDIF_API_KEY" in str(error.value)
        assert CANARY not in str(error.value) and CANARY not in json.dumps(notes)
        server.pages["/ping"] = (400, quoting)
        with pytest.raises(UserError) as error:
            preflight(server.address)
        assert CANARY not in str(error.value)
    for odd in (f"{CANARY}\nmore", f"{CANARY}é"):
        monkeypatch.setenv("NDIF_API_KEY", odd)
        with pytest.raises(UserError) as error:
            preflight("http://127.0.0.1:9")
        assert "canary" not in str(error.value)


def test_addresses():
    assert shown("http://me:secret@host:80/x?key=secret") == "http://host:80/x"
    assert shown("https://api.ndif.us") == "https://api.ndif.us"
    assert address_of("http://host:80/", insecure=True) == "http://host:80"
    for wrong in ("host:80", "ftp://host", "http://", "http://host:nan"):
        with pytest.raises(UserError, match="must start with http"):
            address_of(wrong)
    assert is_loopback("http://localhost:1") and is_loopback("http://127.0.0.2") and is_loopback("http://[::1]:9")
    assert (
        not is_loopback("https://api.ndif.us")
        and not is_loopback("http://127.0.0.1.evil.example")
        and not is_loopback("")
    )
