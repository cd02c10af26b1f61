"""Edits of the residual stream: what is done to which row, as its arm's route decides.

Runs inside a trace, wherever that is: plain functions of tensors.
"""

from typing import Any

import torch

WIDE = ("prompt", "all")  # scopes that change positions before the last, so that their rows can share no cache
LATER = ("generated", "all")  # scopes that go on after the prompt


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
            "later": torch.tensor([arm["scope"] in LATER for arm in arms], device=device).repeat(len(vector)),
        }
    return changes


def twins(arms: list[dict[str, Any]], changes: dict[Any, Any]) -> torch.Tensor:
    """For each of rows × arms the first of its row that does the very same to it, so that it is computed once.

    Under a gate many rows are left as they are, and arms that differ in one of the gate's strengths alone are the same
    for half of the rows.

    Args:
        arms: A plans.
        changes: Of `prepared` for them.
    """
    many = len(arms)
    layers = [name for name in changes if isinstance(name, int)]
    parts = [
        {
            name: changes[layer][name].unflatten(0, (-1, many))
            for name in ("add", "unit")
            if changes[layer][name] is not None
        }
        for layer in layers
    ]
    rows = len(changes["vector"]) // many
    first = torch.arange(many, device=changes["vector"].device).repeat(rows, 1)
    plain = [arm["lowrank"] is None and arm["bias"] is None for arm in arms]
    idle = [
        torch.stack([(part[:, at] == 0).all(-1) for kinds in parts for part in kinds.values()]).all(0)
        for at in range(many)
    ]
    for at in range(many):
        for before in reversed(range(at)):
            if not (plain[at] and plain[before]):
                continue
            same = idle[at] & idle[before]
            if all(arms[at][name] == arms[before][name] for name in ("layer", "scope", "operation")):
                kinds = parts[layers.index(arms[at]["layer"])]  # at other layers both do nothing
                same = same | torch.stack([(part[:, at] == part[:, before]).all(-1) for part in kinds.values()]).all(0)
            first[:, at] = torch.where(same, before, first[:, at])
    return (first + torch.arange(rows, device=first.device)[:, None] * many).flatten()


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
    logits: torch.Tensor,
    arms: list[dict[str, Any]],
    seen: dict[str, Any],
    gate: dict[str, Any] | None,
    slots: torch.Tensor | None = None,
) -> torch.Tensor:
    """First logits (slots, vocabulary) with the strength of `logit-bias` arms on the refusal tokens.

    `slots`: which of rows × arms they are of; all of them if None.
    """
    if all(arm["bias"] is None for arm in arms):
        return logits
    slots = torch.arange(len(logits), device=logits.device) if slots is None else slots
    shaped = logits.clone()
    for at, arm in enumerate(arms):
        if arm["bias"] is None:
            continue
        _, strength = chosen({**arm, "routed": False}, seen, gate)
        mine = (slots % len(arms) == at).nonzero()[:, 0]
        added = strength.to(logits.device, logits.dtype)[slots[mine] // len(arms)]
        shaped[mine[:, None], torch.tensor(arm["bias"], device=logits.device)] += added[:, None]
    return shaped
