"""Teacher forcing: how probable given tokens are, one after another, unsteered and in every arm.

Nothing is decoded: all arms read the same tokens, so that what differs is the steering alone. As in `steering`, arms
share one prefill wherever their scope lets them, and routes and gates read the unsteered last prompt token. An edit
covers the positions that it would cover if the given tokens had just been generated.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from interventions.backends.ndif.result import expect
from interventions.model.model import Model
from interventions.steering.answer import NO_GATES, Gating, edited_blocks, marks_of
from interventions.traced.blocks import Batch
from interventions.traced.edits import WIDE, ArmPlan
from interventions.traced.teacher_forcing import Given, forced

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
    batch: Batch,
    given: Sequence[Sequence[int]],
    plans: Sequence[ArmPlan],
    *,
    refusal_ids: Sequence[int] = (),
    gating: Gating = NO_GATES,
    divergence: bool = True,
    reference: Batch | None = None,
) -> TeacherForced:
    """Probabilities of given tokens behind a batch of prompts, in every arm.

    Args:
        model: An open model.
        batch: Left-padded prompts of B rows, of `batches.pad_batch`.
        given: B lists of token ids, none empty, that follow the prompts.
        plans: A arms in tensors.
        refusal_ids: Token ids of the refusal tokens.
        gating: What gated arms go by.
        divergence: Whether to compute `kl`, too.
        reference: Prompts whose unsteered distributions `kl` is measured from; default `batch` itself.
    """
    path = list(model.layers)
    rows, width = batch["input_ids"].shape
    tokens, there = right_padded(given)
    groups = _groups(plans, max(1, most_rows(model, tokens.shape[1]) // rows))
    asked = Given(
        width=width,
        whole=followed(batch, tokens, there),
        reference=None if reference is None else followed(reference, tokens, there),
        tokens=tokens,
        there=there,
        refusing=torch.tensor(list(refusal_ids), dtype=torch.long),
        gates=list(gating.gates),
        marks=marks_of(path, gating.gates, (), gating.weights),
        looks=(divergence and reference is None) or any(plan.routed or plan.gate >= 0 for plan in plans),
        divergence=divergence,
    )
    arms = [[plans[at] for at in group] for group in groups]
    out = forced(model.nnsight, model.backend.nnsight(model.nnsight), path[-1],
                 [(some, edited_blocks(model, some)) for some in arms], asked)  # fmt: skip
    order = [at for group in groups for at in group]
    back = torch.tensor([order.index(at) for at in range(len(plans))])
    shape = (rows, len(plans), tokens.shape[1])
    nll = expect(out.get("nll"), shape, "log-likelihoods")
    kl = expect(out.get("kl"), shape, "divergences")[:, back] if divergence else None
    return TeacherForced(nll[:, back], kl)


def _groups(plans: Sequence[ArmPlan], most: int) -> list[list[int]]:
    """Arms that run together: those that share a cache, and those that don't, in portions."""
    groups = []
    for wide in (False, True):
        arms = [at for at, plan in enumerate(plans) if (plan.scope in WIDE) == wide]
        groups += [arms[at : at + most] for at in range(0, len(arms), most)]
    return groups


def right_padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and which of them are there, (rows, tokens) each."""
    count = max(map(len, rows))
    ids = torch.tensor([list(row) + [0] * (count - len(row)) for row in rows])
    return ids, torch.tensor([[True] * len(row) + [False] * (count - len(row)) for row in rows])


def followed(batch: Batch, tokens: torch.Tensor, there: torch.Tensor) -> Batch:
    """A batch of prompts with given tokens behind them, all but the last, which nothing is predicted from."""
    ids, mask, positions = (batch[name].cpu() for name in ("input_ids", "attention_mask", "position_ids"))
    steps = torch.arange(1, tokens.shape[1])
    return {
        "input_ids": torch.cat([ids, tokens[:, :-1]], dim=1),
        "attention_mask": torch.cat([mask, there[:, :-1].to(mask.dtype)], dim=1),
        "position_ids": torch.cat([positions, positions[:, -1:] + steps], dim=1),
    }


# What follows runs inside a trace, wherever that is: plain functions of tensors.
