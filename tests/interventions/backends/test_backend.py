"""Many jobs: which batches travel together, how many at once, what a later run collects; and what is said of them."""

import json
import threading
import time

import nnsight
import pytest
import torch

from data.errors import UserError
from data.store.journal import Journal
from data.store.progress import Watch
from interventions.backends.backend import Backend
from interventions.backends.ndif.client import Client
from interventions.backends.ndif.request import TooBigError
from interventions.backends.pool import ranges
from tests.faults.ndif import says, standing_in

pytestmark = pytest.mark.usefixtures("fast")


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
