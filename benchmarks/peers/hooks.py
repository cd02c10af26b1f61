"""Worker: a hook loop as one would write it by hand for this one job, over the very passes that this tool makes.

The floor: nothing but the model's own work. `plain` runs whole rows; `shared` computes their common opening once, too.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
import torch
from rounds import serve
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from data.contract import BATCH_TOKENS
from interventions.model.prompt_format import encode
from interventions.reading.batches import pad_batch, pad_id, plan_batches
from interventions.reading.budget import CPU_TOKENS, plan_passes
from interventions.reading.packing import common_opening

Run = Callable[[], Any]


class DeepEnoughError(Exception):
    """The layer was read."""


@cache
def opened(folder: str) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(
        folder
    )


def loop(job: dict[str, Any], share: bool) -> Run:
    model, tokenizer = opened(job["model"])
    kept: list[torch.Tensor] = []

    def hook(_module: Any, _inputs: Any, output: Any) -> None:
        kept.append((output[0] if isinstance(output, tuple) else output)[:, -1])
        raise DeepEnoughError

    def read(batch: dict[str, torch.Tensor], past: Any) -> torch.Tensor:
        try:
            model(**batch, past_key_values=past, use_cache=past is not None)
        except DeepEnoughError:
            return kept.pop()
        raise AssertionError("the hook was not reached")

    def passes(ids: list[list[int]], opening: int) -> torch.Tensor:
        """The rows of one batch, part by part."""
        first, found = DynamicCache(), torch.empty(len(ids), model.config.hidden_size)
        if share and opening:
            read(pad_batch([ids[0][:opening]], 0), first)
        for part in plan_passes([len(row) - opening for row in ids], CPU_TOKENS):
            batch, past = pad_batch([ids[at] for at in part], pad_id(tokenizer), opening=opening), None
            if share and opening:
                past = deepcopy(first)
                past.batch_repeat_interleave(len(part))
                batch |= {name: batch[name][:, opening:] for name in ("input_ids", "position_ids")}
            found[part] = read(batch, past)
        return found

    def run() -> np.ndarray:
        encoded = encode(tokenizer, job["prompts"]).ids
        opening, found = common_opening(encoded), np.empty((len(encoded), model.config.hidden_size), np.float32)
        handle = model.model.layers[job["layer"]].register_forward_hook(hook)
        for rows in plan_batches([len(ids) - opening for ids in encoded], BATCH_TOKENS):
            found[rows] = passes([encoded[row] for row in rows], opening).numpy()
        handle.remove()
        return found

    return run


def plain(job: dict[str, Any]) -> Run:
    return loop(job, share=False)


def shared(job: dict[str, Any]) -> Run:
    return loop(job, share=True)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    serve({"plain": plain, "shared": shared})
