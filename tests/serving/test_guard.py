"""Who may ask: names of the host, origins, the token, sizes."""

import asyncio
import json

import pytest

from serving.guard import MOST_BYTES, Guard, Rules

HERE = [(b"host", b"127.0.0.1:8080")]


async def inner(scope, receive, send):
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def ask(rules, headers=(), path="/v1/models", method="POST", bodies=(b"{}",)):
    """Status, headers and body of an answer."""
    left = [{"type": "http.request", "body": part, "more_body": at + 1 < len(bodies)} for at, part in enumerate(bodies)]
    told = []

    async def receive():
        return left.pop(0) if left else {"type": "http.disconnect"}

    async def send(message):
        told.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    asyncio.run(Guard(inner, rules)(scope, receive, send))
    return told[0]["status"], dict(told[0]["headers"]), told[-1]["body"]


@pytest.mark.parametrize("host", [b"127.0.0.1:8080", b"localhost", b"LOCALHOST:1", b"[::1]:8080", b"localhost.:80"])
def test_this_machine_is_answered_by_its_names(host):
    assert ask(Rules(), [(b"host", host)])[0] == 200


@pytest.mark.parametrize("host", [b"evil.example", b"127.0.0.1.evil.example", b"localhost.evil", b"", b"192.168.0.7", b"[fe80::1]", b"0.0.0.0"])  # fmt: skip
def test_a_name_that_leads_here_by_somebody_elses_word_is_not(host):
    status, _, body = ask(Rules(), [(b"host", host)])
    assert status == 403
    assert json.loads(body)["error"]["type"] == "permission_error"


def test_two_hosts_are_none():
    assert ask(Rules(), [(b"host", b"localhost"), (b"host", b"evil.example")])[0] == 403
    assert ask(Rules())[0] == 403


@pytest.mark.parametrize("origin", [b"http://evil.example", b"null", b"http://localhost:9", b"http://127.0.0.1"])
def test_a_page_of_another_origin_gets_nothing(origin):
    status, headers, _ = ask(Rules(), [*HERE, (b"origin", origin)])
    assert status == 403
    assert b"access-control-allow-origin" not in headers


def test_the_page_itself_and_allowed_origins_may_ask():
    assert ask(Rules(), [*HERE, (b"origin", b"http://127.0.0.1:8080")])[0] == 200
    rules = Rules(origins=["http://localhost:3000"])
    status, headers, _ = ask(rules, [*HERE, (b"origin", b"http://localhost:3000")])
    assert (status, headers[b"access-control-allow-origin"]) == (200, b"http://localhost:3000")
    assert ask(rules, [*HERE, (b"origin", b"http://localhost:3000")], method="OPTIONS")[0] == 204
    assert ask(rules, [*HERE, (b"origin", b"http://localhost:3001")])[0] == 403


@pytest.mark.parametrize("given", [(), [(b"authorization", b"Bearer wrong")], [(b"authorization", b"Bearer ")], [(b"authorization", "Bearer é".encode())]])  # fmt: skip
def test_a_token_is_required_where_there_is_one(given):
    rules = Rules(token="s3cret-s3cret-s3cret")
    status, _, body = ask(rules, [*HERE, *given])
    assert status == 401
    assert b"s3cret" not in body
    assert ask(rules, [*HERE, (b"authorization", b"Bearer s3cret-s3cret-s3cret")])[0] == 200
    assert ask(rules, HERE, path="/", method="GET")[0] == 200  # the page, which says nothing of the run


def test_a_body_that_is_too_long_is_refused_whatever_it_says_of_itself():
    assert ask(Rules(), [*HERE, (b"content-length", b"99999999999")])[0] == 413
    assert ask(Rules(), [*HERE, (b"content-length", b"x")])[0] == 413
    part = b"x" * (MOST_BYTES // 2 + 1)
    assert ask(Rules(), HERE, bodies=[part, part])[0] == 413
    assert ask(Rules(), HERE, bodies=[part])[2] == part


def test_every_answer_keeps_others_from_framing_and_sniffing_it():
    _, headers, _ = ask(Rules(), HERE)
    assert headers[b"x-frame-options"] == b"DENY"
    assert headers[b"x-content-type-options"] == b"nosniff"
