"""The session that answers a batch in every arm: one prefill, which looks at the last column too, then the arms, group by group."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from collections.abc import Sequence
from typing import Any, NamedTuple

import nnsight
import torch

from interventions.traced.blocks import Batch, Block, Blocks, Network, NnsightBackend, device_of, is_apart, on
from interventions.traced.caching import Part, cached, prefill
from interventions.traced.decoding import Decoding, decoded
from interventions.traced.edits import ArmPlan, Unsteered
from interventions.traced.gating import LAST, Marks, begun, score
from interventions.traced.generating import generated


class Question(NamedTuple):
    """What a session is asked.

    Attributes:
        batch: Padded prompts.
        opening: How many first columns are the same in all rows.
        shares: Whether any arm goes on from a common prefill.
        parts: Its passes, of `caching.prefill_parts`.
        groups: Arms that decode together, and the blocks that they edit.
        marks: What gates and the caller read of the prompts.
        kept: Numbers of the blocks whose last position the caller wants.
        looks: Whether the unsteered last column is needed.
        how: How to decode.
    """

    batch: Batch
    opening: int
    shares: bool
    parts: list[Part]
    groups: list[tuple[list[ArmPlan], Blocks]]
    marks: Marks
    kept: Sequence[int]
    looks: bool
    how: Decoding


def answered(network: Network, backend: NnsightBackend, last: Block, head: Block, question: Question) -> dict[str, Any]:
    """Run the session; plain values come back: `found`, a dictionary a group; `gates` and `residual` if they were read.

    Args:
        network: The nnsight model.
        backend: Where it runs.
        last: Its last block.
        head: What puts out its logits.
        question: What is asked.
    """
    with network.session(backend=backend):
        out = nnsight.save({})
        with torch.no_grad():
            apart, device = is_apart(network), device_of(network, last)
            out["follows"] = not (apart and question.how.rules)  # the model's own loop would take padding for words
            batch = on(device, question.batch)
            how = question.how._replace(
                refusing=question.how.refusing.to(device), ending=question.how.ending.to(device)
            )
            cache, states = cached(apart=apart), begun(question.marks, len(batch["input_ids"]))
            logits, seen = None, Unsteered()
            if question.shares:
                cache, logits = prefill(
                    network, batch, question.opening, question.parts, question.marks, states, question.looks
                )
            if logits is not None:
                tokens = logits[:, how.refusing] if len(how.refusing) else None
                scores = [score(gate, states, logits, device) for gate in how.gates]
                seen = Unsteered(tokens, scores, logits)
                if scores:
                    out["gates"] = torch.stack([one.cpu() for one in scores], dim=1)
                if question.kept:
                    out["residual"] = torch.stack([states[number, LAST].cpu() for number in question.kept], dim=1)
            out["found"] = []
            for plans, blocks in question.groups:
                if apart:
                    found = generated(network, head, blocks, batch, cache, plans, seen, how)
                else:
                    found = decoded(network, blocks, batch, cache, plans, seen, how)
                out["found"].append(found.first._asdict() | {"tokens": found.tokens, "vector": found.vector,
                                                             "strength": found.strength})  # fmt: skip
    return out
