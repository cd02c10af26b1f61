"""How far one distribution lies from another."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

import torch


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p ‖ q) = Σ p (log p − log q), nats, of log probabilities (…, vocabulary): (…,)."""
    return (p.exp() * (p - q)).sum(-1)
