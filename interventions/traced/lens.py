"""The logit lens, where the weights are: which tokens the best logits of unembedding(norm(v)) are of."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from typing import Any

import nnsight
import torch

from interventions.traced.blocks import Network, NnsightBackend


def best_tokens(
    network: Network, backend: NnsightBackend, norm_path: str, vectors: torch.Tensor, top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and ids of each vector's best tokens, (…, top_k) each, on the CPU.

    Args:
        network: The nnsight model.
        backend: Where it runs.
        norm_path: Dotted path of the final norm.
        vectors: (…, d_model).
        top_k: How many.
    """
    with network.session(backend=backend):
        best = nnsight.save(unembedded(network._module, norm_path, vectors, top_k))
    return best  # noqa: RET504  # a session gives its values once its block has ended


def unembedded(module: Any, norm_path: str, vectors: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of a module."""
    norm, head = module.get_submodule(norm_path), module.get_output_embeddings()
    scale = next(norm.parameters(), head.weight)  # a norm may have no weights
    with torch.no_grad():
        inside = norm(vectors.to(scale.device, scale.dtype)).to(head.weight.device, head.weight.dtype)
        best = head(inside).float().topk(min(top_k, head.weight.shape[0]))
    return best.values.cpu(), best.indices.cpu()
