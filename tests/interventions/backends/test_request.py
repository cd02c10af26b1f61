"""Jobs, the line and the backend against a stand-in that speaks the protocol: what is sent, tried again, given up, shown."""

import json
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import nnsight
import pytest
import torch
from nnsight.modeling.huggingface import _ID_CACHE

from data.errors import UserError
from data.store.journal import Journal
from data.store.progress import Watch
from interventions.backends.backend import Backend, open_backend
from interventions.backends.ndif import request as jobs
from interventions.backends.ndif.client import Client, LateError, PassingError, address_of, is_loopback, shown
from interventions.backends.ndif.request import Request, TooBigError
from interventions.backends.ndif.server import deployments, listed, pick, pick_llama, preflight
from interventions.backends.pool import ranges
from tests.faults.ndif import LISTING, packed, says, standing_in

CANARY = "0f5c1d3e-canary-4b7a-9e21-d15ea5ed0000"


@pytest.fixture(autouse=True)
def fast(monkeypatch, tiny_folder):
    monkeypatch.setitem(_ID_CACHE, str(tiny_folder), str(tiny_folder))
    monkeypatch.setattr(jobs, "RETRY_WAIT", 0.01)
    monkeypatch.setattr(jobs, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("NDIF_API_KEY", CANARY)


def ask(model, line, known=None, note=lambda _: None):
    """One trace as a job; what it saved."""
    network, block = model.nnsight, model.layers[0]
    with (
        torch.no_grad(),
        network.trace(
            {"input_ids": torch.ones(1, 2, dtype=torch.long)}, backend=Request(network, line, "it", known, note)
        ) as tracer,
    ):
        seen = nnsight.save(block.output.sum())
        tracer.stop()
    return seen


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
    connection.recv(1 << 16)
    time.sleep(30)


def trickle_head(connection):
    connection.recv(1 << 16)
    try:
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            connection.sendall(b"y")
            time.sleep(0.05)
    except OSError:
        pass


def trickle_body(connection):
    connection.recv(1 << 16)
    try:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            connection.sendall(b"y")
            time.sleep(0.05)
    except OSError:
        pass


# The line.


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


# One job.


def test_a_job_is_journalled_before_it_is_sent_and_its_id_at_once_after(tiny):
    notes = []
    with standing_in(on_submit=lambda _: notes.append("sent")) as server:
        assert ask(tiny, Client(server.address, 10), note=lambda noted: notes.append(dict(noted))).tolist() == [0, 1, 2]
    intent, sent, known = notes
    assert sent == "sent" and intent["id"] is None and intent["sent"] == pytest.approx(time.time(), abs=5)
    assert known == {**intent, "id": "job0"}


def test_a_job_of_an_earlier_process_is_collected_not_sent(tiny):
    with standing_in() as server:
        line = Client(server.address, 10)
        known = {"server": line.mark, "id": "early", "sent": time.time(), "again": 0}
        assert ask(tiny, line, known).tolist() == [0, 1, 2]
        assert server.submitted == 0 and line.traffic.counts()["collected"] == 1


@pytest.mark.parametrize("known", [{"failed": True}, {"server": "another"}, {"id": None}])
def test_what_failed_or_went_elsewhere_or_has_no_id_is_sent_anew(tiny, known):
    with standing_in() as server:
        line = Client(server.address, 10)
        ask(tiny, line, {"server": line.mark, "id": "early", "sent": time.time(), "again": 0} | known)
        assert server.submitted == 1 and "early" not in server.polls


def test_a_job_the_server_has_forgotten_is_sent_again_once(tiny, monkeypatch):
    monkeypatch.setattr(jobs, "FORGOTTEN_SECONDS", 0.2)
    with standing_in(on_poll=lambda name, _: (404, {}) if name == "early" else None) as server:
        line, notes = Client(server.address, 10), []
        known = {"server": line.mark, "id": "early", "sent": time.time(), "again": 0}
        assert ask(tiny, line, known, notes.append).tolist() == [0, 1, 2]
        assert server.submitted == 1 and notes[-1]["id"] == "job0"
    with standing_in(on_poll=lambda *_: (404, {})) as server:
        with pytest.raises(UserError, match=r"not done at .* within 5 s"):
            ask(tiny, Client(server.address, 5))
        assert server.submitted == 2


def test_a_job_whose_server_reconnects_is_not_forgotten(tiny, monkeypatch):
    monkeypatch.setattr(jobs, "FORGOTTEN_SECONDS", 0.1)
    busy = {"/connected": (503, {"detail": "compute backend is reconnecting"})}
    with standing_in(on_poll=lambda _, n: (404, {}) if n < 12 else None, pages=busy) as server:
        ask(tiny, Client(server.address, 20))
        assert server.submitted == 1


def test_an_overdue_job_is_sent_again_and_then_given_twice_the_time(tiny):
    with standing_in(
        on_poll=lambda name, n: says("QUEUED", "position 9") if name == "early" or n < 2 else None
    ) as server:
        line, notes = Client(server.address, 10), []
        known = {"server": line.mark, "id": "early", "sent": time.time() - 11, "again": 0}
        ask(tiny, line, known, notes.append)
        assert server.submitted == 1 and notes[-1]["again"] == 1
    with standing_in(on_poll=lambda _, n: says("QUEUED", "position 9") if n < 4 else None) as server:
        line = Client(server.address, 10)
        ask(tiny, line, {"server": line.mark, "id": "early", "sent": time.time() - 11, "again": 1})
        assert server.submitted == 0


def test_a_job_that_failed_in_an_earlier_run_is_sent_anew_at_once(tiny):
    with standing_in(
        on_poll=lambda name, _: says("ERROR", "Traceback\nValueError: old") if name == "early" else None
    ) as server:
        line = Client(server.address, 10)
        ask(tiny, line, {"server": line.mark, "id": "early", "sent": time.time(), "again": 0})
        assert server.submitted == 1


def test_an_expired_result_is_computed_again(tiny):
    with standing_in(
        on_fetch=lambda name: (403, b"<Error>Request has expired</Error>") if name == "job0" else None
    ) as server:
        ask(tiny, Client(server.address, 10))
        assert server.submitted == 2


def test_a_passing_failure_is_tried_again(tiny):
    words = "Error submitting request to model deployment. Please try again later. Sorry for the inconvenience."
    with standing_in(
        on_submit=lambda number: (503, {"detail": "no"}) if number < 2 else None,
        on_poll=lambda name, n: says("ERROR", words) if name == "job2" else (502, {}) if n < 3 else None,
    ) as server:
        line = Client(server.address, 20)
        ask(tiny, line)
        assert server.submitted == 4
        assert {"jobs": 2, "retried": 1}.items() <= line.traffic.counts().items()


def test_tries_are_bounded(tiny):
    with standing_in(on_submit=lambda _: (500, {"detail": "Internal server error."})) as server:
        with pytest.raises(UserError, match=r"failed 8 times .* \(500: Internal server error"):
            ask(tiny, Client(server.address, 60))
        assert server.submitted == jobs.TRIES
    lost = says("ERROR", "Critical server error occurred. Please try again later.")
    with standing_in(on_poll=lambda *_: lost) as server:
        with pytest.raises(UserError, match="Critical server error"):
            ask(tiny, Client(server.address, 60))
        assert server.submitted == jobs.TRIES


def test_an_error_in_the_block_is_its_last_line_and_final(tiny):
    words = 'Traceback (most recent call last):\n  File "x.py", line 3\n    1/0\nZeroDivisionError: division by zero\n'
    notes = []
    with standing_in(on_poll=lambda *_: says("ERROR", words)) as server:
        with pytest.raises(UserError) as error:
            ask(tiny, Client(server.address, 20), note=notes.append)
        assert (
            server.submitted == 1 and str(error.value) == "the server refused it: ZeroDivisionError: division by zero"
        )
        assert notes[-1]["failed"] is True


@pytest.mark.parametrize(
    "words",
    ["Your job exceeded the execution timeout of 5.0s.", "Traceback\ntorch.OutOfMemoryError: CUDA out of memory."],
)
def test_what_is_too_much_for_the_server_is_told_apart(tiny, words):
    with (
        standing_in(on_poll=lambda *_: says("ERROR", words)) as server,
        pytest.raises(TooBigError, match="--batch-tokens"),
    ):
        ask(tiny, Client(server.address, 20))


def test_a_page_that_is_no_answer(tiny):
    page = 200, b"<html>log in to the hotel</html>"
    with standing_in(on_poll=lambda *_: page) as server, pytest.raises(UserError, match="no answer of an NDIF server"):
        ask(tiny, Client(server.address, 20))


@pytest.mark.parametrize(
    "result", [b"no zstd", packed(seen=torch.arange(3))[:-20], packed(seen=Path("/"))], ids=["noise", "cut", "code"]
)
def test_a_result_that_is_not_one_runs_nothing(tiny, result):
    with standing_in(result=lambda _: result) as server, pytest.raises(UserError, match="is not used"):
        ask(tiny, Client(server.address, 20))


@pytest.mark.parametrize("timeout", [0.001, 0.5])
def test_a_deadline_holds(tiny, timeout):
    with standing_in(on_poll=lambda *_: says("RUNNING", "Your job has started running.")) as server:
        start = time.monotonic()
        with pytest.raises(UserError, match="--timeout"):
            ask(tiny, Client(server.address, timeout))
        assert time.monotonic() - start < timeout + 1


def test_a_silent_server_is_one_line(tiny):
    with raw_server(silent) as address, pytest.raises(UserError, match=r"within 1 s \(--timeout"):
        ask(tiny, Client(address, 1))


# The backend.


def plan(tmp_path, batches):
    return Journal(tmp_path / ".journal", {"k": 1}, [[at] for at in range(batches)])


def far(server, in_flight=4, timeout=20.0):
    return Backend("remote", Client(server.address, timeout), in_flight)


def tracer_of(model, backend):
    def work(group):
        network, block = model.nnsight, model.layers[0]
        with (
            torch.no_grad(),
            network.trace(
                {"input_ids": torch.ones(1, 2, dtype=torch.long)}, backend=backend.nnsight(network)
            ) as tracer,
        ):
            seen = nnsight.save(block.output.sum())
            tracer.stop()
        return seen.tolist()

    return work


def test_every_batch_is_done_once_and_no_more_than_asked_are_under_way(tiny, tmp_path):
    under_way, most, lock = set(), [0], threading.Lock()

    def poll(name, n):
        with lock:
            under_way.add(name)
            most[0] = max(most[0], len(under_way))
            if n < 3:
                return says("RUNNING")
            under_way.discard(name)
            return None

    with standing_in(on_poll=poll) as server:
        backend, journal = far(server, 3), plan(tmp_path, 20)
        seen = [group for group, _ in backend.each(journal, tracer_of(tiny, backend), 32 << 20)]
        assert sorted(seen) == [(at,) for at in range(20)] and server.submitted == 20
        assert 2 <= most[0] <= 3
    assert {name: noted["id"] is not None for name, noted in journal.jobs.items()} == {
        f"{at}#0": True for at in range(20)
    }


def test_small_batches_travel_together(tiny, tmp_path):
    with standing_in() as server:
        backend = far(server, 2)
        groups = [group for group, _ in backend.each(plan(tmp_path, 20), tracer_of(tiny, backend), 1 << 20)]
    assert sorted(groups) == [tuple(range(8)), tuple(range(8, 16)), tuple(range(16, 20))]


def test_results_that_are_large_are_not_all_fetched_at_once(tiny, tmp_path, monkeypatch):
    hired = []
    monkeypatch.setattr(
        "interventions.backends.backend._Pool.run",
        lambda _self, groups, workers: iter(hired.append((len(groups), workers)) or []),
    )
    with standing_in() as server:
        list(far(server, 64).each(plan(tmp_path, 200), lambda _: None, 16 << 20))
    assert hired == [(100, 4)]


def test_a_group_that_is_too_much_is_done_in_halves(tiny, tmp_path):
    door_of = {}

    def work(group):
        if len(group) > 2:
            raise TooBigError("too much")
        return tracer_of(tiny, door_of["it"])(group)

    with standing_in() as server:
        door_of["it"] = backend = far(server, 2)
        groups = [group for group, _ in backend.each(plan(tmp_path, 16), work, 1)]
    assert sorted(at for group in groups for at in group) == list(range(16)) and max(map(len, groups)) == 2


def test_what_is_too_much_alone_is_an_error(tiny, tmp_path):
    with standing_in(on_poll=lambda *_: says("ERROR", "Your job exceeded the execution timeout of 5.0s.")) as server:
        backend, journal = far(server), plan(tmp_path, 2)
        with pytest.raises(TooBigError, match="batch"):
            list(backend.each(journal, tracer_of(tiny, backend), 1))
    # What failed is not kept as a job; its other half may have been under way.
    assert sorted(journal.groups(8)) in ([(0, 1)], [(0,), (1,)])


def test_one_that_fails_ends_the_run_and_sends_no_more(tiny, tmp_path):
    with standing_in(
        on_poll=lambda name, _: says("ERROR", "ValueError: no") if name == "job0" else says("RUNNING")
    ) as server:
        backend = far(server, 2)
        with pytest.raises(UserError, match="ValueError: no"):
            list(backend.each(plan(tmp_path, 50), tracer_of(tiny, backend), 32 << 20))
        time.sleep(1)
        assert server.submitted <= 3


def test_a_later_run_collects_what_an_earlier_one_sent(tiny, tmp_path):
    with standing_in(on_poll=lambda *_: says("RUNNING")) as server:
        backend = far(server, 2, timeout=1)
        with pytest.raises(UserError, match="collect"):
            list(backend.each(plan(tmp_path, 6), tracer_of(tiny, backend), 32 << 20))
        early = set(server.polls)
        assert len(early) == 2
        server.on_poll = lambda *_: None
        backend, journal = far(server, 2), plan(tmp_path, 6)
        assert journal.resumed
        groups = [group for group, _ in backend.each(journal, tracer_of(tiny, backend), 32 << 20)]
        assert sorted(groups) == [(at,) for at in range(6)]
        assert server.submitted == 6 and backend.traffic["collected"] == 2


def test_a_journal_that_threads_write_at_once_stays_whole(tmp_path):
    journal = plan(tmp_path, 400)
    threads = [
        threading.Thread(
            target=lambda start=start: [journal.note_job(f"{at}#0", {"id": "x" * 500}) for at in range(start, 400, 4)]
        )
        for start in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with (tmp_path / ".journal").open("a") as file:
        file.write('{"job": "torn')
    again = plan(tmp_path, 400)
    assert again.resumed and len(again.jobs) == 400


def test_ranges():
    assert ranges((0, 1, 2, 3, 5)) == "0-3,5" and ranges((7,)) == "7" and ranges((1, 3, 4)) == "1,3-4"


# Progress.


def test_watch_counts_jobs_and_tells_scripts_in_json(capsys):
    watch = Watch(as_json=True)
    for job, state in (("a", "QUEUED"), ("b", "RUNNING"), ("a", "COMPLETED"), ("c", "RETRY")):
        watch(job, state, "words")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["state"] for line in lines] == ["QUEUED", "RUNNING", "COMPLETED", "RETRY"]
    assert (lines[-1]["running"], lines[-1]["done"], lines[-1]["to try again"], lines[-1]["words"]) == (
        1,
        1,
        1,
        "words",
    )
    assert watch.summary() == "1 running, 1 to try again, 1 done"


# What a server says of itself.


def test_models_are_listed_once_and_the_right_llama_is_picked():
    models = listed(LISTING["deployments"])
    assert [one.name for one in models if one.state == "RUNNING"] == [
        "meta-llama/Llama-3.1-70B",
        "meta-llama/Llama-3.3-70B-Instruct",
        "openai-community/gpt2",
    ]
    llama = pick(models)
    assert llama is not None and llama.name == "meta-llama/Llama-3.3-70B-Instruct"
    assert pick([one for one in models if not one.is_llama]) is None
    smaller = {
        **LISTING["deployments"]["ModelActor:4"],
        "repo_id": "x/Llama-3.2-3B-Instruct",
        "n_params": 3_000_000_000,
    }
    llama = pick(listed({**LISTING["deployments"], "ModelActor:6": smaller}))
    assert llama is not None and llama.name == "x/Llama-3.2-3B-Instruct"


def test_where_no_llama_runs_what_does_is_named():
    only = {"deployments": {"a": LISTING["deployments"]["ModelActor:3"]}}
    with (
        standing_in(pages={"/status": (200, only)}) as server,
        pytest.raises(UserError, match=r"up: openai-community/gpt2"),
    ):
        pick_llama(server.address)


PREFLIGHT = [
    ({"/ping": (200, "hello")}, "no NDIF server"),
    ({"/ping": (404, b"<html>")}, "is it an NDIF server"),
    ({"/ping": (200, b"<html>")}, "no NDIF server"),
    ({"/connected": (503, {"detail": "compute backend is reconnecting"})}, "its compute is not: compute backend is"),
    ({"/connected": (500, {"detail": "Internal server error."})}, r"fails \(500"),
    ({"/env": (200, {"python_version": "3", "packages": {"nnsight": "0.7.2"}})}, "pip install nnsight==0.7.2"),
]


@pytest.mark.parametrize(("pages", "reason"), PREFLIGHT)
def test_preflight_says_what_is_wrong(pages, reason):
    with standing_in(pages=pages) as server, pytest.raises(UserError, match=reason):
        preflight(server.address)


def test_preflight_of_a_silent_server_is_short():
    with raw_server(silent) as address, pytest.raises(UserError, match=r"did not answer /ping within 0.5 s"):
        preflight(address, 0.5)


def test_preflight_passes_where_all_is_well_or_versions_are_not_told():
    with standing_in() as server:
        preflight(server.address)
        server.pages["/env"] = (404, {})
        preflight(server.address)
        assert open_backend("remote", server.address).is_remote


@pytest.mark.parametrize("body", [b"[]", b'{"deployments": 3}', b'{"deployments": {"a": 3}}', b"{}"])
def test_a_listing_that_is_none(body):
    with standing_in(pages={"/status": (200, body)}) as server, pytest.raises(UserError, match="can't be read"):
        deployments(server.address)


def redirecting(connection):
    connection.recv(1 << 16)
    connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: https://me:pw@else/x\r\nContent-Length: 0\r\n\r\n")


def test_a_redirect_is_told_not_followed():
    with raw_server(redirecting) as address, pytest.raises(UserError, match="sends its visitors on to https://else/x"):
        preflight(address)
