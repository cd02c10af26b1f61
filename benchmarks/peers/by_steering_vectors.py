"""Worker: the package `steering-vectors`, in an environment of its own."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rounds import serve
from steering_vectors import train_steering_vector  # pyright: ignore[reportMissingImports]  # in its own environment
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

BATCH = 8


@cache
def opened(folder: str) -> tuple[Any, Any]:
    """The package needs transformers 4, which reads neither the tokenizer's class nor the base of the rotary embedding
    from a folder that transformers 5 wrote."""
    files = {name: json.loads((Path(folder) / name).read_text()) for name in ("config.json", "tokenizer_config.json")}
    end = files["tokenizer_config.json"]["eos_token"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json", eos_token=end, pad_token=end)
    theta = files["config.json"]["rope_parameters"]["rope_theta"]
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, rope_theta=theta).eval(), tokenizer


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
