"""The engines that are measured, and what each does with the prompts: every work gives an array."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file

from benchmarks.device.made import PLACES, Setup, on_gpu
from data.contract import REQUESTS
from interventions.backends.backend import LOCAL, VLLMOptions
from interventions.backends.vllm.local import SETTINGS
from interventions.model.model import Model
from interventions.model.opening import open_model
from interventions.model.prompt_format import encode
from interventions.reading.budget import DECODED, Budget, default_batch_tokens
from interventions.reading.extract import extract
from interventions.steering.arms import Arm, parse_arms
from interventions.steering.batches import answer_rows, plan_answers
from interventions.steering.plans import Plan, Tools, plan_arm
from tests.made.tools import NOTHING_KNOWN, probe_of, vectors_of
from tests.oracles import blocks, changed, stream

PLAIN, OURS, PLAIN_VLLM, OUR_VLLM = "plain transformers", "this tool, transformers", "plain vLLM", "this tool, vLLM"
ROWS = 256  # that plain transformers takes at once, and vLLM has under way
COMPARED = 16  # prompts whose first token's whole distribution is compared
UNSTEERED = "baseline"


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

    def centre(self, mean: np.ndarray) -> np.ndarray:
        """From now on the gate tells prompts on one side of their mean from those on the other."""
        assert self.tools.probe is not None
        self.tools = replace(self.tools, probe=replace(self.tools.probe, mean=torch.from_numpy(mean)))
        return mean

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
