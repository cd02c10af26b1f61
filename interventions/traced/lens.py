"""The logit lens, where the weights are."""

from typing import Any

import torch


def best_tokens(module: Any, norm_path: str, vectors: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and ids of the best tokens, (…, top_k) each, on the CPU; runs where the weights are."""
    norm, head = module.get_submodule(norm_path), module.get_output_embeddings()
    scale = next(norm.parameters())
    with torch.no_grad():
        inside = norm(vectors.to(scale.device, scale.dtype)).to(head.weight.device, head.weight.dtype)
        best = head(inside).float().topk(min(top_k, head.weight.shape[0]))
    return best.values.cpu(), best.indices.cpu()
