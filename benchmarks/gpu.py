"""On a GPU, or a CPU: this tool's engines beside plain transformers and plain vLLM, on a random Llama that is made here.

    PYTHONPATH=. python benchmarks/gpu.py --shape 8b --out gpu.json

Extraction of the residual stream (every layer, last position) and greedy generation, unsteered, with a fixed vector, and with a
gated one and a bias. Turns are interleaved and engines stay open side by side, each in a process of its own; figures are medians of
rounds. The first turn of each warms up, and what it gives is compared: equal greedy tokens, the residual stream by layer, the
first token's distribution. Nothing comes from outside: weights, tokenizer and prompts are made from a seed.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file
from transformers.utils.logging import disable_progress_bar

from data.contract import REQUESTS
from data.errors import UserError, cause_of
from data.store.rundir import versions
from interventions.backends.backend import LOCAL, VLLMOptions
from interventions.backends.vllm.local import SETTINGS, vllm_version
from interventions.model.model import Model
from interventions.model.opening import open_model
from interventions.model.prompt_format import encode
from interventions.reading.budget import DECODED, Budget, default_batch_tokens
from interventions.reading.extract import extract
from interventions.steering.arms import Arm, parse_arms
from interventions.steering.batches import answer_rows, plan_answers
from interventions.steering.plans import Plan, Tools, plan_arm
from tests.made.models import CONTROL
from tests.made.tools import NOTHING_KNOWN, probe_of, vectors_of
from tests.oracles import blocks, changed, divergence, stream

PLAIN, OURS, PLAIN_VLLM, OUR_VLLM = "plain transformers", "this tool, transformers", "plain vLLM", "this tool, vLLM"
EXACT = "plain transformers, float32"  # the same weights
ROWS = 256  # that plain transformers takes at once, and vLLM has under way
COMPARED = 16  # prompts whose first token's whole distribution is compared
PLACES = 2048  # that the model has
WORDS = (16, 48)  # of a prompt
SPARE = 15.0  # seconds to end in
UNSTEERED = "baseline"


class Shape(NamedTuple):
    layers: int
    width: int
    heads: int
    pairs: int  # heads of keys and values
    feed: int
    vocabulary: int
    tied: bool

    @property
    def weights(self) -> int:
        head = self.width // self.heads
        block = self.width * (2 * self.width + 2 * self.pairs * head + 3 * self.feed)
        return self.layers * block + self.vocabulary * self.width * (1 if self.tied else 2)


SHAPES = {
    "8b": Shape(32, 4096, 32, 8, 14336, 128256, False),
    "1b": Shape(16, 2048, 32, 8, 8192, 128256, True),
    "135m": Shape(30, 576, 9, 3, 1536, 49152, True),
    "tiny": Shape(4, 128, 4, 2, 256, 512, False),
}


@dataclass(frozen=True)
class Setup:
    """What every engine is opened with.

    Attributes:
        folder: The model.
        device: torch's name.
        dtype: Of the weights.
        prompts: Texts, which a template is put around.
        ids: Their tokens.
        new_tokens: Of each answer.
        memory: Share of a GPU's memory that a vLLM engine may take.
        eager: Whether plain vLLM runs without graphs and compilation, as nnsight's does.
    """

    folder: Path
    device: str
    dtype: str
    prompts: list[str]
    ids: list[list[int]]
    new_tokens: int
    memory: float
    eager: bool


# What is made.


def make_model(folder: Path, shape: Shape, device: str, dtype: str) -> None:
    """A random Llama of a shape, with a tokenizer of made-up words; no token ends an answer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    named = ["<unk>", "<pad>", "<user>", "<bot>", *CONTROL]
    words = [f"w{at}" for at in range(min(4000, shape.vocabulary - len(named)))]
    core = Tokenizer(models.WordLevel({word: at for at, word in enumerate([*named, *words])}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", additional_special_tokens=named[2:]
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<user> {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.feed,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.pairs,
        max_position_embeddings=PLACES,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    with torch.device(device):
        module = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    module.save_pretrained(folder, max_shard_size="4GB")


def make_prompts(many: int, shape: Shape) -> list[str]:
    chosen, most = random.Random(0), min(4000, shape.vocabulary - 8)
    return [" ".join(f"w{chosen.randrange(most)}" for _ in range(chosen.randint(*WORDS))) for _ in range(many)]


# What is measured, in the process that holds the engine. Every work gives an array.


class Ours:
    """This tool, on whichever engine the model was opened with."""

    def __init__(self, model: Model, setup: Setup) -> None:
        self.model, self.setup = model, setup
        self.encoded = encode(model.tokenizer, setup.prompts)
        assert self.encoded.ids == setup.ids
        named = {"id": [str(at) for at in range(len(setup.prompts))], "prompt": setup.prompts}
        empty = [pl.lit(None, pl.String).alias(name) for name in ("category", "label", "split")]
        self.table = pl.DataFrame(named).with_columns(pl.lit("bench").alias("dataset"), *empty)
        self.tools = Tools(vectors_of(model), probe_of(model, model.default_layer()))

    def states(self) -> np.ndarray:
        """(prompts, layers, d_model), as the command `extract` writes them."""
        with tempfile.TemporaryDirectory() as folder:
            return load_file(extract(self.model, self.table, Path(folder)))["activations"].numpy()

    def tokens(self, words: str) -> np.ndarray:
        """(prompts, new tokens) of an arm."""
        steps, plan = self.setup.new_tokens, self.plan(words)
        gates = self.tools.shipped(self.model, [plan], self.table.to_dicts())
        budget = Budget(DECODED * default_batch_tokens(self.model))
        found = np.zeros((len(self.encoded), steps), dtype=np.int64)
        for rows in plan_answers(self.encoded, 1, steps, budget):
            answers = answer_rows(self.model, self.encoded, rows, [plan], gates, steps, budget)
            found[rows] = answers.tokens[:, 0].numpy()
        return found

    def first(self, words: str) -> np.ndarray:
        """Log-probabilities (compared prompts, vocabulary) of the first token in an arm."""
        rows, plan = range(min(COMPARED, len(self.encoded))), self.plan(words)
        every = self.model.module.config.vocab_size
        top = answer_rows(self.model, self.encoded, rows, [plan], [], 1, top_k=every).top
        assert top is not None
        ids, shares = (part[:, 1] for part in top)
        found = torch.zeros(ids.shape, dtype=torch.float64).scatter(-1, ids, shares.double())
        return found.clamp_min(1e-45).log().numpy()

    def plan(self, words: str) -> Plan:
        (arm,) = parse_arms([words], Arm("x", "fixed", self.model.default_layer(), unit="unit"))
        return plan_arm(self.model, arm, self.tools, [NOTHING_KNOWN] * len(self.encoded))


class Hooked:
    """Plain transformers, with PyTorch's hooks: padded on the left, as many rows at once as `ROWS`."""

    def __init__(self, ours: Ours) -> None:
        self.model, self.setup, self.ours = ours.model, ours.setup, ours

    def portions(self, ids: Sequence[list[int]]) -> Iterator[dict[str, torch.Tensor]]:
        for at in range(0, len(ids), ROWS):
            some = ids[at : at + ROWS]
            width = max(map(len, some))
            padded = torch.tensor([[1] * (width - len(row)) + row for row in some])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in some])
            batch = {"input_ids": padded, "attention_mask": mask}
            yield {name: part.to(self.setup.device) for name, part in batch.items()}

    @torch.inference_mode()
    def states(self) -> np.ndarray:
        kept: list[torch.Tensor] = []
        hooks = [
            block.register_forward_hook(lambda _module, _inputs, output: kept.append(stream(output)[:, -1].float()))
            for block in blocks(self.model)
        ]
        found = []
        for batch in self.portions(self.setup.ids):
            self.model.module.model(**batch, position_ids=places(batch), use_cache=False)
            found.append(torch.stack(kept, dim=1).cpu())
            kept.clear()
        for hook in hooks:
            hook.remove()
        return torch.cat(found).numpy()

    @torch.inference_mode()
    def tokens(self, words: str) -> np.ndarray:
        found, steps = [], self.setup.new_tokens
        with self.steered(words):
            for batch in self.portions(self.setup.ids):
                out = self.model.module.generate(**batch, max_new_tokens=steps, do_sample=False)
                found.append(out[:, batch["input_ids"].shape[1] :].cpu())
        return torch.cat(found).numpy()

    @torch.inference_mode()
    def first(self, words: str) -> np.ndarray:
        (batch,) = self.portions(self.setup.ids[:COMPARED])
        with self.steered(words):
            logits = self.model.module(**batch, position_ids=places(batch), logits_to_keep=1).logits[:, -1]
        return logits.double().log_softmax(-1).cpu().numpy()

    def steered(self, words: str) -> Any:
        """A fixed arm's vector, added where the next token is made."""
        arm = self.ours.plan(words).arm
        if not arm.steers:
            return nullcontext()
        vector = self.ours.tools.vectors.delta(arm.layer, arm.category, arm.strength, arm.unit).to(self.setup.device)

        def change(hidden: torch.Tensor) -> torch.Tensor:
            hidden[:, -1] += vector.to(hidden.dtype)
            return hidden

        return changed(self.model, arm.layer, change)


class PlainVLLM:
    """vLLM without nnsight, as vLLM sets itself up but for a cache of prefixes, which would skip what is measured."""

    def __init__(self, setup: Setup) -> None:
        from vllm import LLM  # pyright: ignore[reportMissingImports]

        settings = {"gpu_memory_utilization": setup.memory} if on_gpu(setup.device) else {}
        self.setup = setup
        self.engine = LLM(
            str(setup.folder), dtype=setup.dtype, max_model_len=PLACES, max_num_seqs=REQUESTS, enable_prefix_caching=False,
            enforce_eager=setup.eager, generation_config="vllm", **settings,
        )  # fmt: skip

    def tokens(self, words: str) -> np.ndarray:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        assert words == UNSTEERED
        how = SamplingParams(temperature=0.0, max_tokens=self.setup.new_tokens, ignore_eos=True, detokenize=False)
        prompts = [{"prompt_token_ids": ids} for ids in self.setup.ids]
        return np.array([list(one.outputs[0].token_ids) for one in self.engine.generate(prompts, how, use_tqdm=False)])


def places(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return (batch["attention_mask"].cumsum(-1) - 1).clamp_min(0)


def on_gpu(device: str) -> bool:
    return device.partition(":")[0] == "cuda"


def opened(held: str, setup: Setup) -> dict[str, Any]:
    """Engines by name, of one process: those of transformers share their weights."""
    if held != PLAIN:
        one_process = {} if on_gpu(setup.device) else {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        for name, value in (SETTINGS | {"VLLM_CPU_KVCACHE_SPACE": "1"} | one_process).items():
            os.environ.setdefault(name, value)
    if held == PLAIN_VLLM:
        return {PLAIN_VLLM: PlainVLLM(setup)}
    options = VLLMOptions(requests=REQUESTS, max_model_len=PLACES, memory=setup.memory)
    backend = replace(LOCAL, vllm=None if held == PLAIN else options)
    ours = Ours(open_model(str(setup.folder), remote=backend, device=setup.device, dtype=setup.dtype), setup)
    return {PLAIN: Hooked(ours), OURS: ours} if held == PLAIN else {OUR_VLLM: ours}


def hold(line: Any, held: str, setup: Setup) -> None:
    """Open engines and do what comes down the line, until nothing more does."""
    os.dup2(2, 1)  # whatever vLLM prints
    with suppress(EOFError, BrokenPipeError):
        try:
            engines = opened(held, setup)
            line.send((None, None))
        except Exception as error:  # whatever an engine dies of
            line.send((cause_of(error), None))
            return
        while (asked := line.recv()) is not None:
            engine, work, words, keep = asked
            start, busy = time.perf_counter(), time.process_time()
            try:
                found = getattr(engines[engine], work)(*words)
            except Exception as error:
                line.send((cause_of(error), None))
                continue
            took = Took(time.perf_counter() - start, time.process_time() - busy, peak_memory())
            if on_gpu(setup.device) and held == PLAIN:
                torch.cuda.empty_cache()  # what the next turn takes is its own
            line.send((None, (took, found if keep else None)))


def peak_memory() -> float:
    """GB of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


# The process that asks.


class Took(NamedTuple):
    seconds: float
    busy: float  # CPU seconds of the process that holds the engine
    memory: float  # GB


class SpentError(Exception):
    """The time is."""


class Held:
    """A process with engines, and what of the device's memory it takes."""

    def __init__(self, held: str, setup: Setup, end: float) -> None:
        """Open them.

        Raises:
            UserError: They can't be.
            SpentError: Before they were.
        """
        self.device, self.end = setup.device, end
        self.before = device_memory(setup.device)
        spawn = multiprocessing.get_context("spawn")
        self.line, far = spawn.Pipe()
        self.process = spawn.Process(target=hold, args=(far, held, setup))
        self.process.start()
        far.close()
        try:
            self._answer()
        except (UserError, SpentError):
            self.close()
            raise

    def ask(self, engine: str, work: str, words: Sequence[str], keep: bool = False) -> tuple[Took, np.ndarray | None]:
        """One turn.

        Raises:
            UserError: It failed.
            SpentError: It did not end in time; the engine has ended then.
        """
        self.line.send((engine, work, tuple(words), keep))
        with watched(self.device) as seen:
            took, found = self._answer()
        return (took._replace(memory=(seen[0] - self.before) / 1e9) if seen else took), found

    def _answer(self) -> Any:
        try:
            if not self.line.poll(max(0.0, self.end - time.monotonic())):
                self.process.kill()
                raise SpentError
            failed, found = self.line.recv()
        except (EOFError, OSError):
            raise UserError("its process ended") from None
        if failed:
            raise UserError(failed)
        return found

    def close(self) -> None:
        with suppress(OSError):
            self.line.send(None)
        self.process.join(SPARE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def device_memory(device: str) -> int:
    """Bytes of a GPU that all processes take together; 0 on a CPU."""
    if not on_gpu(device):
        return 0
    free, whole = torch.cuda.mem_get_info(device)
    return whole - free


@contextmanager
def watched(device: str) -> Iterator[list[int]]:
    """The most that `device_memory` comes to meanwhile, on a GPU."""
    most: list[int] = [device_memory(device)] if on_gpu(device) else []
    end = threading.Event()

    def watch() -> None:
        while not end.wait(0.02):
            most[0] = max(most[0], device_memory(device))

    thread = threading.Thread(target=watch, daemon=True)
    if most:
        thread.start()
    try:
        yield most
    finally:
        end.set()
        if most:
            thread.join()


class Line(NamedTuple):
    """What is timed."""

    engine: str
    work: str
    arm: str = ""  # as the tables call it


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

    def once(self, line: Line) -> None:
        """A turn that is not timed; what it gives is kept."""
        if line.engine not in self.open:
            return
        if (asked := self._ask(line, keep=True)) and asked[1] is not None:
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

    def _ask(self, line: Line, keep: bool = False) -> tuple[Took, np.ndarray | None] | None:
        words = [self.arms[line.arm]] if line.arm else []
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


def said(line: Line) -> str:
    return ", ".join(part for part in line if part)


STATES = [Line(engine, "states") for engine in (PLAIN, OURS, OUR_VLLM)]
TOKENS = [
    *(Line(engine, "tokens", arm) for arm in ("unsteered", "fixed") for engine in (PLAIN, OURS)),
    Line(OURS, "tokens", "gated, bias"),
    *(Line(engine, "tokens", "unsteered") for engine in (PLAIN_VLLM, OUR_VLLM)),
    Line(OUR_VLLM, "tokens", "fixed"),
    Line(OUR_VLLM, "tokens", "gated, bias"),
]
FIRST = [Line(engine, "first", arm) for engine in (PLAIN, OURS, OUR_VLLM) for arm in ("unsteered", "fixed")]
# Beside what an engine's numbers stand; a plain arm with a gate there is not.
PAIRS = [(OURS, PLAIN), (OUR_VLLM, PLAIN), (OUR_VLLM, OURS), (PLAIN_VLLM, PLAIN), (OUR_VLLM, PLAIN_VLLM)]
PAIRS += [(engine, EXACT) for engine in (PLAIN, OURS, PLAIN_VLLM, OUR_VLLM)]


def warm_up(bench: Bench) -> None:
    """A turn of everything; the arms' strength is a third of the residual stream's norm where they steer."""
    for line in STATES:
        bench.once(line)
    if states := [bench.found[line] for line in STATES if line in bench.found]:
        layers = states[0].shape[1]
        norm = float(np.linalg.norm(states[0][:, min(round(18 / 32 * layers), layers - 1)], axis=-1).mean())
        strength = round(norm / 3, 4)
        bench.arms["fixed"] = f"fixed:strength={strength}"
        bench.arms["gated, bias"] = f"gated:benign=0,harmful={strength},bias=2,harmful-bias=-2"
        for line in [*TOKENS, *FIRST]:
            bench.once(line)


def speeds(bench: Bench, prompts: int, new_tokens: int, device: str) -> list[dict[str, Any]]:
    """Each line's median; ratios are medians of those of each round, and on a CPU those of CPU seconds."""

    def cost(took: Took) -> float:
        return took.seconds if on_gpu(device) else took.busy

    def beside(line: Line, other: Line) -> float | None:
        pairs = list(zip(bench.turns[line], bench.turns.get(other, []), strict=False))
        return statistics.median(cost(there) / cost(here) for here, there in pairs) if pairs else None

    rows = []
    for line, turns in bench.turns.items():
        units = prompts * (new_tokens if line.work == "tokens" else 1)
        plain = PLAIN_VLLM if line.engine in (PLAIN_VLLM, OUR_VLLM) and line.work == "tokens" else PLAIN
        arm = "unsteered" if line.arm else ""
        rows.append({
            "engine": line.engine, "work": {"states": "prompts read", "tokens": "tokens"}[line.work], "arm": line.arm,
            "per_second": units / statistics.median(took.seconds for took in turns),
            "per_cpu_second": None if on_gpu(device) else units / statistics.median(took.busy for took in turns),
            "of_plain": beside(line, Line(plain, line.work, arm)),
            "of_plain_transformers": beside(line, Line(PLAIN, line.work, arm)),
            "peak_gb": max(took.memory for took in turns),
            "seconds": [round(took.seconds, 4) for took in turns],
            "cpu_seconds": None if on_gpu(device) else [round(took.busy, 4) for took in turns],
        })  # fmt: skip
    return rows


def parity(found: dict[Line, np.ndarray], dtype: str) -> list[dict[str, Any]]:
    """How near engines are to one another: the prompts that both were given."""
    rows = []
    for here, there in PAIRS:
        states = [found.get(Line(engine, "states")) for engine in (here, there)]
        by_layer = None if states[0] is None or states[1] is None else deviation(*states)
        for arm in ("unsteered", "fixed", "gated, bias"):
            mine, other = (found.get(Line(engine, "tokens", arm)) for engine in (here, there))
            if mine is None or other is None:
                continue
            one, two = (found.get(Line(engine, "first", arm)) for engine in (here, there))
            kl = None if one is None or two is None else divergence(two, one)
            same = mine[: len(other)] == other[: len(mine)]
            own = by_layer if arm == "unsteered" else None
            unsteered = found[Line(here, "tokens", "unsteered")]
            rows.append({
                "engine": here, "beside": there, "arm": arm, "dtype": dtype,
                "equal_tokens": float(same.mean()), "equal_first": float(same[:, 0].mean()),
                "steering_changed": None if arm == "unsteered" else float((mine != unsteered).mean()),
                "residual_by_layer": own, "residual": own and max(own),
                "kl_mean": None if kl is None else float(kl.mean()), "kl_max": None if kl is None else float(kl.max()),
            })  # fmt: skip
    return rows


def deviation(mine: Any, other: Any) -> list[float]:
    """Of each layer, the most of any prompt."""
    many = min(len(mine), len(other))
    mine, other = mine[:many], other[:many]
    gaps = np.linalg.norm(mine - other, axis=-1) / np.linalg.norm(other, axis=-1)
    return [float(gap) for gap in gaps.max(axis=0)]


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
        "speed": speeds(bench, options.prompts, options.new_tokens, device),
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


def table(found: dict[str, Any]) -> str:
    """What is printed."""
    lines = [
        f"{found['shape']}, {found['dtype']}, {found['device']}; {found['prompts']} prompts of {found['prompt_tokens']} tokens, "
        f"{found['new_tokens']} new tokens each; {found['seconds']:.0f} s",
        "",
        f"{'':44}{'a second':>10}{'a CPU s':>10}{'× plain':>9}{'× plain transformers':>22}{'peak GB':>9}",
    ]
    for row in found["speed"]:
        named = f"{row['work']}: {row['engine']}" + (f", {row['arm']}" if row["arm"] else "")
        lines.append(
            f"{named:44}{shown(row['per_second'], ',.0f'):>10}{shown(row['per_cpu_second'], ',.0f'):>10}{shown(row['of_plain'], '.2f'):>9}"
            f"{shown(row['of_plain_transformers'], '.2f'):>22}{row['peak_gb']:>9.2f}"
        )
    lines += ["", f"{'':72}{'equal':>8}{'first':>8}{'changed':>9}{'residual':>10}{'KL mean':>10}{'KL max':>10}"]
    for row in found["parity"]:
        named = f"{row['dtype']}: {row['engine']} | {row['beside']}; {row['arm']}"
        lines.append(
            f"{named:72}{row['equal_tokens']:>8.1%}{row['equal_first']:>8.1%}{shown(row['steering_changed'], '.1%'):>9}"
            + "".join(f"{shown(row[name], '.1e'):>10}" for name in ("residual", "kl_mean", "kl_max"))
        )
    return "\n".join([*lines, "", *(f"left out: {what}" for what in found["left_out"])]).rstrip()


def shown(value: float | None, how: str) -> str:
    return "" if value is None else format(value, how)


if __name__ == "__main__":
    main()
