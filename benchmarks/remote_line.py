"""What a remote run costs: bytes over the line, time beside a local run, memory of the client; and what its habits save.

Runs against a server on this machine (`make ndif`), with both in one process and turn by turn, so that ratios hold on a
noisy machine. Run: .venv/bin/python benchmarks/remote_line.py http://127.0.0.1:PORT
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from data import load_all
from interventions import extract, open_model
from interventions.backends import backend as backends
from interventions.backends.backend import open_backend

ROOT = Path(__file__).parents[1]
PROMPTS, TURNS, FEW_TOKENS = 200, 3, 256


def timed(model, prompts, layers, batch_tokens=2048):
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        extract(model, prompts, Path(folder), layers=layers, batch_tokens=batch_tokens)
        return time.perf_counter() - start


def bytes_over_the_line(far, prompts):
    for name, layers in (("one layer", [17]), ("all layers", None)):
        before = far.backend.traffic
        timed(far, prompts, layers)
        counts = {key: (value - before[key]) * 1000 / prompts.height for key, value in far.backend.traffic.items()}
        print(
            f"{name}: {counts['sent'] / 1e6:.3f} MB sent, {counts['received'] / 1e6:.2f} MB received per 1,000 prompts"
        )


def beside(name, first, second):
    """Median ratio of the times of two ways, turn by turn."""
    ratios = []
    for turn in range(TURNS + 1):
        seconds = {}
        for way in ((first, second), (second, first))[turn % 2]:
            seconds[way] = way()
        if turn:  # the first warms up
            ratios.append(seconds[first] / seconds[second])
    print(f"{name}: {statistics.median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})")


def beside_local(host, prompts):
    here, far = open_model("smollm2"), open_model("smollm2", remote=host)
    beside("time, remote / local", lambda: timed(far, prompts, [17]), lambda: timed(here, prompts, [17]))


def with_habits(host, prompts, batches_a_job, in_flight):
    far = open_model("smollm2", remote=open_backend("remote", host, in_flight=in_flight))

    def way():
        kept, backends.BATCHES_A_JOB = backends.BATCHES_A_JOB, batches_a_job
        try:
            return timed(far, prompts, [17], FEW_TOKENS)
        finally:
            backends.BATCHES_A_JOB = kept

    return way


def wide_model(folder):
    """As deep and wide as a model of 70 billion parameters (80 × 8,192), but thin everywhere else."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from interventions.model.embedded import embedded_folder

    tokenizer = AutoTokenizer.from_pretrained(embedded_folder("smollm2"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8192, intermediate_size=8, num_hidden_layers=80, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def client_memory(host, model, limit):
    """Peak resident memory of `extract` and `trace` at every layer, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        common = [sys.executable, str(ROOT / "cli.py"), "--run", folder, "--remote", "--host", host, "--model", str(model),
                  "--limit", str(limit), "--timeout", "1200"]  # fmt: skip
        for command in (["extract"], ["vectors"], ["trace"]):
            probe = "import resource, subprocess, sys; r = subprocess.run(sys.argv[1:], stdout=2).returncode\n"
            probe += "print(r, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
            done = subprocess.run([sys.executable, "-c", probe, *common, *command], stdout=subprocess.PIPE, text=True)
            code, peak = map(int, done.stdout.split())
            print(
                f"{' '.join(command)} of {limit} prompts on {Path(model).name}: exit {code}, peak {peak / 1024:.0f} MB"
            )


def main():
    host = sys.argv[1]
    prompts = load_all(["embedded"]).head(PROMPTS)
    bytes_over_the_line(open_model("smollm2", remote=host), prompts)
    beside_local(host, prompts)
    few = prompts.head(120)
    beside("time, 1 batch a job / 8", with_habits(host, few, 1, 4), with_habits(host, few, 8, 4))
    beside("time, 1 job in flight / 4", with_habits(host, few, 2, 1), with_habits(host, few, 2, 4))
    client_memory(host, "smollm2", 60)
    with tempfile.TemporaryDirectory() as folder:
        wide_model(folder)
        client_memory(host, folder, 60)


if __name__ == "__main__":
    main()
