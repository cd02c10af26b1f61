"""The logit lens, where the weights are: which tokens the best logits of unembedding(norm(v)) are of."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

import nnsight
import torch

from interventions.traced.blocks import Block, Network, NnsightBackend, hidden


def best_tokens(
    network: Network,
    backend: NnsightBackend,
    modules: tuple[Block, Block, Block],
    vectors: torch.Tensor,
    top_k: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and ids of each vector's best tokens, (…, top_k) each, on the CPU.

    Args:
        network: The nnsight model.
        backend: Where it runs.
        modules: Its last block, final norm and unembedding.
        vectors: (…, d_model).
        top_k: How many.
    """
    last, norm, head = modules
    inputs = {"input_ids": torch.ones((1, 1), dtype=torch.long)}
    with torch.no_grad(), network.trace(inputs, use_cache=False, backend=backend) as tracer:
        states = hidden(last.output)
        best = nnsight.save(best_of(head(norm(vectors.to(states.device, states.dtype))), top_k))
        tracer.stop()
    return best  # a trace gives its values once its block has ended


def best_of(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest logits (…, top_k) and their tokens, on the CPU."""
    best = logits.float().topk(min(top_k, logits.shape[-1]))
    return best.values.cpu(), best.indices.cpu()
