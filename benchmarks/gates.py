"""What a gate costs: a prefill that reads every layer at both positions for a gate, beside the same prefill without one.

Pairs are interleaved in one run, in seconds of processor time, and the figure is the median of their ratios: this holds on a noisy
machine.
Run: .venv/bin/python benchmarks/gates.py
"""

import platform
import statistics
import time
from dataclasses import replace

import torch

from data import load_all
from data.store.rundir import versions
from interventions import open_model
from interventions.gates.gate import FittedGate
from interventions.model.prompt_format import encode
from interventions.reading.budget import Budget
from interventions.steering.arms import Arm
from interventions.steering.batches import answer_rows, plan_answers
from interventions.steering.plans import Plan, unsteered

PAIRS, PROMPTS = 9, 96


def main():
    model = open_model("smollm2")
    prompts = load_all(["embedded:traffic"]).head(PROMPTS)
    encoded, budget = encode(model.tokenizer, prompts["prompt"].to_list()), Budget(4096)
    reads = [(layer, position) for position in ("last", "mean") for layer in range(model.n_layers)]
    size = len(reads) * model.d_model
    metadata = {"reads": str(reads).replace("(", "[").replace(")", "]").replace("'", '"')}
    gate = FittedGate(torch.randn(size) / size, torch.zeros(size), torch.zeros(1), torch.tensor([0.5]), metadata)
    plain = Plan(Arm("x", "baseline", 0), [], unsteered(len(prompts), model.d_model))
    gated = replace(plain, shipped=plain.shipped._replace(gate=0))
    shipped = [gate.shipped(model, prompts.to_dicts())]

    def seconds(plan, gates):
        start = time.process_time()
        for rows in plan_answers(encoded, 1, 0, budget):
            answer_rows(model, encoded, rows, [plan], gates, 0, budget)
        return time.process_time() - start

    ratios = []
    for pair in range(PAIRS + 1):
        turns = [(gated, shipped), (plain, [])]
        times = [seconds(*turn) for turn in (turns if pair % 2 else turns[::-1])]
        with_gate, without = times if pair % 2 else times[::-1]
        if pair:  # the first warms up
            ratios.append(with_gate / without)
            print(f"without a gate {without:.2f} s, with {with_gate:.2f} s, ratio {with_gate / without:.3f}")
    print(f"median ratio: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}; {PAIRS} pairs, "
          f"{PROMPTS} prompts, {len(reads)} reads)")  # fmt: skip
    print(platform.platform(), versions())


if __name__ == "__main__":
    main()
