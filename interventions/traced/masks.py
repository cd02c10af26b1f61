"""Who sees whom: attention masks of packed rows."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

import torch


def row_mask(real: torch.Tensor) -> torch.Tensor:
    """Who sees whom in a padded row: boolean (rows, 1, tokens, tokens) of `real` (rows, tokens), 1 for real tokens."""
    width = real.shape[1]
    earlier = torch.ones(width, width, dtype=torch.bool, device=real.device).tril()
    return ((earlier & real.bool()[:, None, :]) | torch.eye(width, dtype=torch.bool, device=real.device))[:, None]


def tail_mask(real: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Whom a row's tail sees: boolean (rows, 1, tail, tokens + tail); the row, and of itself what `seen` (tail, tail) says."""
    rows, tail = len(real), len(seen)
    return torch.cat([real.bool()[:, None].expand(-1, tail, -1), seen.bool().expand(rows, -1, -1)], dim=2)[:, None]
