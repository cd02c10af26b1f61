"""Probabilities of given tokens, unsteered and steered."""

from typing import Any

import torch

from interventions.traced.edits import change


def parted(inputs: dict[str, torch.Tensor], at: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Inputs before a position, and from it on with the whole mask, as a model with a cache takes them."""
    before = {name: value[:, :at] for name, value in inputs.items()}
    after = {name: value[:, at:] for name, value in inputs.items()}
    return before, after | {"attention_mask": inputs["attention_mask"]}


def change_in_parts(hidden: torch.Tensor, edit: dict[str, Any], prompt: int, wide: bool) -> None:
    """Edit a block's output in place: the prompt's positions, the first `prompt` ones, and those of given tokens.

    Of the prompt the last position is edited, or, if `wide`, every one; the others where the arm's scope goes on.
    """
    alive = torch.arange(len(hidden), device=hidden.device)
    change(hidden[:, :prompt], edit, alive, True, wide)
    change(hidden[:, prompt:], edit, alive, False, True)


def compared(
    logits: torch.Tensor, own: torch.Tensor | None, tokens: torch.Tensor, there: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """−log p of the tokens and KL(own ‖ arm), (rows, arms, tokens) each; float64, a row at a time.

    Args:
        logits: (rows · arms, tokens, vocabulary); row r's arm a stands at r · arms + a.
        own: (rows, tokens, vocabulary), unsteered; without it the second result means nothing.
        tokens: (rows, tokens) ids.
        there: (rows, tokens) whether there is one.
    """
    rows, many = len(tokens), len(logits) // len(tokens)
    nll = torch.zeros(rows, many, tokens.shape[1], dtype=torch.float64)
    kl = torch.zeros_like(nll)
    for row in range(rows):
        p = None if own is None else own[row].double().log_softmax(-1)
        for arm in range(many):
            q = logits[row * many + arm].double().log_softmax(-1)
            nll[row, arm] = -(q.gather(-1, tokens[row][:, None])[:, 0] * there[row]).cpu()
            if p is not None:
                kl[row, arm] = ((p.exp() * (p - q)).sum(-1) * there[row]).cpu()
    return nll, kl
