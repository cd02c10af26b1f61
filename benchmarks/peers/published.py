"""Worker: the published way, written with plain transformers.

As in the code of arXiv 2603.13359: extraction in batches of 4, whole forward passes with logits, one for each side of a
pair; generation one prompt at a time under a hook, with a forward pass of its own for the gate and the route. Beside it
transformers' own batched `generate`, without steering.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rounds import serve
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

Run = Callable[[], Any]
BATCH = 4


@cache
def opened(folder: str) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), tokenizer


def hidden(job: dict[str, Any], ending: str) -> torch.Tensor:
    """(prompts, d_model) at the last token."""
    model, tokenizer = opened(job["model"])
    texts, found = [text + ending for text in job["rendered"]], []
    for at in range(0, len(texts), BATCH):
        some = texts[at : at + BATCH]
        inputs = tokenizer(some, return_tensors="pt", padding=True, add_special_tokens=False)
        states = model(**inputs, output_hidden_states=True).hidden_states
        found.append(states[job["layer"] + 1][:, -1])
    return torch.cat(found)


def plain(job: dict[str, Any]) -> Run:
    opened(job["model"])
    return lambda: hidden(job, "").numpy()


def pairs(job: dict[str, Any]) -> Run:
    opened(job["model"])
    return lambda: torch.stack([hidden(job, tag) for tag in job["tags"]], dim=1).flatten(0, 1).numpy()


def gated(job: dict[str, Any]) -> Run:
    model, tokenizer = opened(job["model"])
    tool, names = load_file(job["tools"]), json.loads(Path(job["tools"]).with_suffix(".json").read_text())
    refusing = torch.tensor([tokenizer.convert_tokens_to_ids(f"[{name}]") for name in names])
    control = {*refusing.tolist(), tokenizer.convert_tokens_to_ids("[respond]")}
    layer, block = job["layer"], model.model.layers[job["layer"]]

    def one(text: str) -> str:
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        seen = model(**inputs, output_hidden_states=True)
        state = seen.hidden_states[layer + 1][0, -1]
        score = torch.sigmoid((state - tool["mean"]) @ tool["weight"] + tool["bias"])
        strength = job["harmful"] if bool(score >= tool["threshold"]) else job["benign"]
        delta = strength * tool["vectors"][int(seen.logits[0, -1, refusing].argmax())]

        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            (output[0] if isinstance(output, tuple) else output)[:, -1, :] += delta

        handle = block.register_forward_hook(hook)
        new = model.generate(
            **inputs, max_new_tokens=job["tokens"], do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        handle.remove()
        tokens = new[0, inputs["input_ids"].shape[1] :].tolist()
        return tokenizer.decode(tokens[1:] if tokens and tokens[0] in control else tokens, skip_special_tokens=True)

    return lambda: np.array([one(text) for text in job["rendered"]])


def unsteered(job: dict[str, Any]) -> Run:
    """New tokens (prompts, tokens) of one batch; nobody stops before the last token."""
    model, tokenizer = opened(job["model"])
    inputs = tokenizer(job["rendered"], return_tensors="pt", padding=True, add_special_tokens=False)

    def run() -> np.ndarray:
        ends, model.generation_config.eos_token_id = model.generation_config.eos_token_id, None
        try:
            found = model.generate(
                **inputs, max_new_tokens=job["tokens"], do_sample=False, pad_token_id=tokenizer.pad_token_id
            )
        finally:
            model.generation_config.eos_token_id = ends
        return found[:, inputs["input_ids"].shape[1] :].numpy()

    return run


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    serve({task.__name__: task for task in (plain, pairs, gated, unsteered)})
