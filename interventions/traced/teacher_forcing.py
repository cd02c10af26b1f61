"""Teacher forcing: probabilities of given tokens behind a batch of prompts, unsteered and in every arm, in one session."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from collections.abc import Sequence
from typing import NamedTuple

import nnsight
import torch
from transformers import DynamicCache

from interventions.traced.blocks import Batch, Block, Blocks, Network, NnsightBackend, device_of, hidden, on
from interventions.traced.caching import cropped, keys_values
from interventions.traced.edits import (
    WIDE,
    ArmPlan,
    LayerEdit,
    Unsteered,
    apply_edit,
    row_edits,
    with_bias,
)
from interventions.traced.gating import Gate, Marks, added, begun, ended, score, summed


class Given(NamedTuple):
    """Prompts with the tokens that follow them.

    Attributes:
        width: Columns of the prompts.
        whole: Prompts and given tokens, all but the last, which nothing is predicted from.
        reference: The same behind other prompts, whose unsteered distributions KL is measured from; None: these.
        tokens: (rows, tokens) given ids.
        there: (rows, tokens) whether there is one.
        refusing: Ids of the refusal tokens.
        gates: What gated arms go by.
        marks: What these read of the prompts.
        looks: Whether the unsteered distributions behind these prompts are needed.
        divergence: Whether KL is.
    """

    width: int
    whole: Batch
    reference: Batch | None
    tokens: torch.Tensor
    there: torch.Tensor
    refusing: torch.Tensor
    gates: list[Gate]
    marks: Marks
    looks: bool
    divergence: bool


def forced(
    network: Network,
    backend: NnsightBackend,
    last: Block,
    groups: Sequence[tuple[list[ArmPlan], Blocks]],
    given: Given,
) -> dict[str, torch.Tensor | None]:
    """Run the session: `nll` and `kl`, (rows, arms, tokens) each, arms as the groups have them.

    Args:
        network: The nnsight model.
        backend: Where it runs.
        last: Its last block.
        groups: Arms that run together, and the blocks that they edit.
        given: What is read.
    """
    with network.session(backend=backend):
        out = nnsight.save({})
        with torch.no_grad():
            device, count, width = device_of(network, last), given.tokens.shape[1], given.width
            tokens, there, refusing = (part.to(device) for part in (given.tokens, given.there, given.refusing))
            whole = on(device, given.whole)
            before, after = parted(whole, width - 1)
            cache, states = DynamicCache(), begun(given.marks, len(tokens))
            every = torch.arange(len(tokens))
            if width > 1:
                with network.trace(before, past_key_values=cache, use_cache=True, logits_to_keep=1):
                    for number, block in summed(given.marks, slice(width - 1)):
                        added(states, given.marks, number, hidden(block.output), every, slice(width - 1))
                    cache = network.output.past_key_values
            seen, own = Unsteered(), None
            if given.looks:
                with network.trace(after, past_key_values=cache, use_cache=False, logits_to_keep=count):
                    for number, block in given.marks.blocks:
                        here = hidden(block.output)[:, :1, :]
                        added(states, given.marks, number, here, every, slice(width - 1, width))
                        ended(states, number, here, every)
                    own = network.output.logits.float().to(device)
                cropped(cache, width - 1)
                scores = [score(gate, states, own[:, 0], device) for gate in given.gates]
                seen = Unsteered(own[:, 0, refusing] if len(refusing) else None, scores)
            if given.divergence and given.reference is not None:
                with network.trace(on(device, given.reference), use_cache=False, logits_to_keep=count):
                    own = network.output.logits.float().to(device)
            found = []
            for plans, blocks in groups:
                many, wide = len(plans), plans[0].scope in WIDE
                shares = not wide and width > 1
                edits = row_edits(plans, seen, given.gates, [number for number, _ in blocks], device)
                part = {name: value.repeat_interleave(many, 0) for name, value in (after if shares else whole).items()}
                past = DynamicCache(keys_values(cache)) if shares else DynamicCache()
                if shares:
                    past.batch_repeat_interleave(many)
                with network.trace(part, past_key_values=past, use_cache=False, logits_to_keep=count):
                    for number, block in blocks:
                        edit_in_parts(hidden(block.output), edits.layers[number], 1 if shares else width, wide)
                    logits = network.output.logits.float().to(device)
                logits[:, 0] = with_bias(logits[:, 0], plans, seen, given.gates)
                found.append(compared(logits, own if given.divergence else None, tokens, there))
            out["nll"] = torch.cat([pair[0] for pair in found], dim=1)
            out["kl"] = torch.cat([pair[1] for pair in found], dim=1) if given.divergence else None
    return out


def parted(inputs: Batch, at: int) -> tuple[Batch, Batch]:
    """Inputs before a position, and from it on with the whole mask, as a model with a cache takes them."""
    before = {name: value[:, :at] for name, value in inputs.items()}
    after = {name: value[:, at:] for name, value in inputs.items()}
    return before, after | {"attention_mask": inputs["attention_mask"]}


def edit_in_parts(states: torch.Tensor, edit: LayerEdit, prompt: int, wide: bool) -> None:
    """Edit a block's output in place: the prompt's positions, the first `prompt` ones, and those of given tokens.

    Of the prompt the last position is edited, or, if `wide`, every one; the others where the arm's scope goes on.
    """
    alive = torch.arange(len(states), device=states.device)
    apply_edit(states[:, :prompt], edit, alive, True, wide)
    apply_edit(states[:, prompt:], edit, alive, False, True)


def compared(
    logits: torch.Tensor, own: torch.Tensor | None, tokens: torch.Tensor, there: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """−log p of the tokens and KL(own ‖ arm), (rows, arms, tokens) each; float64, a row at a time, 0 where there is no token.

    Args:
        logits: (rows · arms, tokens, vocabulary); row r's arm a stands at r · arms + a.
        own: (rows, tokens, vocabulary), unsteered; without it the second result means nothing.
        tokens: (rows, tokens) ids.
        there: (rows, tokens) whether there is one; those that there are stand first.
    """
    rows, many = len(tokens), len(logits) // len(tokens)
    nll = torch.zeros(rows, many, tokens.shape[1], dtype=torch.float64)
    divergence = torch.zeros_like(nll)
    for row in range(rows):
        some = int(there[row].sum())
        p = None if own is None else own[row, :some].double().log_softmax(-1)
        share = None if p is None else p.exp()  # once for all arms
        for arm in range(many):
            q = logits[row * many + arm, :some].double().log_softmax(-1)
            nll[row, arm, :some] = -q.gather(-1, tokens[row, :some, None])[:, 0].cpu()
            if p is not None and share is not None:
                divergence[row, arm, :some] = (share * (p - q)).sum(-1).cpu()  # as next_token.kl has it
    return nll, divergence
