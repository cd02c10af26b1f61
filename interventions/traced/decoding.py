"""Greedy decoding of a batch's arms over one prefill: a first step side by side, then step by step.

Runs inside a session, wherever that is: tuples and plain functions of tensors and of an nnsight model.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache

from interventions.traced.blocks import Batch, Blocks, Network, hidden
from interventions.traced.caching import branched, cached, keys_values, tail_mask
from interventions.traced.edits import (
    LATER,
    WIDE,
    ArmPlan,
    RowEdits,
    Unsteered,
    apply_edit,
    first_alike,
    row_edits,
    with_bias,
)
from interventions.traced.gating import Gate
from interventions.traced.next_token import Processed, kl, most_probable, processed

LEAVE = 8  # copying a row's cache, which leaving takes of all rows, costs about an eighth of the row's next step


class Decoding(NamedTuple):
    """How to decode.

    Attributes:
        steps: New tokens, at most.
        side_by_side: Whether the model takes a mask of who sees whom, so that arms may share a first step.
        refusing: Ids of the refusal tokens.
        ending: Ids that end an answer.
        gates: What gated arms go by.
        top_k: How many of the most probable first tokens to give; 0 gives neither them nor the KL divergence.
        rules: What a generation_config asks of greedy decoding, of `next_token.PROCESSORS`.
    """

    steps: int
    side_by_side: bool
    refusing: torch.Tensor
    ending: torch.Tensor
    gates: list[Gate]
    top_k: int
    rules: Mapping[str, Any]


class FirstPosition(NamedTuple):
    """Figures of the first generated position, (rows, arms) each, on the CPU; None for what was not asked for.

    Attributes:
        refusal: Probability of all refusal tokens.
        kl: KL(unsteered ‖ arm), nats, float64.
        top_ids: (rows, arms, k) the most probable tokens.
        top_shares: Their probabilities.
        own_ids: (rows, 1, k) the same of the unsteered model.
        own_shares: Their probabilities.
    """

    refusal: torch.Tensor | None = None
    kl: torch.Tensor | None = None
    top_ids: torch.Tensor | None = None
    top_shares: torch.Tensor | None = None
    own_ids: torch.Tensor | None = None
    own_shares: torch.Tensor | None = None


class Decoded(NamedTuple):
    """Of arms that decoded together, on the CPU: (rows, arms, steps) tokens, (rows, arms) the rest."""

    tokens: torch.Tensor
    vector: torch.Tensor
    strength: torch.Tensor
    first: FirstPosition


class Rows(NamedTuple):
    """Rows that decode: their masks (rows, columns), last positions (rows, 1), and which of rows × arms each is."""

    mask: torch.Tensor
    position: torch.Tensor
    which: torch.Tensor


def decoded(
    network: Network,
    blocks: Blocks,
    batch: Batch,
    cache: DynamicCache,
    plans: Sequence[ArmPlan],
    seen: Unsteered,
    how: Decoding,
) -> Decoded:
    """Figures and tokens of arms that decode together.

    Args:
        network: The nnsight model.
        blocks: Those that the arms edit.
        batch: On the model's device.
        cache: Of every column but the last; the same afterwards. Arms of a wide scope compute all columns anew.
        plans: The arms.
        seen: What the unsteered look gave.
        how: How to decode.
    """
    rows, many, wide = len(batch["input_ids"]), len(plans), plans[0].scope in WIDE
    edits = row_edits(plans, seen, how.gates, [number for number, _ in blocks], batch["input_ids"].device)
    alive, back = first_alike(plans, edits).unique(return_inverse=True)
    stepped = None
    if how.side_by_side and not wide:
        stepped = side_by_side(network, blocks, batch, cache, edits, alive, many, how.steps > 1)
    logits, past = stepped or one_by_one(network, blocks, batch, None if wide else cache, edits, alive, many)
    logits = with_bias(logits, plans, seen, how.gates, alive)
    first = first_position(logits, seen, how, alive // many, back.view(rows, many))
    whose = alive // many
    rules = processed(how.rules, batch, whose, how.ending, how.steps)
    tokens = most_probable(logits, rules, torch.arange(len(whose)), whose[:, None][:, :0])
    del logits
    if past is not None and how.steps > 1:
        later = [at for at in blocks if any(plan.scope in LATER and at[0] in plan.layers for plan in plans)]
        start = Rows(batch["attention_mask"][whose], batch["position_ids"][whose, -1:], alive)
        tokens = continued(network, later, past, edits, tokens, start, how, rules)
    vector, strength = (part.view(rows, many).cpu() for part in (edits.vector, edits.strength))
    return Decoded(tokens[back].view(rows, many, -1).cpu(), vector, strength, first)


def side_by_side(
    network: Network,
    blocks: Blocks,
    batch: Batch,
    cache: DynamicCache,
    edits: RowEdits,
    alive: torch.Tensor,
    many: int,
    goes_on: bool,
) -> tuple[torch.Tensor, DynamicCache | None] | None:
    """The last prompt token of every arm beside the other arms', under a mask: logits (alive, vocabulary) and, to go on with, caches.

    Each row takes all ways that any row takes. None where something overflowed, since it reaches those beside it: no
    weight times NaN is NaN.
    """
    ids, places = batch["input_ids"], batch["position_ids"]
    rows, width = ids.shape
    ways = (alive % many).unique()
    keep = len(ways)
    slots = (torch.arange(rows, device=ids.device)[:, None] * many + ways).flatten()
    inputs = {
        "input_ids": ids[:, -1:].expand(-1, keep),
        "position_ids": places[:, -1:].expand(-1, keep),
        "attention_mask": tail_mask(batch["attention_mask"][:, :-1], torch.eye(keep, device=ids.device)),
    }
    logits = edited_pass(network, blocks, inputs, cache, edits, slots, keep)
    if keep > 1 and bool(logits.isnan().any()):
        cache.crop(-keep)
        return None
    if len(slots) > len(alive):
        logits = logits[torch.searchsorted(slots, alive)]
    past = branched(cache, alive // many, torch.searchsorted(ways, alive % many), width - 1) if goes_on else None
    cache.crop(-keep)
    return logits, past


def one_by_one(
    network: Network,
    blocks: Blocks,
    batch: Batch,
    cache: DynamicCache | None,
    edits: RowEdits,
    alive: torch.Tensor,
    many: int,
) -> tuple[torch.Tensor, DynamicCache]:
    """Each arm's rows by themselves: logits (alive, vocabulary) and caches; of whole prompts without a cache to go on from."""
    whose = alive // many
    past = cached([] if cache is None else keys_values(cache))
    past.batch_select_indices(whose)
    start = 0 if cache is None else batch["input_ids"].shape[1] - 1
    inputs = {name: batch[name][whose, start:] for name in ("input_ids", "position_ids")}
    inputs["attention_mask"] = batch["attention_mask"][whose]
    return edited_pass(network, blocks, inputs, past, edits, alive, 1, wide=cache is None), past


def edited_pass(
    network: Network,
    blocks: Blocks,
    inputs: Batch,
    past: DynamicCache,
    edits: RowEdits,
    slots: torch.Tensor,
    keep: int,
    wide: bool = False,
) -> torch.Tensor:
    """One pass over prompts' ends in which every slot is edited: logits (slots, vocabulary) of the last `keep` columns."""
    with network.trace(inputs, past_key_values=past, use_cache=True, logits_to_keep=keep):
        for number, block in blocks:
            states = hidden(block.output)
            apply_edit(states.view(len(slots), -1, states.shape[-1]), edits.layers[number], slots, True, wide)
        logits = network.output.logits[:, -keep:, :].float().flatten(0, 1).to(slots.device)
    return logits  # noqa: RET504  # a trace gives its values once its block has ended


def continued(
    network: Network,
    blocks: Blocks,
    past: DynamicCache,
    edits: RowEdits,
    first: torch.Tensor,
    start: Rows,
    how: Decoding,
    rules: Processed,
) -> torch.Tensor:
    """All tokens (rows, steps) of rows that have their first one (rows, 1), greedily, until every row has ended.

    Args:
        network: The nnsight model.
        blocks: Those that are edited beyond the prompt.
        past: A cache of the rows' prompts; it grows.
        edits: Of `row_edits`.
        first: The first tokens.
        start: The rows, at the ends of their prompts.
        how: How to decode.
        rules: What a generation_config asks of each row.
    """
    mask, places, which = start
    now = first
    tokens = torch.zeros(len(first), how.steps, dtype=torch.long, device=first.device)
    tokens[:, :1] = first
    at = torch.arange(len(first), device=first.device)  # the rows that go on
    over = torch.isin(first[:, 0], how.ending)
    for step in range(1, how.steps):
        ended = int(over.sum())
        if ended == len(over):
            break
        places = places + 1
        mask = torch.cat([mask, torch.ones_like(places)], dim=1)
        if ended * LEAVE * (how.steps - step) >= len(over):
            stay = (~over).nonzero()[:, 0]
            past.batch_select_indices(stay)
            now, places, mask, which, at, over = (part[stay] for part in (now, places, mask, which, at, over))
        inputs = {"input_ids": now, "attention_mask": mask, "position_ids": places}
        with network.trace(inputs, past_key_values=past, use_cache=True, logits_to_keep=1):
            for number, block in blocks:
                apply_edit(hidden(block.output), edits.layers[number], which, False, False)
            logits = network.output.logits[:, -1, :]
        now = most_probable(logits, rules, at, tokens[at, :step]).to(tokens.device)
        tokens[at, step] = now[:, 0]
        over = over | torch.isin(now[:, 0], how.ending)
    return tokens


def first_position(
    logits: torch.Tensor, seen: Unsteered, how: Decoding, whose: torch.Tensor, back: torch.Tensor
) -> FirstPosition:
    """Figures of the first generated position.

    Args:
        logits: (slots, vocabulary).
        seen: What the unsteered look gave.
        how: What is asked for.
        whose: (slots,) the row that each is of.
        back: (rows, arms) the slot that each row takes in each arm.
    """
    figures = FirstPosition()
    if len(how.refusing):
        shares = (logits[:, how.refusing] - logits.logsumexp(-1, keepdim=True)).exp()
        figures = figures._replace(refusal=shares.sum(-1)[back].cpu())
    if how.top_k:
        assert seen.logits is not None
        q, p = logits.double().log_softmax(-1), seen.logits.double().log_softmax(-1)
        best, own = (x.exp().topk(min(how.top_k, x.shape[-1])) for x in (q, p))
        figures = figures._replace(
            kl=kl(p[whose], q)[back].cpu(),
            top_ids=best.indices[back].cpu(),
            top_shares=best.values[back].cpu(),
            own_ids=own.indices[:, None].cpu(),
            own_shares=own.values[:, None].cpu(),
        )
    return figures
