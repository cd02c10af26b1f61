"""Greedy decoding of a batch's arms over one prefill: a look, a first step side by side, then step by step.

Runs inside a session, wherever that is: plain functions of tensors and of an nnsight model.
"""

from collections.abc import Sequence
from typing import Any

import torch

from interventions.traced.caching import branched, cached
from interventions.traced.edits import LATER, WIDE, biased, change, prepared, twins
from interventions.traced.masks import tail_mask

LEAVE = 8  # copying a row's cache, which leaving takes of all rows, costs about an eighth of the row's next step


def looked(
    network: Any, readers: Sequence[tuple[int, Any]], batch: dict[str, torch.Tensor], cache: Any
) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
    """The unsteered last position: (rows, d_model) of each reader's block, and logits (rows, vocabulary); float32."""
    last = {name: batch[name][:, -1:] for name in ("input_ids", "position_ids")}
    inputs = last | {"attention_mask": batch["attention_mask"]}
    with network.trace(inputs, past_key_values=cache, use_cache=True, logits_to_keep=1):
        states = {}
        for number, block in readers:
            output = block.output
            hidden = output[0] if isinstance(output, tuple) else output
            states[number] = hidden[:, -1, :].float()
        logits = network.output.logits[:, -1, :].float()
    cache.crop(-1)
    return states, logits


def decoded(
    network: Any,
    blocks: Sequence[tuple[int, Any]],
    batch: dict[str, torch.Tensor],
    cache: Any,
    arms: list[dict[str, Any]],
    seen: dict[str, Any],
    options: dict[str, Any],
) -> dict[str, Any]:
    """Figures and tokens of arms that decode together, (rows, arms, …), on the CPU.

    Args:
        network: The nnsight model.
        blocks: Number and envoy of each block that the arms edit.
        batch: On the model's device.
        cache: Of every column but the last; the same afterwards. Arms of a wide scope compute all columns anew.
        arms: Plans.
        seen: What the unsteered pass gave.
        options: Of `answer`.
    """
    ids, places = batch["input_ids"], batch["position_ids"]
    (rows, width), many, wide = ids.shape, len(arms), arms[0]["scope"] in WIDE
    side_by_side = options["side_by_side"] and not wide
    changes = prepared(arms, seen, options["gate"], [number for number, _ in blocks], ids.device)
    twin = twins(arms, changes)
    alive, back = twin.unique(return_inverse=True)
    whose, ways = alive // many, (alive % many).unique()
    # Rows of the first pass among rows × arms: side by side, each row takes all ways that any row takes.
    slots = (torch.arange(rows, device=ids.device)[:, None] * many + ways).flatten() if side_by_side else alive
    past, keep = cache, len(ways) if side_by_side else 1
    if side_by_side:
        mask = tail_mask(batch["attention_mask"][:, :-1], torch.eye(keep, device=ids.device))
        inputs = {"input_ids": ids[:, -1:].expand(-1, keep), "position_ids": places[:, -1:].expand(-1, keep)}
    else:
        past = cached([] if wide else cache)
        past.batch_select_indices(whose)
        start, mask = 0 if wide else width - 1, batch["attention_mask"][whose]
        inputs = {"input_ids": ids[whose, start:], "position_ids": places[whose, start:]}
    inputs["attention_mask"] = mask
    with network.trace(inputs, past_key_values=past, use_cache=True, logits_to_keep=keep):
        for number, block in blocks:
            output = block.output
            hidden = output[0] if isinstance(output, tuple) else output
            hidden = hidden.view(len(slots), -1, hidden.shape[-1])
            change(hidden, changes[number], slots, True, wide)
        logits = network.output.logits[:, -keep:, :].float().flatten(0, 1)
    if keep > 1 and bool(logits.isnan().any()):  # what overflows reaches those beside it: no weight times NaN is NaN
        cache.crop(-keep)
        return decoded(network, blocks, batch, cache, arms, seen, options | {"side_by_side": False})
    if len(slots) > len(alive):
        logits = logits[torch.searchsorted(slots, alive)]
    logits = biased(logits, arms, seen, options["gate"], alive)
    figures = first_position(logits, seen, options["refusing"], whose, back.view(rows, many), options["top_k"])
    tokens = logits.argmax(-1)[:, None]
    del logits
    if options["steps"] > 1 and side_by_side:
        past = branched(cache, whose, torch.searchsorted(ways, alive % many), width - 1)
    if side_by_side:
        cache.crop(-keep)
    if options["steps"] > 1:
        later = [pair for pair in blocks if any(arm["scope"] in LATER and arm["layer"] == pair[0] for arm in arms)]
        start = batch["attention_mask"][whose], places[whose, -1:], alive
        tokens = continued(network, later, past, changes, tokens, start, options)
    figures["tokens"] = tokens[back].view(rows, many, -1).cpu()
    return figures | {name: changes[name].view(rows, many).cpu() for name in ("vector", "strength")}


def continued(
    network: Any,
    blocks: Sequence[tuple[int, Any]],
    past: Any,
    changes: dict[Any, Any],
    first: torch.Tensor,
    start: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    options: dict[str, Any],
) -> torch.Tensor:
    """All tokens (rows, steps) of rows that have their first one (rows, 1), greedily, until every row has ended.

    Args:
        network: The nnsight model.
        blocks: Number and envoy of each block that is edited beyond the prompt.
        past: A cache of the rows' prompts; it grows.
        changes: Of `prepared`.
        first: The first tokens.
        start: Mask and last position of the prompts, and which of rows × arms each row is.
        options: Of `answer`.
    """
    whole, places, alive = start
    steps, ending, now = options["steps"], options["ending"], first
    tokens = torch.zeros(len(first), steps, dtype=torch.long, device=first.device)
    tokens[:, :1] = first
    at = torch.arange(len(first), device=first.device)  # the rows that go on
    over = torch.isin(first[:, 0], ending)
    for step in range(1, steps):
        ended = int(over.sum())
        if ended == len(over):
            break
        places = places + 1
        whole = torch.cat([whole, torch.ones_like(places)], dim=1)
        if ended * LEAVE * (steps - step) >= len(over):
            stay = (~over).nonzero()[:, 0]
            past.batch_select_indices(stay)
            now, places, whole, alive, at, over = (t[stay] for t in (now, places, whole, alive, at, over))
        inputs = {"input_ids": now, "attention_mask": whole, "position_ids": places}
        with network.trace(inputs, past_key_values=past, use_cache=True, logits_to_keep=1):
            for number, block in blocks:
                output = block.output
                hidden = output[0] if isinstance(output, tuple) else output
                change(hidden, changes[number], alive, False, False)
            logits = network.output.logits[:, -1, :]
        now = logits.argmax(-1)[:, None]
        tokens[at, step] = now[:, 0]
        over = over | torch.isin(now[:, 0], ending)
    return tokens


def first_position(
    logits: torch.Tensor,
    seen: dict[str, Any],
    refusing: torch.Tensor,
    whose: torch.Tensor,
    back: torch.Tensor,
    top_k: int,
) -> dict[str, Any]:
    """Figures of the first generated position, (rows, arms) each; KL in float64.

    Args:
        logits: (slots, vocabulary).
        seen: What the unsteered pass gave.
        refusing: Ids of the refusal tokens.
        whose: (slots,) the row that each is of.
        back: (rows, arms) the slot that each row takes in each arm.
        top_k: How many of the most probable tokens; 0 gives neither them nor the KL divergence.
    """
    figures: dict[str, Any] = dict.fromkeys(("refusal", "kl", "top_ids", "top_shares"))
    if len(refusing):
        shares = (logits[:, refusing] - logits.logsumexp(-1, keepdim=True)).exp()
        figures["refusal"] = shares.sum(-1)[back].cpu()
    if top_k:
        q = logits.double().log_softmax(-1)
        p = seen["logits"].double().log_softmax(-1)
        best, own = (x.exp().topk(min(top_k, x.shape[-1])) for x in (q, p))
        figures["kl"] = (p.exp()[whose] * (p[whose] - q)).sum(-1)[back].cpu()
        figures |= {"top_ids": best.indices[back].cpu(), "top_shares": best.values[back].cpu()}
        figures |= {"own_ids": own.indices[:, None].cpu(), "own_shares": own.values[:, None].cpu()}
    return figures
