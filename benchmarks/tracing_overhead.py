"""What tracing costs: extraction through nnsight beside a hand-written hook loop on the same batches.

Pairs are interleaved in one run, and the figure is the median of their ratios: this holds on a noisy machine.
Run: .venv/bin/python benchmarks/tracing_overhead.py
"""

import platform
import statistics
import time

import torch

from data import load_all
from data.store.rundir import versions
from interventions import open_model
from interventions.model.prompt_format import encode
from interventions.reading.batches import pad_batch, pad_id, plan_batches
from interventions.reading.residual import read_residual

PAIRS = 7


def hooked(model, batch, layers):
    kept = []

    class Deep(Exception):
        pass

    def keep(_module, _inputs, output):
        kept.append(output[:, -1, :].float())
        if len(kept) == len(layers):
            raise Deep

    handles = [model.layers[at].register_forward_hook(keep) for at in layers]
    try:
        with torch.no_grad():
            model.module(**batch)
    except Deep:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(kept, dim=1)


def main():
    model = open_model("smollm2")
    ids = encode(model.tokenizer, load_all(["embedded"])["prompt"].to_list()[:120]).ids
    layers = list(range(18))
    batches = [
        pad_batch([ids[row] for row in rows], pad_id(model.tokenizer))
        for rows in plan_batches([len(row) for row in ids], 2048)
    ]
    both = (lambda batch: hooked(model, batch, layers), lambda batch: read_residual(model, batch, layers))
    ratios = []
    for pair in range(PAIRS + 1):
        seconds = []
        for way in both if pair % 2 else both[::-1]:
            start = time.perf_counter()
            for batch in batches:
                way(batch)
            seconds.append(time.perf_counter() - start)
        hook, traced = seconds if pair % 2 else seconds[::-1]
        if pair:  # the first warms up
            ratios.append(traced / hook)
            print(f"hook loop {hook:.2f} s, traced {traced:.2f} s, ratio {traced / hook:.3f}")
    print(f"median ratio traced / hook loop: {statistics.median(ratios):.3f} ({PAIRS} pairs, {len(batches)} batches)")
    print(platform.platform(), versions())


if __name__ == "__main__":
    main()
