"""Teacher forcing: how probable given tokens are, one after another, unsteered and in every arm.

Nothing is decoded: all arms read the same tokens, so that what differs is the steering alone. As in `steering`, arms
share one prefill wherever their scope lets them, and routes and gates read the unsteered last prompt token. An edit
covers the positions that it would cover if the given tokens had just been generated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nnsight
import torch
from transformers import DynamicCache

from interventions.model.model import Model
from interventions.steering.answer import WIDE, Gate
from interventions.traced.edits import biased, prepared, scored
from interventions.traced.teacher_forcing import change_in_parts, compared, parted

LOGIT_BYTES = 256 << 20  # of float32 logits that one forward pass may put out


@dataclass(frozen=True)
class TeacherForced:
    """What B rows, A arms and at most T given tokens came to, float64 nats; 0 beyond a row's own tokens.

    Attributes:
        nll: (B, A, T) −log p(token) in the arm.
        kl: (B, A, T) KL(unsteered ‖ arm) of the distribution that the token is drawn from, or None.
    """

    nll: torch.Tensor
    kl: torch.Tensor | None


def most_rows(model: Model, tokens: int) -> int:
    """How many rows of so many given tokens a batch may hold."""
    return max(1, LOGIT_BYTES // (4 * tokens * model.module.config.get_text_config().vocab_size))


def teacher_forced(
    model: Model,
    batch: dict[str, torch.Tensor],
    given: Sequence[Sequence[int]],
    plans: Sequence[dict[str, Any]],
    *,
    refusal_ids: Sequence[int] = (),
    gate: Gate | None = None,
    divergence: bool = True,
    reference: dict[str, torch.Tensor] | None = None,
) -> TeacherForced:
    """Probabilities of given tokens behind a batch of prompts, in every arm.

    Args:
        model: An open model.
        batch: Left-padded prompts of B rows, of `encoding.pad_batch`.
        given: B lists of token ids, none empty, that follow the prompts.
        plans: A arms in tensors, of `routes.Plan.shipped`.
        refusal_ids: Token ids of the refusal tokens.
        gate: The probe, if an arm is gated.
        divergence: Whether to compute `kl`, too.
        reference: Prompts whose unsteered distributions `kl` is measured from; default `batch` itself.
    """
    network, path = model.nnsight, list(model.layers)
    rows, width = batch["input_ids"].shape
    tokens, there = right_padded(given)
    count, plans = tokens.shape[1], list(plans)
    look = divergence or any(plan["routed"] or plan["gated"] for plan in plans)
    groups = _groups(plans, max(1, most_rows(model, count) // rows))
    editors = [
        [(at, block) for at, block in enumerate(path) if at in {plans[arm]["layer"] for arm in group}]
        for group in groups
    ]
    readers = [] if gate is None else [(gate.layer, path[gate.layer])]
    gating = None if gate is None else vars(gate)
    refusing = torch.tensor(list(refusal_ids), dtype=torch.long)
    whole = followed(batch, tokens, there)
    other = None if reference is None else followed(reference, tokens, there)
    backend = model.backend.nnsight(network)
    with network.session(backend=backend):
        out = nnsight.save({})
        with torch.no_grad():
            device = next(network._module.parameters()).device
            tokens, there, refusing = tokens.to(device), there.to(device), refusing.to(device)
            whole = {name: value.to(device) for name, value in whole.items()}
            before, after = parted(whole, width - 1)
            cache = DynamicCache()
            if width > 1:
                with network.trace(before, past_key_values=cache, use_cache=True, logits_to_keep=1) as tracer:
                    _end = path[-1].output
                    tracer.stop()
            seen: dict[str, Any] = {"tokens": None, "score": None}
            own = None
            if look:
                with network.trace(after, past_key_values=cache, use_cache=True, logits_to_keep=count):
                    states = {}
                    for number, block in readers:
                        output = block.output
                        hidden = output[0] if isinstance(output, tuple) else output
                        states[number] = hidden[:, 0, :].float()
                    own = network.output.logits.float()
                cache.crop(-count)
                seen["tokens"] = own[:, 0, refusing] if len(refusing) else None
                if gating is not None:
                    seen["score"] = scored(states[gating["layer"]], gating)
            if divergence and other is not None:
                inputs = {name: value.to(device) for name, value in other.items()}
                with network.trace(inputs, use_cache=False, logits_to_keep=count):
                    own = network.output.logits.float()
            found = []
            for group, blocks in zip(groups, editors, strict=True):
                arms = [plans[at] for at in group]
                many, shares = len(arms), arms[0]["scope"] not in WIDE and width > 1
                changes = prepared(arms, seen, gating, [number for number, _ in blocks], device)
                part = {name: value.repeat_interleave(many, 0) for name, value in (after if shares else whole).items()}
                past = DynamicCache([pair[:2] for pair in cache]) if shares else DynamicCache()
                if shares:
                    past.batch_repeat_interleave(many)
                with network.trace(part, past_key_values=past, use_cache=True, logits_to_keep=count):
                    for number, block in blocks:
                        output = block.output
                        hidden = output[0] if isinstance(output, tuple) else output
                        change_in_parts(hidden, changes[number], 1 if shares else width, arms[0]["scope"] in WIDE)
                    logits = network.output.logits.float()
                logits[:, 0] = biased(logits[:, 0], arms, seen, gating)
                found.append(compared(logits, own if divergence else None, tokens, there))
            out["nll"] = torch.cat([pair[0] for pair in found], dim=1)
            out["kl"] = torch.cat([pair[1] for pair in found], dim=1) if divergence else None
    order = [at for group in groups for at in group]
    back = torch.tensor([order.index(at) for at in range(len(plans))])
    return TeacherForced(out["nll"][:, back], out["kl"][:, back] if divergence else None)


def _groups(plans: Sequence[dict[str, Any]], most: int) -> list[list[int]]:
    """Arms that run together: those that share a cache, and those that don't, in portions."""
    groups = []
    for wide in (False, True):
        arms = [at for at, plan in enumerate(plans) if (plan["scope"] in WIDE) == wide]
        groups += [arms[at : at + most] for at in range(0, len(arms), most)]
    return groups


def right_padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and which of them are there, (rows, tokens) each."""
    count = max(map(len, rows))
    ids = torch.tensor([list(row) + [0] * (count - len(row)) for row in rows])
    return ids, torch.tensor([[True] * len(row) + [False] * (count - len(row)) for row in rows])


def followed(batch: dict[str, torch.Tensor], tokens: torch.Tensor, there: torch.Tensor) -> dict[str, torch.Tensor]:
    """A batch of prompts with given tokens behind them, all but the last, which nothing is predicted from."""
    ids, mask, positions = (batch[name].cpu() for name in ("input_ids", "attention_mask", "position_ids"))
    steps = torch.arange(1, tokens.shape[1])
    return {
        "input_ids": torch.cat([ids, tokens[:, :-1]], dim=1),
        "attention_mask": torch.cat([mask, there[:, :-1].to(mask.dtype)], dim=1),
        "position_ids": torch.cat([positions, positions[:, -1:] + steps], dim=1),
    }


# What follows runs inside a trace, wherever that is: plain functions of tensors.
