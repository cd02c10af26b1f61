"""Worker: TransformerLens, which takes a model from a local folder, in an environment of its own."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from rounds import serve
from transformer_lens.model_bridge import (  # pyright: ignore[reportMissingImports]  # in its own environment
    TransformerBridge,
)
from transformers import AutoTokenizer

BATCH = 8


@cache
def opened(folder: str) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return TransformerBridge.boot_transformers(
        folder, device="cpu", dtype=torch.float32, tokenizer=tokenizer
    ), tokenizer


def hidden(job: dict[str, Any], ending: str) -> torch.Tensor:
    """(prompts, d_model) at the last token, each batch stopped after the layer."""
    model, tokenizer = opened(job["model"])
    texts, found, name = [text + ending for text in job["rendered"]], [], f"blocks.{job['layer']}.hook_resid_post"
    for at in range(0, len(texts), BATCH):
        inputs = tokenizer(texts[at : at + BATCH], return_tensors="pt", padding=True, add_special_tokens=False)
        _, kept = model.run_with_cache(
            inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            names_filter=name,
            stop_at_layer=job["layer"] + 1,
            return_cache_object=False,
        )
        found.append(next(iter(kept.values()))[:, -1])
    return torch.cat(found)


def pairs(job: dict[str, Any]) -> Callable[[], np.ndarray]:
    opened(job["model"])
    return lambda: torch.stack([hidden(job, tag) for tag in job["tags"]], dim=1).flatten(0, 1).numpy()


def plain(job: dict[str, Any]) -> Callable[[], np.ndarray]:
    opened(job["model"])
    return lambda: hidden(job, "").numpy()


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    serve({"pairs": pairs, "plain": plain})
