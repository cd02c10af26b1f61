"""A low-rank map's edit, and steps of its training."""

import torch


def added(hidden: torch.Tensor, low: dict[str, torch.Tensor], mode: str) -> torch.Tensor:
    """U z, or U Vᵀ(h − mean): what `edits.change` adds at strength 1."""
    up, down, z, mean = (low[name].to(hidden.device) for name in ("U", "V", "z", "mean"))
    return up @ z if mode == "fixed" else ((hidden.float() - mean) @ down) @ up.T


def losses(
    before: torch.Tensor, after: torch.Tensor, harmful: torch.Tensor, targets: torch.Tensor, counts: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a batch's rows as their share of a lesson's, and the sums of `MEASURES`.

    Args:
        before: (rows, vocabulary) log probabilities, unsteered.
        after: The same, steered.
        harmful: (rows,) bool.
        targets: Ids of the refusal tokens.
        counts: Harmful and benign rows of the lesson.
    """
    refusal = after[:, targets.to(after.device)].logsumexp(-1)
    divergence = (before.to(after.device).exp() * (before.to(after.device) - after)).sum(-1)
    mine = harmful.to(after.device)
    parts = -refusal[mine].sum(), divergence[~mine].sum()
    loss = parts[0] / max(counts[0], 1) + parts[1] / max(counts[1], 1)
    shares = refusal.exp()
    measured = torch.stack([parts[0], parts[1], shares[mine].sum(), shares[~mine].sum()]).detach()
    return loss, measured


def optimizing(low: dict[str, torch.Tensor], rates: dict[str, float]) -> torch.optim.AdamW:
    """AdamW over the trained parameters, with what it remembers of earlier steps."""
    groups = [{"params": [low[name].requires_grad_(True)], "lr": rate} for name, rate in rates.items()]
    optimizer = torch.optim.AdamW(groups)
    for name in rates:
        if f"{name}.step" in low:
            memory = ("step", "exp_avg", "exp_avg_sq")
            optimizer.state[low[name]] = {part: low[f"{name}.{part}"] for part in memory}
    return optimizer


def stepped(
    optimizer: torch.optim.AdamW, low: dict[str, torch.Tensor], rates: dict[str, float], loss: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Take a step; the gradients it took."""
    names = list(rates)
    found = torch.autograd.grad(loss, [low[name] for name in names])
    for name, gradient in zip(names, found, strict=True):
        low[name].grad = gradient
    optimizer.step()
    return {name: gradient.cpu() for name, gradient in zip(names, found, strict=True)}


def kept(
    optimizer: torch.optim.AdamW, low: dict[str, torch.Tensor], rates: dict[str, float]
) -> dict[str, torch.Tensor]:
    """The trained parameters and AdamW's memory, on the CPU."""
    found = {}
    for name in rates:
        found[name] = low[name].detach().cpu()
        for part, value in optimizer.state.get(low[name], {}).items():
            found[f"{name}.{part}"] = torch.as_tensor(value).detach().cpu()
    return found
