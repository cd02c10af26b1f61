"""Real NDIF servers that break, or can't do what they are asked: nothing hangs, nothing is lost, and a line says it."""

import json
import os
import shutil
import signal
import time

import nnsight
import pytest
import torch

from data import UserError
from data.store.journal import Journal
from interventions import open_model
from interventions.backends.backend import open_backend
from interventions.reading.batches import pad_batch
from interventions.reading.residual import read_residual
from tests.made.models import make_tiny
from tests.ndif.client import CANARY, SECONDS, after, one_line
from tests.ndif.postgres import binaries, keys_database
from tests.ndif.server import free_ports
from tests.oracles import same_activations

pytestmark = pytest.mark.usefixtures("canary")


@pytest.mark.ndif
@pytest.mark.parametrize("victim", ["actor", "worker"])
def test_what_dies_and_comes_back_is_outlived(breakable, run, work, undisturbed, tmp_path, victim):
    words = ["--remote", "--host", breakable.url, "--timeout", 200, "--run", tmp_path, *work]
    if victim == "actor":  # Ray knows several, and starts each anew
        kill = lambda: [os.kill(process, signal.SIGKILL) for process in breakable.actors()]  # noqa: E731
    else:
        kill = lambda: os.kill(breakable.find(victim), signal.SIGKILL)  # noqa: E731
    with after(tmp_path, 4, kill) as done:
        outcome = run(*words)
    assert done.is_set()
    if outcome[0] == 0:
        same_activations(undisturbed, tmp_path / "activations")
    else:
        one_line(outcome, "run the same command again")
        assert run(*words)[0] == 0
        same_activations(undisturbed, tmp_path / "activations")


@pytest.mark.ndif
def test_a_frozen_api_ends_in_a_line_within_the_deadline(breakable, run, work, undisturbed, tmp_path):
    words = ["--remote", "--host", breakable.url, "--run", tmp_path, *work]
    frozen = breakable.find("worker")
    try:
        with after(tmp_path, 4, lambda: os.kill(frozen, signal.SIGSTOP)):
            start = time.monotonic()
            one_line(run("--timeout", 12, *words), "--timeout")
            assert time.monotonic() - start < 60
        start = time.monotonic()
        one_line(run(*words), "did not answer")
        assert time.monotonic() - start < 20
        code, out, _ = run("status", "--host", breakable.url)
        assert code == 0 and "did not answer" in out
    finally:
        os.kill(frozen, signal.SIGCONT)
    assert run(*words)[0] == 0
    same_activations(undisturbed, tmp_path / "activations")


@pytest.mark.ndif
@pytest.mark.parametrize("victim", ["dispatcher", "redis"])
def test_what_dies_for_good_ends_in_a_line_within_the_deadline(breakable, run, work, undisturbed, tmp_path, victim):
    words = ["--remote", "--host", breakable.url, "--run", tmp_path, *work]
    try:
        with after(tmp_path, 4, lambda: os.kill(breakable.find(victim), signal.SIGKILL)):
            start = time.monotonic()
            one_line(run("--timeout", 12, *words), "again")
            assert time.monotonic() - start < 60
    finally:
        breakable.restart(*(["redis"] if victim == "redis" else []), "api")
    deadline = time.monotonic() + SECONDS
    code, _, err = run("--timeout", 60, *words)  # what the dead one had queued is lost, and overdue after this
    while code and "reconnecting" in err and time.monotonic() < deadline:
        time.sleep(2)
        code, _, err = run("--timeout", 60, *words)
    assert code == 0, err
    same_activations(undisturbed, tmp_path / "activations")


@pytest.mark.ndif
def test_the_servers_time_limit_ends_in_halves_or_a_line(ndif, tmp_path):
    folder = str(make_tiny(tmp_path / "limited"))
    name = json.dumps({"repo_id": folder, "revision": None, "task": "text-generation"})
    ndif.deploy(folder, f"nnsight.modeling.transformers.TransformersModel:{name}", limit=4)
    far = open_model(folder, remote=open_backend("remote", ndif.url, timeout=SECONDS, in_flight=1))
    network, batch = far.nnsight, {"input_ids": torch.ones(1, 2, dtype=torch.long)}

    def slowly(group: tuple[int, ...], each: float = 1.2) -> int:
        pause = each * len(group)
        with network.trace(batch, backend=far.backend.nnsight(network)) as tracer:
            time.sleep(pause)
            seen = nnsight.save(torch.ones(1))
            tracer.stop()
        return int(seen)

    journal = Journal(tmp_path / ".journal", {}, [[row] for row in range(6)])
    groups = [group for group, _ in far.backend.each(journal, slowly, 1)]
    assert sorted(row for group in groups for row in group) == list(range(6)) and max(map(len, groups)) == 3
    with pytest.raises(UserError, match=r"exceeded the execution timeout of 4.* --batch-tokens"):
        slowly((0,), 20)


@pytest.mark.ndif
def test_what_the_server_cannot_do_is_its_last_line(ndif, run, work, tiny_folder, tiny_tuned_folder, tmp_path):
    hollow = tmp_path / "hollow"
    hollow.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_folder / name, hollow)
    huge = json.loads((tiny_folder / "config.json").read_text()) | {
        "num_hidden_layers": 400,
        "vocab_size": 4_000_000,
        "hidden_size": 4096,
    }
    (hollow / "config.json").write_text(json.dumps(huge))
    one_line(
        run("--remote", "--host", ndif.url, "--run", tmp_path / "run", "--data", work[3], "--model", hollow, "extract"),
        "deploy",
    )
    far = open_model(str(tiny_tuned_folder), remote=open_backend("remote", ndif.url, timeout=SECONDS))
    with pytest.raises(UserError) as caught:
        read_residual(far, [pad_batch([[10**6] * 3], 0)], [0])
    assert "\n" not in str(caught.value) and "IndexError" in str(caught.value)


@pytest.mark.ndif
def test_a_server_that_checks_keys(breakable, run, work, tmp_path, monkeypatch):
    if binaries() is None:
        pytest.skip("needs Postgres")
    words = ["--remote", "--host", breakable.url, "--run", tmp_path, *work]
    with keys_database(CANARY, free_ports(1)[0]) as database:
        try:
            breakable.restart("api", NDIF_POSTGRES_URL=database)
            for key in ("", "no-uuid-canary", "11111111-2222-3333-4444-555555555555"):
                outcome = run(*words, NDIF_API_KEY=key)
                one_line(outcome, "NDIF_API_KEY")
                assert not key or key not in outcome[2]
            monkeypatch.setenv("NDIF_API_KEY", CANARY)
            code, out, err = run("--json", *words)
            assert code == 0, err
            code, told, _ = run("status", "--host", breakable.url)
            assert code == 0 and "key: trusted" in told  # as the database has it
            files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
            assert not [raw for raw in [*files, (out + err + told).encode()] if CANARY.encode() in raw]
        finally:
            breakable.restart("api")
