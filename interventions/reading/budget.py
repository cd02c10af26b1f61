"""How much is computed at once: passes that waste little padding, and that fit into memory, found out by trying.

A batch is what is planned, noted and sent; a pass is one forward pass through the model. Batches are the same wherever
a run goes on; how many passes a batch takes depends on the machine.
"""

import gc
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from data.contract import BATCH_TOKENS
from data.errors import TooBigError, UserError

if TYPE_CHECKING:
    from interventions.model.model import Model

logger = logging.getLogger(__name__)
T = TypeVar("T")

PASS_TOKENS = 32  # on a CPU a pass costs about as much as so many tokens more in another: its weights are read
GPU_PASS_TOKENS = 256  # on a GPU its kernels are launched, too
CPU_TOKENS = 512  # a CPU gains nothing by more at once, and loses where tensors outgrow its caches and allocator
MOST_TOKENS = 1 << 16
REQUEST_TOKENS = 64  # a batch for vLLM, for each request under way: enough that few are idle at a batch's end
DECODED = 4  # times a batch's tokens: what may decode at once, since arms share one prefill
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


class Budget:
    """Padded tokens that may be computed at once; halved whenever memory runs out, for all that comes later too."""

    def __init__(self, tokens: int) -> None:
        """Begin with so many."""
        self.tokens = tokens

    def spend(self, work: Callable[[int], T], smallest: int, far: bool = False) -> T:
        """`work` with the budget, and with half of it as often as memory runs out.

        Args:
            work: Does the same whatever the budget, in more or fewer parts.
            smallest: Tokens of the shortest row: with less there is nothing left to split.
            far: Whether the work is a server's. Its jobs are known by their number among those of their batch, which
                must not depend on what came before, so that nothing is remembered.

        Raises:
            UserError: One row alone is too much.
        """
        tokens = self.tokens
        while True:
            try:
                return work(tokens)
            except (RuntimeError, MemoryError, TooBigError) as error:
                if not ran_out(error):
                    raise
                if tokens < smallest:
                    if isinstance(error, TooBigError):
                        raise
                    raise UserError(
                        "not enough memory for a single prompt; try --dtype bfloat16, or a smaller model"
                    ) from None
            tokens //= 2
            self.tokens = self.tokens if far else tokens
            logger.warning("out of memory: going on with %d tokens at once", tokens)
            gc.collect()  # the failed pass's tensors may hang in its traceback's cycles
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice, here or on a server."""
    text = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError, TooBigError)) or any(it in text for it in NO_MEMORY)


def default_batch_tokens(model: "Model") -> int:
    """Padded tokens a batch where nobody said: on a GPU what its free memory holds, elsewhere `BATCH_TOKENS`."""
    if model.backend.vllm is not None:
        return REQUEST_TOKENS * model.backend.vllm.requests
    if model.backend.is_remote or model.device.type != "cuda":
        return BATCH_TOKENS
    cards = {model.device, *(part.device for part in model.module.parameters() if part.device.type == "cuda")}
    free = min(torch.cuda.mem_get_info(card)[0] for card in cards)
    return fitting_tokens(model.module.config.get_text_config(), free, next(model.module.parameters()).element_size())


def fitting_tokens(config: Any, free: int, size: int) -> int:
    """A power of two of padded tokens, `BATCH_TOKENS` to `MOST_TOKENS`, whose pass takes half of the free memory.

    A token takes its keys and values in every layer, `DECODED` times since so many may decode at once and twice since
    caches grow by copying, and in one layer a handful of residual and feed-forward widths.

    Args:
        config: transformers' text configuration.
        free: Bytes.
        size: Bytes a number.
    """
    wide = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    cached = cached_numbers(config) * 2 * DECODED
    tokens = int(free / 2 / (size * (cached + 8 * config.hidden_size + 4 * wide)))
    return max(BATCH_TOKENS, min(MOST_TOKENS, 1 << max(tokens, 1).bit_length() - 1))


def cached_numbers(config: Any) -> int:
    """Keys and values of a token in all layers."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width


def passes(model: "Model", lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Split rows into forward passes of at most so many padded tokens, as suits the machine that the model runs on.

    A server on this machine's own address is taken for a CPU, as it is where a run is tried out: then it computes the
    same passes as a run without it, and gives the same bits. Rows of a model that padding would run through go with
    those of their length alone.
    """
    if model.keeps_state:
        alike = [
            [at for at, own in enumerate(lengths) if own == length] for length in sorted(set(lengths), reverse=True)
        ]
        most = [max(1, tokens // max(lengths[rows[0]], 1)) for rows in alike]
        return [rows[at : at + n] for rows, n in zip(alike, most, strict=True) for at in range(0, len(rows), n)]
    if not model.backend.is_loopback if model.backend.is_remote else model.device.type != "cpu":
        return plan_passes(lengths, tokens, GPU_PASS_TOKENS)
    return plan_passes(lengths, min(tokens, CPU_TOKENS), PASS_TOKENS)


def plan_passes(lengths: Sequence[int], most_tokens: int, pass_tokens: int = PASS_TOKENS) -> list[list[int]]:
    """Split rows into passes of at most `most_tokens` padded tokens that together cost the least.

    A pass costs its padded tokens and `pass_tokens` more. Rows stand in order of length, so that an optimal split is
    one of runs: the shortest path over their ends. A row longer than the budget is a pass of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    best: list[tuple[int, int]] = [(0, 0)]  # of the first n rows: cost, and where the last pass begins
    for end in range(1, len(order) + 1):
        found = []
        for start in range(end - 1, -1, -1):
            tokens = (end - start) * lengths[order[start]]
            if tokens > most_tokens and start < end - 1:
                break
            found.append((best[start][0] + tokens + pass_tokens, start))
        best.append(min(found))
    passes, end = [], len(order)
    while end:
        start = best[end][1]
        passes.append(order[start:end])
        end = start
    return passes[::-1]
