"""Engines in processes of their own: behind nnsight-serve, over two ranks, short of cache; and what people are told."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import closing

import polars as pl
import pytest

from tests import ROOT
from tests.made.models import CONTROL, make_tiny

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
KEY = "a-key-of-ours"
ARMS = (
    "--arm",
    "baseline",
    "--arm",
    "fixed:strength=3",
    "--arm",
    "routed",
    "--arm",
    "ablate",
    "--arm",
    "logit-bias",
    "--arm",
    "fixed:scope=all",
)
SAME = ("arm", "id", "response", "control_token", "vector", "finish", "new_tokens")


def port():
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def server(tiny_tuned_folder):
    """nnsight-serve on a CPU, with a key: (address, process)."""
    import os

    at = port()
    words = [sys.executable, "-m", "interventions.backends.vllm.serve", tiny_tuned_folder, "--port", at, "--api-key", KEY, "--dtype", "float32",
             "--max-model-len", 512, "--max-num-seqs", 32]  # fmt: skip
    process = subprocess.Popen(list(map(str, words)), cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    address, deadline = f"http://127.0.0.1:{at}", time.monotonic() + 240
    while True:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=2)
            break
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, "no server"
            time.sleep(1)
    yield address, process
    os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def answered(tiny_tuned_folder, prompts_file, tmp_path_factory):
    """A run directory with answers by transformers' engine."""
    from click.testing import CliRunner

    from cli import cli

    run = tmp_path_factory.mktemp("run")
    words = ["--run", run, "--model", tiny_tuned_folder, "--data", prompts_file, "--holdout", "none", "extract", "vectors",
             "generate", "--max-new-tokens", 6, *ARMS]  # fmt: skip
    done = CliRunner().invoke(cli, list(map(str, words)))
    assert done.exit_code == 0, done.output
    return run


def copied(answered, folder):
    import shutil

    run = folder / "run"
    shutil.copytree(answered, run)
    (run / "generations.parquet").unlink()
    return run


def chain(run, model, data, *more):
    return (
        "--run",
        run,
        "--model",
        model,
        "--data",
        data,
        "--holdout",
        "none",
        *more,
        "generate",
        "--max-new-tokens",
        6,
        *ARMS,
    )


def test_a_server_gives_the_same_tokens(server, answered, command, tiny_tuned_folder, prompts_file, tmp_path):
    run, (address, _) = copied(answered, tmp_path), server
    given = {"NDIF_API_KEY": KEY}
    words = chain(run, tiny_tuned_folder, prompts_file, "--engine", "vllm", "--serve", address)
    code, _, said = command(*words, environment=given)
    assert code == 0, said
    own, theirs = (pl.read_parquet(folder / "generations.parquet").select(SAME) for folder in (run, answered))
    assert own.equals(theirs)
    record = json.loads((run / "run.json").read_text())["artefacts"]["generations"]
    assert record["engine"]["serve"] == address and KEY not in (run / "run.json").read_text()


@pytest.mark.parametrize(
    ("given", "model", "said"),
    [
        ({"NDIF_API_KEY": "another"}, "same", "does not take your key"),
        ({"NDIF_API_KEY": KEY}, "other", "holds another model"),
    ],
)
def test_a_wrong_key_and_a_wrong_model_are_a_line(server, command, tiny_tuned_folder, tmp_path, given, model, said):
    folder = tiny_tuned_folder if model == "same" else make_tiny(tmp_path / "other", (*CONTROL, "<more>"), head=64)
    words = (
        "--run",
        tmp_path / "run",
        "--model",
        folder,
        "--engine",
        "vllm",
        "--serve",
        server[0],
        "extract",
        "--limit",
        4,
    )
    code, _, told = command(*words, environment=given)
    lines = [line for line in told.splitlines() if line.startswith("error:")]
    assert code == 1 and len(lines) == 1 and said in lines[0], told
    assert not (tmp_path / "run").exists()


def test_no_server_is_a_line(command, tiny_tuned_folder, tmp_path):
    words = (
        "--run",
        tmp_path / "run",
        "--model",
        tiny_tuned_folder,
        "--engine",
        "vllm",
        "--serve",
        f"http://127.0.0.1:{port()}",
        "extract",
    )
    code, _, told = command(*words)
    lines = [line for line in told.splitlines() if line.startswith("error:")]
    assert code == 1 and len(lines) == 1 and "no nnsight-serve answers" in lines[0], told


def test_who_interrupts_waits_for_no_server(tiny_tuned_folder, tmp_path):
    """One that takes requests and never answers them."""
    import os

    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        at = silent.getsockname()[1]

        def health():
            one, _ = silent.accept()
            one.recv(65536)
            one.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

        threading.Thread(target=health, daemon=True).start()
        words = [sys.executable, ROOT / "cli.py", "--run", tmp_path / "run", "--model", tiny_tuned_folder, "--engine", "vllm", "--serve",
                 f"http://127.0.0.1:{at}", "extract"]  # fmt: skip
        process = subprocess.Popen(
            list(map(str, words)), stderr=(tmp_path / "told").open("w"), env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(45)  # it has come to wait for the server
        process.send_signal(signal.SIGINT)
        assert process.wait(15) != 0
        assert "Traceback" not in (tmp_path / "told").read_text()


def test_serve_answers_by_the_engine(answered, tiny_tuned_folder, prompts_file, tmp_path):
    """Over HTTP, arms at once: the texts of transformers' engine."""
    import os
    from concurrent.futures import ThreadPoolExecutor

    wanted = pl.read_parquet(answered / "generations.parquet").filter(pl.col("arm").is_in(["baseline", "routed"]))
    at, told = port(), tmp_path / "told"
    words = [sys.executable, ROOT / "cli.py", "--run", copied(answered, tmp_path), "--model", tiny_tuned_folder, "--data", prompts_file,
             "--engine", "vllm", "serve", "--port", at]  # fmt: skip
    process = subprocess.Popen(
        list(map(str, words)), stderr=told.open("w"), env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True
    )

    def ask(row):
        body = {"model": row["arm"], "max_tokens": 6, "messages": [{"role": "user", "content": row["prompt"]}]}
        url = f"http://127.0.0.1:{at}/v1/chat/completions"
        asked = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(asked, timeout=120))["choices"][0]["message"]["content"]

    try:
        deadline = time.monotonic() + 240
        while "a page to try it" not in told.read_text():
            assert process.poll() is None and time.monotonic() < deadline, told.read_text()
            time.sleep(1)
        with ThreadPoolExecutor(4) as several:
            assert list(several.map(ask, wanted.to_dicts())) == wanted["response"].to_list()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0 and "Traceback" not in told.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_two_ranks_say_what_one_says(command, answered, tiny_tuned_folder, prompts_file, tmp_path):
    run = copied(answered, tmp_path)
    for more in (("parity",), ("--tensor-parallel", 2, "parity", "--against", "vllm-float32")):
        words = (
            "--run",
            run,
            "--model",
            tiny_tuned_folder,
            "--data",
            prompts_file,
            "--holdout",
            "none",
            "--engine",
            "vllm",
            *more,
            "--max-new-tokens",
            6,
        )
        code, out, told = command(
            *words, "--arm", "baseline", "--arm", "fixed:strength=3", "--arm", "routed", "--arm", "ablate:layers=all"
        )
        assert code == 0, (out, told)
    arms, layers = (
        pl.read_parquet(run / name).filter(pl.col("engine") == "vllm-float32-tp2")
        for name in ("parity.parquet", "parity_layers.parquet")
    )
    assert arms["differ"].drop_nulls().sum() == 0 and 0 not in arms["prompts"].to_list()
    assert layers["deviation"].to_list() and max(layers["deviation"].to_list()) <= 1e-5


SHORT = """
import sys
from pathlib import Path
from interventions import generate, open_model
from interventions.backends.backend import Backend, VLLMOptions
from interventions.backends.vllm import local
from interventions.steering.plans import Tools
from data import load_all
from tests.made.tools import arms_of, vectors_of

def short(source, device, **settings):
    return plain(source, device, **settings, num_gpu_blocks_override=6, block_size=32)

plain, local._opened = local._opened, short
folder, data, out = sys.argv[1:]
model = open_model(folder, remote=Backend(vllm=VLLMOptions(requests=16, max_model_len=128)))
prompts = load_all([data]).head(12)
generate(model, prompts, Tools(vectors_of(model)), Path(out), arms=arms_of(["baseline", "fixed:strength=3", "fixed:scope=prompt-last"]), max_new_tokens=60)
"""


def test_requests_that_lost_their_cache_are_asked_again(tiny_tuned, tiny_tuned_folder, prompts_file, tmp_path):
    import os

    from data import load_all
    from interventions import generate
    from interventions.steering.plans import Tools
    from tests.made.tools import arms_of, vectors_of

    out = tmp_path / "short.parquet"
    done = subprocess.run([sys.executable, "-c", SHORT, str(tiny_tuned_folder), str(prompts_file), str(out)], capture_output=True, text=True, cwd=ROOT,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "asking again" in done.stderr
    arms = arms_of(["baseline", "fixed:strength=3", "fixed:scope=prompt-last"])
    theirs = generate(
        tiny_tuned,
        load_all([str(prompts_file)]).head(12),
        Tools(vectors_of(tiny_tuned)),
        tmp_path / "g.parquet",
        arms=arms,
        max_new_tokens=60,
    )
    assert pl.read_parquet(out)["response"].to_list() == theirs["response"].to_list()


def test_a_server_that_goes_is_a_line_and_nothing_is_lost(
    server, answered, command, tiny_tuned_folder, prompts_file, tmp_path
):
    """Last in this file: it ends the server."""
    import os

    run, (address, process) = copied(answered, tmp_path), server
    before = {path.name: path.stat().st_mtime_ns for path in run.glob("*.safetensors")}
    os.killpg(process.pid, signal.SIGKILL)
    words = chain(run, tiny_tuned_folder, prompts_file, "--engine", "vllm", "--timeout", 20, "--serve", address)
    code, _, told = command(*words, environment={"NDIF_API_KEY": KEY}, seconds=90)
    lines = [line for line in told.splitlines() if line.startswith("error:")]
    assert code == 1 and len(lines) == 1 and address in lines[0], told
    assert {path.name: path.stat().st_mtime_ns for path in run.glob("*.safetensors")} == before
