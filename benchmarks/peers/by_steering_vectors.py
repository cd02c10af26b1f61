"""Worker: the package `steering-vectors`, in an environment of its own."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from serving import serve
from steering_vectors import train_steering_vector  # pyright: ignore[reportMissingImports]  # in its own environment
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH = 8


@cache
def opened(folder: str) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), tokenizer


def pairs(job: dict[str, Any]) -> Callable[[], np.ndarray]:
    """The vector (d_model,): the mean difference."""
    model, tokenizer = opened(job["model"])
    positive, negative = job["tags"]
    texts = [(text + positive, text + negative) for text in job["rendered"]]

    def run() -> np.ndarray:
        found = train_steering_vector(
            model, tokenizer, texts, layers=[job["layer"]], batch_size=BATCH, read_token_index=-1
        )
        return found.layer_activations[job["layer"]].numpy()

    return run


if __name__ == "__main__":
    serve({"pairs": pairs})
