"""Clients of a real NDIF server that die: nothing is computed twice, and the end is the same."""

import json
import os
import random
import signal
import time

import polars as pl
import pytest

from data import load_all
from interventions.reading.extract import extract
from tests.ndif.client import CANARY, begun, command, sent
from tests.oracles import same_activations

pytestmark = pytest.mark.usefixtures("canary")


KILLS = pytest.mark.skipif(
    "REFUSAL_TEST_KILLS" not in os.environ, reason="a sandbox takes seconds a job; REFUSAL_TEST_KILLS=10 asks for it"
)


def part_of(work, many, rows, model, folder):
    """The work on so many of its prompts, and a folder with what it makes."""
    few = folder / "few.jsonl"
    few.write_text("".join(many.read_text().splitlines(keepends=True)[:rows]))
    extract(model, load_all([str(few)]), folder / "undisturbed", batch_tokens=24)
    return [few if word == many else word for word in work], folder / "undisturbed"


@pytest.mark.ndif
@pytest.mark.parametrize("server", ["ndif", pytest.param("ndif_sandbox", marks=KILLS)])
def test_a_killed_client_collects_and_ends_the_same(
    request, server, run, work, many, undisturbed, tiny_tuned, tmp_path
):
    """Ten kills where REFUSAL_TEST_KILLS=10; nothing whose id was journalled is computed again."""
    ids: dict[str, set[str]] = {}
    ndif = request.getfixturevalue(server)
    if server == "ndif_sandbox":
        work, undisturbed = part_of(work, many, 450, tiny_tuned, tmp_path)
    tmp_path = tmp_path / "run"
    random_ = random.Random(0)
    for killed in range(int(os.environ.get("REFUSAL_TEST_KILLS", "3"))):
        process = begun(command("--run", tmp_path, *work, host=ndif.url), tmp_path, sent(tmp_path) + 1)
        time.sleep(random_.uniform(0, 1))
        process.kill()
        process.wait()
        journal = tmp_path / "activations" / ".prompts.journal"
        if not journal.exists():  # a quick machine is done before so many kills
            assert killed >= 3, "the run was over before it could be killed"
            break
        text = journal.read_text()
        for line in text[: text.rfind("\n")].splitlines()[1:]:
            entry = json.loads(line)
            if "job" in entry and entry["noted"]["id"]:
                ids.setdefault(entry["job"], set()).add(entry["noted"]["id"])
        assert CANARY not in text
    code, _, err = run("--remote", "--host", ndif.url, "--run", tmp_path, *work)
    assert code == 0, err
    same_activations(undisturbed, tmp_path / "activations")
    assert ids and all(len(found) == 1 for found in ids.values())
    assert CANARY not in (tmp_path / "run.json").read_text()


@pytest.mark.ndif
def test_ctrl_c_is_130_at_once_and_the_next_run_goes_on(ndif, run, work, undisturbed, tmp_path):
    process = begun(command("--run", tmp_path, *work, host=ndif.url), tmp_path)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "run the same command again to go on" in err and "Traceback" not in err
    assert time.monotonic() - start < 15
    assert run("--remote", "--host", ndif.url, "--run", tmp_path, *work)[0] == 0
    record = json.loads((tmp_path / "run.json").read_text())["artefacts"]["activations/prompts"]
    assert record["remote"]["collected"] >= 1
    same_activations(undisturbed, tmp_path / "activations")


@pytest.mark.ndif
def test_a_killed_trace_and_generation_go_on(ndif, run, tiny_tuned_folder, prompts_file, tmp_path):
    words = ["--model", tiny_tuned_folder, "--data", prompts_file, "--batch-tokens", 20]
    far = ["--remote", "--host", ndif.url]
    for name in ("killed", "whole"):
        code, _, err = run(*far, "--run", tmp_path / name, *words, "extract", "vectors")
        assert code == 0, err
    for step in (["trace", "--limit", 40, "--max-new-tokens", 2], ["generate", "--max-new-tokens", 2]):
        process = begun(command("--run", tmp_path / "killed", *words, *step, host=ndif.url), tmp_path / "killed", 3)
        process.kill()
        process.wait()
        for name in ("killed", "whole"):
            code, _, err = run(*far, "--run", tmp_path / name, *words, *step)
            assert code == 0, err
    for name in ("traces", "generations"):
        one, two = (pl.read_parquet(tmp_path / run_dir / f"{name}.parquet") for run_dir in ("killed", "whole"))
        assert one.equals(two)
