"""What fits into a machine's memory, and how long answers take there, of a model that is named and not loaded.

From its configuration alone: the network is built without weights, and run so to see what its cache keeps. The time is
the roofline's (Williams et al. 2009): a step takes as long as its products or as what it reads, whichever is longer, at
rates that a moment's matrix product and copy reach on the device. Nothing that a program does beside is in it.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data.contract import BATCH_TOKENS, QUANTISED
from interventions.reading.budget import DECODED, cached_numbers, fitting_tokens

TOKENS = 16  # of the row that is run without weights
BLOCK = 64  # weights of NF4 that share a scale
SCALE = 4  # its bytes
TRIES = 3
SIDES, A_WHILE = (256, 512, 1024, 2048, 4096, 8192), 0.02  # of matrices; seconds


class Sizes(NamedTuple):
    """What a model takes.

    Attributes:
        parameters: How many numbers.
        body: Of these what every token is multiplied with, of experts those that it takes; without the unembedding.
        head: The unembedding's.
        vocabulary: How many tokens there are.
        weights: Bytes of all.
        read: Of these what a step reads: all but embeddings that are looked up alone.
        cache: Bytes that a token leaves in the cache.
        size: Bytes of a number that is computed with.
    """

    parameters: int
    body: int
    head: int
    vocabulary: int
    weights: int
    read: int
    cache: int
    size: int


class Rates(NamedTuple):
    """What a device does in a second: `products`, floating-point operations of a matrix product; `copied`, bytes read or written."""

    products: float
    copied: float


class Job(NamedTuple):
    """How long answers take.

    Attributes:
        rows: How many decode at once.
        prefill: Seconds of reading prompts.
        decode: Seconds of writing answers.
    """

    rows: int
    prefill: float
    decode: float


def sizes_of(module: Any, dtype: torch.dtype, quantize: str) -> Sizes:
    """Sizes of a model without weights, of `opening.skeleton`, that would be held in a type or in fewer bits."""
    parameters = dict(module.named_parameters())  # what is tied stands once
    embedding, head = module.get_input_embeddings().weight, module.get_output_embeddings()
    is_tied = head is None or head.weight is embedding
    linear = {id(part.weight) for part in module.modules()
              if quantize in QUANTISED and isinstance(part, torch.nn.Linear) and part is not head}  # fmt: skip
    held = {name: _held(part, quantize) if id(part) in linear else part.numel() * dtype.itemsize
            for name, part in parameters.items()}  # fmt: skip
    outside = {id(embedding), id(embedding if head is None else head.weight)}
    share = _experts_taken(module.config.get_text_config())
    body = sum(part.numel() * (share if ".experts." in name else 1) for name, part in parameters.items()
               if id(part) not in outside)  # fmt: skip
    weights = sum(held.values())
    looked_up = 0 if is_tied else embedding.numel() * dtype.itemsize
    return Sizes(sum(part.numel() for part in parameters.values()), int(body), embedding.numel(), len(embedding), weights,
                 weights - looked_up, cache_bytes(module, dtype.itemsize), dtype.itemsize)  # fmt: skip


def cache_bytes(module: Any, size: int) -> int:
    """Bytes that a token leaves in the cache, as a pass without weights says; where none can be run, of keys and values."""
    try:
        with torch.no_grad():
            ids = torch.ones((1, TOKENS), dtype=torch.long, device="meta")
            past = module(input_ids=ids, use_cache=True).past_key_values
        kept = [part for layer in past.layers for part in (layer.keys, layer.values)]
        return sum(part.numel() for part in kept) // TOKENS * size
    except Exception:  # whatever a family does that takes numbers
        return cached_numbers(module.config.get_text_config()) * size


def _held(part: torch.Tensor, quantize: str) -> int:
    """Bytes of a linear layer's weights in fewer bits, with the scales: LLM.int8()'s one a row, NF4's one a block."""
    if quantize == "8bit":
        return part.numel() + SCALE * part.shape[0]
    return -(-part.numel() // 2) + SCALE * -(-part.numel() // BLOCK)


def _experts_taken(config: Any) -> float:
    """Which share of its experts a token goes through."""
    every = next((many for name in ("num_local_experts", "num_experts", "n_routed_experts")
                  if (many := getattr(config, name, None))), 1)  # fmt: skip
    return min(1.0, (getattr(config, "num_experts_per_tok", None) or every) / every)


def free_memory(device: str) -> int:
    """Bytes that are free: the device's own, on a CPU what the system says is available."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    told = Path("/proc/meminfo")
    if told.exists():
        line = next(line for line in told.read_text().splitlines() if line.startswith("MemAvailable"))
        return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def rows_that_fit(sizes: Sizes, free: int, row_tokens: int) -> int:
    """How many rows of so many tokens have room for their cache beside the weights, each with a row of logits in float32."""
    return max(0, free - sizes.weights) // (row_tokens * sizes.cache + 4 * sizes.vocabulary)


def rows_that_decode(
    sizes: Sizes, config: Any, device: str, free: int, row_tokens: int, batch_tokens: int | None
) -> int:
    """How many rows this tool decodes at once, of those that fit: as `budget` sizes its batches."""
    own = fitting_tokens(config, free - sizes.weights, sizes.size) if device.startswith("cuda") else BATCH_TOKENS
    return min(rows_that_fit(sizes, free, row_tokens), max(1, DECODED * (batch_tokens or own) // row_tokens))


def measured(device: str, dtype: torch.dtype) -> Rates:
    """Rates of a device: of a product of square matrices, large enough to take a while, and of a copy that no cache holds."""
    here = device.startswith("cuda")
    settle = torch.cuda.synchronize if here else lambda: None
    side, took = 0, 0.0
    for side in SIDES:
        one, other = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
        took = _fastest(lambda one=one, other=other: torch.matmul(one, other), settle)
        if took > A_WHILE:
            break
    source = torch.ones(1 << (30 if here else 27), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Rates(2 * side**3 / took, 2 * len(source) / _fastest(lambda: target.copy_(source), settle))


def _fastest(work: Callable[[], Any], settle: Callable[[], Any]) -> float:
    """Seconds of the fastest of a few tries, behind one that warms up."""
    found = []
    for _ in range(TRIES + 1):
        settle()
        start = time.perf_counter()
        work()
        settle()
        found.append(time.perf_counter() - start)
    return min(found[1:])


def job(sizes: Sizes, rates: Rates, rows: int, prompts: int, prompt_tokens: int, new_tokens: int) -> Job:
    """Time of so many answers in one arm, `rows` of them decoding at once."""
    rows = min(rows, prompts)
    prefill = 2 * prompts * (sizes.body * prompt_tokens + sizes.head) / rates.products
    cached = rows * (prompt_tokens + new_tokens / 2) * sizes.cache  # on average
    step = max(2 * rows * (sizes.body + sizes.head) / rates.products, (sizes.read + cached) / rates.copied)
    return Job(rows, prefill, -(-prompts // rows) * new_tokens * step)
