"""Steering: edits of the residual stream, row by row, in one session that computes nothing twice.

All arms of a batch share one prefill: with the scopes `prompt-last` and `generated` every position before the last is
the same for all of them. One look at the last position, unsteered, gives what routes and gates read. Then every arm's
rows decode together over copies of that cache, and rows that have finished leave.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nnsight
import torch
from transformers import DynamicCache

from interventions.models import Model

SCOPES = {
    "prompt-last": "the last prompt token only",
    "prompt": "every prompt token",
    "generated": "every position that a token is generated from: the last prompt token and each generated one "
    "(the papers' scope)",
    "all": "every prompt token and each generated one",
}
WIDE = ("prompt", "all")  # these change positions before the last, so that their rows can share no cache
LATER = ("generated", "all")
LEAVE = 0.25  # finished rows leave once they are such a share of the batch: leaving copies the cache


@dataclass(frozen=True)
class Gate:
    """A probe as a trace needs it: score = sigmoid((h − mean)·weight + bias) of block `layer`'s output."""

    layer: int
    weight: torch.Tensor
    mean: torch.Tensor
    bias: torch.Tensor
    threshold: torch.Tensor


@dataclass(frozen=True)
class Answers:
    """What came out of B rows and A arms.

    Attributes:
        tokens: (B, A, steps) new tokens; what follows a row's stop token means nothing.
        refusal: (B, A) probability of all refusal tokens at the first generated position; None without any.
        vector: (B, A) number of the vector each row got.
        strength: (B, A) how strongly.
        gate: (B,) the probe's score, or None.
        residual: (B, layers, d_model) of the unsteered last position, float32, or None.
        kl: (B, A) KL(unsteered ‖ arm) of the first generated position, nats, float64, or None.
        top: Token ids and probabilities (B, A + 1, k) at the first generated position, unsteered first, or None.
    """

    tokens: torch.Tensor
    refusal: torch.Tensor | None
    vector: torch.Tensor
    strength: torch.Tensor
    gate: torch.Tensor | None
    residual: torch.Tensor | None
    kl: torch.Tensor | None
    top: tuple[torch.Tensor, torch.Tensor] | None


def answer(
    model: Model,
    batch: dict[str, torch.Tensor],
    plans: Sequence[dict[str, Any]],
    *,
    max_new_tokens: int,
    refusal_ids: Sequence[int] = (),
    stops: Sequence[int] = (),
    gate: Gate | None = None,
    read_layers: Sequence[int] = (),
    top_k: int = 0,
    together: int = 1 << 13,
) -> Answers:
    """Greedy continuations of a batch in every arm.

    Args:
        model: An open model.
        batch: Left-padded batch of B rows, of `encoding.pad_batch`.
        plans: A arms in tensors, of `routes.Plan.shipped`.
        max_new_tokens: At most so many tokens; 0 computes the first position's figures alone.
        refusal_ids: Token ids of the refusal tokens.
        stops: Token ids that end an answer.
        gate: The probe, if an arm is gated or its score is wanted.
        read_layers: Ascending blocks to read the unsteered last position of.
        top_k: How many of the most probable first tokens to give, with the KL divergence; 0 gives neither.
        together: Tokens, padded and new, that may be decoded at once; more arms go in turns.
    """
    network, path = model.nnsight, list(model.layers)
    rows, width = batch["input_ids"].shape
    groups = _groups(plans, rows, width + max_new_tokens, together)
    look = bool(refusal_ids) or gate is not None or bool(read_layers) or top_k > 0
    wanted: list[int] = sorted({*read_layers, *([gate.layer] if gate is not None else [])})
    readers = [(number, path[number]) for number in wanted]
    editors = [
        [(at, block) for at, block in enumerate(path) if at in {plans[arm]["layer"] for arm in group}]
        for group in groups
    ]
    gating = None if gate is None else vars(gate)
    ids, mask, positions = batch["input_ids"], batch["attention_mask"], batch["position_ids"]
    refusing, ending = torch.tensor(list(refusal_ids), dtype=torch.long), torch.tensor(list(stops), dtype=torch.long)
    kept_layers, plans, leave, steps = list(read_layers), list(plans), LEAVE, max(max_new_tokens, 1)
    backend = model.door.backend(network)
    with network.session(backend=backend):
        out = nnsight.save({})
        with torch.no_grad():
            device = next(network._module.parameters()).device
            ids, mask, positions, refusing, ending = (t.to(device) for t in (ids, mask, positions, refusing, ending))
            cache = DynamicCache()
            seen: dict[str, Any] = {"tokens": None, "score": None, "logits": None}
            if width > 1:
                before = {"input_ids": ids[:, :-1], "attention_mask": mask[:, :-1], "position_ids": positions[:, :-1]}
                with network.trace(before, past_key_values=cache, use_cache=True, logits_to_keep=1) as tracer:
                    _end = path[-1].output
                    tracer.stop()
            if look:
                last = {"input_ids": ids[:, -1:], "attention_mask": mask, "position_ids": positions[:, -1:]}
                with network.trace(last, past_key_values=cache, use_cache=True, logits_to_keep=1):
                    states = {}
                    for number, block in readers:
                        output = block.output
                        hidden = output[0] if isinstance(output, tuple) else output
                        states[number] = hidden[:, -1, :].float()
                    unsteered = network.output.logits[:, -1, :].float()
                cache.crop(-1)
                seen["logits"] = unsteered
                seen["tokens"] = unsteered[:, refusing] if len(refusing) else None
                if gating is not None:
                    seen["score"] = scored(states[gating["layer"]], gating)
                    out["gate"] = seen["score"].cpu()
                if kept_layers:
                    out["residual"] = torch.stack([states[number].cpu() for number in kept_layers], dim=1)
            found = []
            for group, blocks in zip(groups, editors, strict=True):
                arms = [plans[at] for at in group]
                many, wide = len(arms), arms[0]["scope"] in WIDE
                changes = prepared(arms, seen, gating, [number for number, _ in blocks], device)
                if wide or width == 1:
                    past = DynamicCache()
                    now, places = ids.repeat_interleave(many, 0), positions.repeat_interleave(many, 0)
                else:
                    past = DynamicCache([pair[:2] for pair in cache])
                    past.batch_repeat_interleave(many)
                    now, places = ids[:, -1:].repeat_interleave(many, 0), positions[:, -1:].repeat_interleave(many, 0)
                whole = mask.repeat_interleave(many, 0)
                alive = torch.arange(rows * many, device=device)
                over = torch.zeros(rows * many, dtype=torch.bool, device=device)
                tokens = torch.zeros(rows * many, steps, dtype=torch.long, device=device)
                for step in range(steps):
                    inputs = {"input_ids": now, "attention_mask": whole, "position_ids": places}
                    with network.trace(inputs, past_key_values=past, use_cache=True, logits_to_keep=1):
                        for number, block in blocks:
                            output = block.output
                            hidden = output[0] if isinstance(output, tuple) else output
                            change(hidden, changes[number], alive, step == 0, wide)
                        logits = network.output.logits[:, -1, :].float()
                    if step == 0:
                        logits = biased(logits, arms, seen, gating)
                        found.append(first_position(logits, seen, refusing, many, top_k))
                    picked = logits.argmax(-1)
                    tokens[alive, step] = picked
                    over = over | torch.isin(picked, ending)
                    ended = int(over.sum())
                    if ended == len(over) or step == steps - 1:
                        break
                    now, places = picked[:, None], places[:, -1:] + 1
                    whole = torch.cat([whole, torch.ones_like(now)], dim=1)
                    if ended >= leave * len(over):
                        stay = (~over).nonzero()[:, 0]
                        past.batch_select_indices(stay)
                        now, places, whole, alive, over = (t[stay] for t in (now, places, whole, alive, over))
                found[-1] |= {"tokens": tokens.view(rows, many, steps).cpu()}
                found[-1] |= {name: changes[name].view(rows, many).cpu() for name in ("vector", "strength")}
            out["found"] = found
    return _assembled(out, groups, len(plans))


def unsteered(rows: int, width: int) -> dict[str, Any]:
    """The plan of an arm that changes nothing."""
    nothing = {"layer": 0, "scope": "generated", "operation": "none", "routed": False, "gated": False, "benign": 0.0,
               "harmful": 0.0, "lowrank": None, "bias": None}  # fmt: skip
    return nothing | {
        "table": torch.zeros(1, width),
        "of_token": torch.zeros(0, dtype=torch.long),
        "given": torch.zeros(rows, dtype=torch.long),
        "strengths": torch.zeros(rows, dtype=torch.float64),
    }


def _groups(plans: Sequence[dict[str, Any]], rows: int, tokens: int, together: int) -> list[list[int]]:
    """Arms that decode together: those that share a cache, and those that don't, in portions."""
    most = max(1, together // max(1, rows * tokens))
    groups = []
    for wide in (False, True):
        arms = [at for at, plan in enumerate(plans) if (plan["scope"] in WIDE) == wide]
        groups += [arms[at : at + most] for at in range(0, len(arms), most)]
    return groups


def _assembled(out: dict[str, Any], groups: list[list[int]], arms: int) -> Answers:
    """The groups' arms in their first order."""
    order = [at for group in groups for at in group]
    back = torch.tensor([order.index(at) for at in range(arms)])

    def joined(name: str) -> torch.Tensor | None:
        parts = [part[name] for part in out["found"]]
        return None if parts[0] is None else torch.cat(parts, dim=1)[:, back]

    tokens, vector, strength = joined("tokens"), joined("vector"), joined("strength")
    assert tokens is not None and vector is not None and strength is not None
    top = None
    kl, chosen, shares = joined("kl"), joined("top_ids"), joined("top_shares")
    if chosen is not None and shares is not None:
        first = out["found"][0]
        top = torch.cat([first["own_ids"], chosen], dim=1), torch.cat([first["own_shares"], shares], dim=1)
    return Answers(tokens, joined("refusal"), vector, strength, out.get("gate"), out.get("residual"), kl, top)


# What follows runs inside a trace, wherever that is: plain functions of tensors.


def scored(hidden: torch.Tensor, gate: dict[str, Any]) -> torch.Tensor:
    """sigmoid((h − mean)·weight + bias): (rows, d_model) -> (rows,)."""
    weight, mean, bias = (gate[name].to(hidden.device) for name in ("weight", "mean", "bias"))
    return torch.sigmoid((hidden - mean) @ weight + bias)


def chosen(
    plan: dict[str, Any], seen: dict[str, Any], gate: dict[str, Any] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's vector (its number) and strength, (rows,) each, as the arm's route decides."""
    vector, strength = plan["given"], plan["strengths"]
    if plan["routed"]:
        vector = plan["of_token"].to(seen["tokens"].device)[seen["tokens"].argmax(-1)]
    if plan["gated"] and gate is not None:
        looks_harmful = seen["score"] >= gate["threshold"].to(seen["score"].device)
        both = torch.tensor([plan["benign"], plan["harmful"]], dtype=torch.float64, device=looks_harmful.device)
        strength = both[looks_harmful.long()]
    return vector, strength


def prepared(
    arms: list[dict[str, Any]], seen: dict[str, Any], gate: dict[str, Any] | None, layers: list[int], device: Any
) -> dict[Any, Any]:
    """What is done at each layer to each of rows × arms: `add`, `unit` to project out, low-rank maps, and for how long.

    Row r's arm a stands at r · arms + a.
    """
    picks = [chosen(arm, seen, gate) for arm in arms]
    vector = torch.stack([pick[0].to(device) for pick in picks], dim=1)
    strength = torch.stack([pick[1].to(device) for pick in picks], dim=1)
    changes: dict[Any, Any] = {"vector": vector.flatten(), "strength": strength.flatten()}
    for layer in layers:
        add, unit, low = [], [], []
        for at, arm in enumerate(arms):
            mine = arm["layer"] == layer and arm["operation"] != "none"
            rows = (
                arm["table"].to(device)[vector[:, at]]
                if mine
                else torch.zeros_like(arm["table"].to(device)[vector[:, at]])
            )
            length = rows.norm(dim=-1, keepdim=True)
            direction = rows / torch.where(length == 0, torch.ones_like(length), length)
            gone = torch.zeros_like(rows)
            if arm["operation"] in ("add", "clamp"):
                gone = strength[:, at, None].float() * rows
            add.append(gone)
            unit.append(direction if arm["operation"] in ("ablate", "clamp") else torch.zeros_like(rows))
            if mine and arm["lowrank"] is not None:
                share = torch.zeros_like(strength, dtype=torch.float32)
                share[:, at] = strength[:, at].float()
                low.append((arm["lowrank"], share.flatten()))
        projecting = any(arm["operation"] in ("ablate", "clamp") and arm["layer"] == layer for arm in arms)
        changes[layer] = {
            "add": torch.stack(add, dim=1).flatten(0, 1),
            "unit": torch.stack(unit, dim=1).flatten(0, 1) if projecting else None,
            "low": low,
            "later": torch.tensor([arm["scope"] in ("generated", "all") for arm in arms], device=device).repeat(
                len(vector)
            ),
        }
    return changes


def change(hidden: torch.Tensor, edit: dict[str, Any], alive: torch.Tensor, first: bool, wide: bool) -> None:
    """Edit a block's output in place: h − (h·u)u + add + U Vᵀ(h − mean), at the last position or, if `wide`, at all.

    Args:
        hidden: (rows, positions, d_model).
        edit: A layer's entry of `prepared`, for all rows that began.
        alive: Which of these `hidden` holds.
        first: Whether this is the prompt; later, rows whose scope ended with it are left as they are.
        wide: Whether every position is edited.
    """
    device, kind = hidden.device, hidden.dtype
    alive = alive.to(edit["add"].device)
    on = torch.ones_like(edit["later"][alive]) if first else edit["later"][alive]
    if not bool(on.any()):
        return
    on = on.to(device)[:, None, None].float()
    place = hidden if wide else hidden[:, -1:, :]
    before = place.float() if edit["unit"] is not None or edit["low"] else place
    delta = (edit["add"][alive].to(device)[:, None, :] * on).to(before.dtype)
    if edit["unit"] is not None:
        unit = edit["unit"][alive].to(device)[:, None, :] * on
        delta = delta - (before * unit).sum(-1, keepdim=True) * unit
    for low, share in edit["low"]:
        up, down, mean = (low[name].to(device) for name in ("U", "V", "mean"))
        moved = up @ low["z"].to(device) if low["mode"] == "fixed" else ((before - mean) @ down) @ up.T
        delta = delta + share[alive].to(device)[:, None, None] * on * moved
    place += delta.to(kind)


def biased(
    logits: torch.Tensor, arms: list[dict[str, Any]], seen: dict[str, Any], gate: dict[str, Any] | None
) -> torch.Tensor:
    """First logits (rows × arms, vocabulary) with the strength of `logit-bias` arms on the refusal tokens."""
    if all(arm["bias"] is None for arm in arms):
        return logits
    shaped = logits.clone().view(-1, len(arms), logits.shape[-1])
    for at, arm in enumerate(arms):
        if arm["bias"] is None:
            continue
        _, strength = chosen({**arm, "routed": False}, seen, gate)
        strength = strength.to(logits.device, logits.dtype)[:, None]
        shaped[:, at, arm["bias"]] += strength
    return shaped.flatten(0, 1)


def first_position(
    logits: torch.Tensor, seen: dict[str, Any], refusing: torch.Tensor, many: int, top_k: int
) -> dict[str, Any]:
    """Figures of the first generated position, (rows, arms) each; KL in float64."""
    shares = logits.softmax(-1)
    rows = len(logits) // many
    figures: dict[str, Any] = dict.fromkeys(("refusal", "kl", "top_ids", "top_shares"))
    if len(refusing):
        figures["refusal"] = shares[:, refusing].sum(-1).view(rows, many).cpu()
    if top_k:
        q = logits.double().log_softmax(-1).view(rows, many, -1)
        p = seen["logits"].double().log_softmax(-1)[:, None, :]
        figures["kl"] = (p.exp() * (p - q)).sum(-1).cpu()
        best = q.exp().topk(min(top_k, q.shape[-1]))
        own = p.exp().topk(min(top_k, q.shape[-1]))
        figures |= {"top_ids": best.indices.cpu(), "top_shares": best.values.cpu()}
        figures |= {"own_ids": own.indices.cpu(), "own_shares": own.values.cpu()}
    return figures
