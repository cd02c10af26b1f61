"""What runs inside vLLM's worker, request by request: blocks that are installed on the engine once and that requests name.

A request is one row without padding. At its first step a block of the model puts out all of the prompt's positions, at
each later one a single position. A decoder block of vLLM's puts out a pair, what its feed-forward wrote and the stream
before that, whose sum is the residual stream: the sum is read, and what is added goes to the first, in place.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportUnusedVariable=false

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import nnsight
import torch

from interventions.traced.blocks import Block, Blocks, Network, NnsightBackend, hidden
from interventions.traced.edits import LayerEdit, delta, is_read
from interventions.traced.gating import Gate, Read, score

PREEMPTED = "preempted"
Edit = Any  # nnsight's `edit`: given a name, it installs the block behind its `with`


class Span(NamedTuple):
    """Positions of a prompt of T tokens whose mean is read: from `start` to T − `back`; with start −1 that before T − `back` alone."""

    start: int
    back: int


class Look(NamedTuple):
    """What is read of an unsteered prompt.

    Attributes:
        reads: Blocks, ascending, each with its number and the spans that are read there by name.
        kept: What goes back as it is.
        gates: Those that are scored; none that is given its scores.
        tokens: Ids whose logits go back.
        whole: Whether all logits do.
    """

    reads: Sequence[tuple[int, Block, Mapping[str, Span]]]
    kept: Sequence[Read]
    gates: Sequence[Gate]
    tokens: Sequence[int]
    whole: bool


class Steer(NamedTuple):
    """What is done to a request.

    Attributes:
        sites: What is edited, in the order of the forward pass.
        edits: Of each site's number, for a single row.
        wide: Whether every position of the prompt is edited.
        bias: Token ids and what is added to their logits at the first generated position; or None.
        refusing: Ids whose probability goes back; none for none.
        whole: Whether all logits go back.
    """

    sites: Blocks
    edits: Mapping[int, LayerEdit]
    wide: bool
    bias: tuple[list[int], float] | None
    refusing: Sequence[int]
    whole: bool

    @property
    def reads_logits(self) -> bool:
        """Whether anything is done with the first logits."""
        return self.bias is not None or bool(len(self.refusing)) or self.whole


def install_read(edit: Edit, name: str, blocks: Sequence[Block], spans: Sequence[Span]) -> Any:
    """Install what reads the residual stream: `states`, float32 (spans, layers, d_model)."""
    with edit(name=name) as (_tracer, handle):
        states = nnsight.save(read_states(blocks, spans))  # noqa: F841  # goes home with the request
    return handle


def install_look(network: Network, edit: Edit, name: str, what: Look) -> Any:
    """Install a look at an unsteered prompt: `seen`, with `states` by block and position, `scores`, `tokens` and `logits`."""
    with edit(name=name) as (_tracer, handle):
        seen = nnsight.save(looked(network, what))  # noqa: F841
    return handle


def install_steer(network: Network, edit: Edit, name: str, what: Steer, later: bool) -> Any:
    """Install a steering, of the prompt alone or of what follows too: `first`, with `refusal` and `logits`."""
    if later and len(what.sites):  # a loop that waits for nothing would never end
        with edit(name=name) as (tracer, handle):
            first = nnsight.save(steered(network, what))
            for _ in tracer.iter[1:]:
                steered_on(what)
    else:
        with edit(name=name) as (_tracer, handle):
            first = nnsight.save(steered(network, what))  # noqa: F841
    return handle


def install_held(network: Network, edit: Edit, name: str) -> Any:
    """Install what tells of the model that is held: `config`, JSON, and `kind`, the weights' type."""
    with edit(name=name) as (_tracer, handle):
        config = nnsight.save(network._module.config.to_json_string(use_diff=False))  # noqa: F841
        kind = nnsight.save(str(next(network._module.parameters()).dtype))  # noqa: F841
    return handle


def ask_one(
    network: Network, backend: NnsightBackend, ids: list[int], tokens: int, stops: list[int], edits: list[str]
) -> tuple[Any, Any]:
    """One request, greedily, in a trace of its own: its new tokens, and what its blocks saved by name."""
    settings = {"temperature": 0.0, "max_tokens": tokens, "stop_token_ids": stops, "ignore_eos": True}
    with network.trace(ids, edits=edits, backend=backend, **settings) as tracer:
        result = tracer.result
        new = nnsight.save(list(result.outputs[0].token_ids))
        saves = nnsight.save(dict(getattr(result, "saves", {})))
    return new, saves


def read_states(blocks: Sequence[Block], spans: Sequence[Span]) -> torch.Tensor:
    """(spans, layers, d_model), float32."""
    found: list[torch.Tensor] = []
    for block in blocks:
        rows = stream(block.output)
        found.append(torch.stack([mean_of(rows, span) for span in spans]))
    return torch.stack(found, dim=1)


def looked(network: Network, what: Look) -> dict[str, Any]:
    """Plain values of one prompt."""
    states: dict[Read, torch.Tensor] = {}
    for number, block, spans in what.reads:
        rows = stream(block.output)
        for position, span in spans.items():
            states[number, position] = mean_of(rows, span)[None]
    logits = first_logits(network)[None].float()
    scores = [score(gate, states, logits, logits.device) for gate in what.gates]
    kept = [states[read][0].cpu() for read in what.kept]
    return {
        "states": torch.stack(kept) if kept else None,
        "scores": torch.cat(scores).cpu() if scores else None,
        "tokens": logits[0, list(what.tokens)].cpu(),
        "logits": logits[0].cpu() if what.whole else None,
    }


def steered(network: Network, what: Steer) -> dict[str, Any]:
    """Edit a prompt, and what its first logits come to."""
    for number, block in what.sites:
        edit_in_place(block.output, what.edits[number], True, what.wide)
    if not what.reads_logits:
        return {}
    logits = first_logits(network)
    if what.bias is not None:
        tokens, strength = what.bias
        logits[tokens] += strength
    logits = logits.float()
    refusing = logits[list(what.refusing)]
    return {
        "refusal": (refusing - logits.logsumexp(-1)).exp().sum().cpu() if len(what.refusing) else None,
        "logits": logits.cpu() if what.whole else None,
    }


def steered_on(what: Steer) -> None:
    """Edit a generated position; of a request that vLLM took up again, having dropped what it had cached, there would be several."""
    for number, block in what.sites:
        if len(hidden(block.output)) != 1:
            raise RuntimeError(PREEMPTED)
        edit_in_place(block.output, what.edits[number], False, False)


def stream(output: Any) -> torch.Tensor:
    """The residual stream (positions, d_model) behind a block, float32: nothing of it is a view."""
    written, before = output
    return written.float() + before.float()


def mean_of(rows: torch.Tensor, span: Span) -> torch.Tensor:
    """(d_model,)."""
    stop = len(rows) - span.back
    return rows[stop - 1 if span.start < 0 else span.start : stop].mean(0)


def first_logits(network: Network) -> torch.Tensor:
    """(vocabulary,), a view: what is added lands."""
    logits = network.logits
    return logits[-1] if logits.ndim == 2 else logits


def edit_in_place(output: Any, edit: LayerEdit, first: bool, wide: bool) -> None:
    """Edit what a block, its attention or the embedding wrote, for a request alone.

    Args:
        output: A block's pair, or a tensor.
        edit: Of one row.
        first: Whether this is the prompt.
        wide: Whether every position is edited, or the last.
    """
    one = torch.zeros(1, dtype=torch.long, device=edit.add.device)
    goes_on = torch.ones_like(edit.later) if first else edit.later
    written = hidden(output)
    place = written if wide else written[-1:]
    before = place
    if is_read(edit):
        before = place.float()
        if isinstance(output, tuple):
            before = before + (output[1] if wide else output[1][-1:]).float()
    place += delta(before[None], edit, one, goes_on, first)[0].to(place.dtype)
