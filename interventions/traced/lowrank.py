"""Steps of training a low-rank map, where the model is: gradients of the published loss through its last token.

The loss (arXiv 2603.13359), both terms at the first generated token: −log Σ p(refusal tokens) on harmful prompts +
KL(unsteered ‖ steered) on benign ones.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import nnsight
import torch
from transformers import DynamicCache

from interventions.traced.blocks import Batch, Block, Network, NnsightBackend, device_of, hidden, is_apart, on
from interventions.traced.edits import LowRankEdit, lowrank_delta
from interventions.traced.next_token import kl

Tensors = dict[str, torch.Tensor]


class Exercise(NamedTuple):
    """What a job computes.

    Attributes:
        batches: Left-padded prompts, and for each (rows,) whether they are harmful.
        targets: Ids of the refusal tokens.
        counts: Harmful and benign rows of the whole pass through the data, whose shares these batches are.
        rates: Learning rate of each trained parameter.
        mode: The map's.
        scale: What a batch's loss is multiplied with: how many batches there are in all.
        learns: Whether to step, or to measure alone.
    """

    batches: list[tuple[Batch, torch.Tensor]]
    targets: torch.Tensor
    counts: tuple[int, int]
    rates: dict[str, float]
    mode: str
    scale: int
    learns: bool


def trained(
    network: Network, backend: NnsightBackend, block: Block, given: Mapping[str, torch.Tensor], work: Exercise
) -> dict[str, Any]:
    """Run the session: `tensors` after it, `sums` of what `losses` measures over rows, the last batch's `gradients`.

    Args:
        network: The nnsight model.
        backend: Where it runs.
        block: Its block that is steered.
        given: `U`, `V`, `z`, `mean`, and of those that are trained AdamW's `NAME.step`, `NAME.exp_avg`,
            `NAME.exp_avg_sq`.
        work: What to do.
    """
    with network.session(backend=backend):
        out = nnsight.save({})
        if is_apart(network):
            raise RuntimeError(
                "lowrank needs gradients, which do not reach an ordinary key's code: it needs a trusted key"
            )
        device = device_of(network, block)
        low = {name: value.clone().to(device) for name, value in given.items()}
        optimizer = adamw(low, work.rates)
        sums, gradients = torch.zeros(4, dtype=torch.float64), {}
        for batch, harmful in work.batches:
            inputs = on(device, batch)
            cache = DynamicCache()
            with torch.no_grad():
                with network.trace(inputs, past_key_values=cache, use_cache=True, logits_to_keep=1):
                    before = network.output.logits[:, -1, :].double().log_softmax(-1)
                cache.crop(-1)
            last = {name: value[:, -1:] for name, value in inputs.items()}
            last["attention_mask"] = inputs["attention_mask"]
            with torch.set_grad_enabled(work.learns):
                with network.trace(last, past_key_values=cache, use_cache=True, logits_to_keep=1):
                    states = hidden(block.output)
                    edit = LowRankEdit(low["U"], low["V"], low["z"], low["mean"], work.mode)
                    states += lowrank_delta(states, edit).to(states.dtype)
                    after = network.output.logits[:, -1, :].double().log_softmax(-1)
                loss, measured = losses(before, after, harmful.to(device), work.targets.to(device), work.counts)
            sums = sums + measured.cpu()
            if work.learns:
                gradients = step(optimizer, low, work.rates, loss * work.scale)
        out["tensors"] = optimizer_state(optimizer, low, work.rates)
        out["sums"] = sums.tolist()
        out["gradients"] = gradients
    return out


def losses(
    before: torch.Tensor, after: torch.Tensor, harmful: torch.Tensor, targets: torch.Tensor, counts: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a batch's rows as their share of a whole pass, and what is measured of them.

    Args:
        before: (rows, vocabulary) log probabilities, unsteered.
        after: The same, steered.
        harmful: (rows,) bool.
        targets: Ids of the refusal tokens.
        counts: Harmful and benign rows of the whole pass.

    Returns:
        The loss; and (4,) sums over rows: −log p of harmful ones, KL of benign ones, refusal probability of each.
    """
    refusal = after[:, targets.to(after.device)].logsumexp(-1)
    divergence = kl(before.to(after.device), after)
    mine = harmful.to(after.device)
    parts = -refusal[mine].sum(), divergence[~mine].sum()
    loss = parts[0] / max(counts[0], 1) + parts[1] / max(counts[1], 1)
    shares = refusal.exp()
    measured = torch.stack([parts[0], parts[1], shares[mine].sum(), shares[~mine].sum()]).detach()
    return loss, measured


def adamw(low: Tensors, rates: dict[str, float]) -> torch.optim.AdamW:
    """AdamW over the trained parameters, with what it remembers of earlier steps."""
    groups = [{"params": [low[name].requires_grad_(True)], "lr": rate} for name, rate in rates.items()]
    optimizer = torch.optim.AdamW(groups)
    for name in rates:
        if f"{name}.step" in low:
            memory = ("step", "exp_avg", "exp_avg_sq")
            optimizer.state[low[name]] = {part: low[f"{name}.{part}"] for part in memory}
    return optimizer


def step(
    optimizer: torch.optim.AdamW, low: Tensors, names: Sequence[str] | dict[str, float], loss: torch.Tensor
) -> Tensors:
    """Take a step; the gradients it took."""
    found = torch.autograd.grad(loss, [low[name] for name in names])
    for name, gradient in zip(names, found, strict=True):
        low[name].grad = gradient
    optimizer.step()
    return {name: gradient.cpu() for name, gradient in zip(names, found, strict=True)}


def optimizer_state(optimizer: torch.optim.AdamW, low: Tensors, names: Sequence[str] | dict[str, float]) -> Tensors:
    """The trained parameters and AdamW's memory, on the CPU."""
    found = {}
    for name in names:
        found[name] = low[name].detach().cpu()
        for part, value in optimizer.state.get(low[name], {}).items():
            found[f"{name}.{part}"] = torch.as_tensor(value).detach().cpu()
    return found
