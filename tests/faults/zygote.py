"""Imports the command line once and runs it in forked children, as it is told line by line on stdin."""

import contextlib
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

MODULES = ("cli", "interventions", "interventions.steering.generate", "interventions.steering.sweep", "interventions.steering.effects",
           "interventions.steering.trace", "interventions.steering.train_lowrank", "interventions.reading.extract",
           "interventions.methods.fit", "interventions.gates.fit", "interventions.tuning.finetune", "interventions.carried.bake",
           "reports.page.write", "reports.statistics.summary", "reports.scoring.scores", "interventions.fitting.diffing",
           "transformers.models.llama.modeling_llama", "interventions.backends.ndif.client", "scipy.stats", "statsmodels.stats.multitest",
           "sklearn.linear_model", "altair", "peft")  # fmt: skip
PAGE = "reports.page.write"


def child(asked: dict[str, Any]) -> None:
    """The command line, printing into two files."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    out, err = (os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644) for name in ("out", "err"))
    for at, handle in enumerate((nothing, out, err)):
        os.dup2(handle, at)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    sys.argv = ["cli.py", *asked["words"]]
    os.chdir(asked["here"])
    os.environ.update(asked.get("environment", {}))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import cli

    code = 70
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def answer(value: dict[str, Any]) -> None:
    """A line for who asked."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def with_scripts_at_hand() -> None:
    """Make the page's script once for all children, in a process of its own: what makes it starts threads, which no fork keeps."""
    said = subprocess.run([sys.executable, "-c", f"import sys; from {PAGE} import vega; sys.stdout.buffer.write(vega().encode())"], capture_output=True, check=True)  # fmt: skip
    script = said.stdout.decode()
    importlib.import_module(PAGE).vega = lambda: script  # pyright: ignore[reportAttributeAccessIssue]


def main() -> None:
    """Fork for each line."""
    for name in MODULES:
        importlib.import_module(name)
    with_scripts_at_hand()
    gc.freeze()
    answer({"ready": True})
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if not pid:
            child(asked)
        start, sent = time.monotonic(), False
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            passed = time.monotonic() - start
            if not sent and passed >= asked["after"]:
                os.killpg(pid, asked["signal"])
                sent = True
            elif passed >= asked["most"]:
                os.killpg(pid, signal.SIGKILL)
            time.sleep(0.002)
        answer({"status": status})


if __name__ == "__main__":
    main()
