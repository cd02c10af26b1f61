"""One job against a stand-in that speaks the protocol: sent, tried again, collected, given up."""

import time
from pathlib import Path

import pytest
import torch

from data.errors import UserError
from interventions.backends.ndif import request as jobs
from interventions.backends.ndif.client import Client
from interventions.backends.ndif.request import TooBigError
from tests.faults.ndif import packed, says, standing_in
from tests.faults.sockets import raw_server, silent
from tests.ndif.client import ask

pytestmark = pytest.mark.usefixtures("fast")


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
