"""An arm as plain PyTorch hooks, for programs that call the model themselves.

The edits are the traces' own (`traced.edits.apply_edit`), and so are routes and gates (`traced.edits.decide`); only who calls the
model differs. It has to be in this process.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import torch

from data.errors import UserError
from interventions.model.blocks import decoder_path, sites
from interventions.model.control_tokens import refusal_tokens
from interventions.model.model import Model
from interventions.reading.batches import pad_batch, pad_id
from interventions.steering.plans import Plan, Tools
from interventions.traced.blocks import hidden
from interventions.traced.edits import LayerEdit, Unsteered, apply_edit, decide, gated, row_edits
from interventions.traced.gating import LAST, Gate, score


class Decided(NamedTuple):
    """What some rows get: number of the vector, its strength, and what is added to first logits, (rows,) each."""

    vector: torch.Tensor
    strength: torch.Tensor
    bias: torch.Tensor


class HookedArm:
    """One arm on one model, for rows that each have a context.

    A route reads the unsteered last token of a row's context, once for each context that it meets: a second look at the
    same one costs nothing.
    """

    def __init__(self, model: Model, plan: Plan, tools: Tools) -> None:
        """Take an arm that was planned for one row without category or label.

        Raises:
            UserError: Its gate reads what only a prompt has.
        """
        self.arm = plan.arm
        self._model, self._plan = model, plan.shipped
        self._gates = tools.shipped(model, [plan], [{"prompt": "", "label": None}])
        self._gate = self._gates[plan.shipped.gate] if plan.shipped.gate >= 0 else None
        if self._gate is not None and reads_a_prompt(self._gate):
            raise UserError(f"arm {plan.arm.name!r}: the gate {plan.arm.gate} reads a prompt's words, and a task's items have a "
                            "context alone; use gate=probe or control")  # fmt: skip
        self._refusing = torch.tensor(refusal_tokens(model).ids, dtype=torch.long)
        self._blocks = model.module.get_submodule(decoder_path(model.module, model.name))
        self._sites = [
            site for site in sites(model.module, self._blocks, model.module) if site[0] in plan.shipped.layers
        ]
        self._known: dict[bytes, tuple[int, float, float]] = {}

    @property
    def edits(self) -> bool:
        """Whether it edits the residual stream."""
        return self._plan.operation != "none"

    @property
    def biases(self) -> bool:
        """Whether it adds to the first token's logits."""
        return self._plan.bias is not None

    def decide(self, contexts: Sequence[Sequence[int]]) -> Decided:
        """Vector and strength of each row, from the token ids of its context."""
        keys = [digest(ids) for ids in contexts]
        if self._plan.routed or self._plan.gate >= 0:
            new = {key: ids for key, ids in zip(keys, contexts, strict=True) if key not in self._known}
            if new:
                found = self._look(list(new.values()))
                self._known |= dict(zip(new, zip(*(part.tolist() for part in found), strict=True), strict=True))
            pairs = [self._known[key] for key in keys]
        else:
            bias = 0.0 if self._plan.bias is None else float(self._plan.bias.strengths)
            pairs = [(int(self._plan.given), float(self._plan.strengths), bias)] * len(keys)
        vector, *sizes = (list(part) for part in zip(*pairs, strict=True)) if pairs else ([], [], [])
        strength, bias = (torch.tensor(part, dtype=torch.float64) for part in sizes)
        return Decided(torch.tensor(vector, dtype=torch.long), strength, bias)

    @contextmanager
    def steering(self, decided: Decided, ends: torch.Tensor) -> Iterator[None]:
        """Edit what the model computes while the block lasts: one forward pass over rows, or one and its continuation.

        Args:
            decided: What each row gets.
            ends: (rows,) position of each row's last context token among those that the passes cover; −1 leaves the
                row as it is. The passes may hold each row several times, one beside the other, as beam search does.
        """
        if not self.edits:
            yield
            return
        plan = self._plan._replace(routed=False, gate=-1, given=decided.vector, strengths=decided.strength)
        edits = row_edits([plan], Unsteered(), [], plan.layers, self._model.device).layers
        handles = [part.register_forward_hook(editing(edits[number], plan.scope, ends)) for number, part in self._sites]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def biased(self, logits: torch.Tensor, decided: Decided) -> torch.Tensor:
        """The first token's logits, (rows, vocabulary), with the arm's bias; rows may stand several times, as above."""
        if self._plan.bias is None:
            return logits
        strength = decided.bias.repeat_interleave(len(logits) // len(decided.bias))
        logits = logits.clone()
        logits[:, self._plan.bias.tokens] += strength.to(logits.device, logits.dtype)[:, None]
        return logits

    def _look(self, contexts: list[Sequence[int]]) -> Decided:
        """Route and gate of contexts, from one unsteered forward pass."""
        model, states = self._model, {}
        batch = pad_batch(contexts, pad_id(model.tokenizer), model.device)
        reads = () if self._gate is None else self._gate.reads

        def reader(layer: int) -> Any:
            def read(_module: Any, _inputs: Any, output: Any) -> None:
                states[layer, LAST] = hidden(output)[:, -1, :].float()

            return read

        handles = [self._blocks[layer].register_forward_hook(reader(layer)) for layer, _ in reads]
        try:
            with torch.no_grad():
                logits = model.module(**batch, use_cache=False, logits_to_keep=1).logits[:, -1, :].float()
        finally:
            for handle in handles:
                handle.remove()
        scores = [] if self._gate is None else [score(self._gate, states, logits, logits.device)]
        seen = Unsteered(logits[:, self._refusing.to(logits.device)], scores)
        plan, gates = self._plan._replace(gate=min(self._plan.gate, 0)), [] if self._gate is None else [self._gate]
        vector, strength = decide(plan, seen, gates)
        bias = torch.zeros(1, dtype=torch.float64)
        if self._plan.bias is not None:
            one = self._plan.bias
            bias = gated(plan, one.strengths, one.benign, one.harmful, seen, gates)
        return Decided(*(part.cpu().expand(len(contexts)) for part in (vector, strength, bias)))


def editing(edit: LayerEdit, scope: str, ends: torch.Tensor) -> Any:
    """A hook that edits what a part of the model puts out, pass after pass, as `HookedArm.steering` says."""
    passed = 0

    def hook(_module: Any, _inputs: Any, output: Any) -> None:
        nonlocal passed
        states = hidden(output)
        rows = torch.arange(len(ends)).repeat_interleave(len(states) // len(ends))
        at = torch.arange(passed, passed + states.shape[1])
        on = covered(scope, at[None, :], ends[rows][:, None])
        if bool(on.any()):
            new = states.clone()
            apply_edit(new, edit, rows, True, True, ends[rows] - passed)
            states.copy_(torch.where(on[..., None].to(states.device), new, states))
        passed += states.shape[1]

    return hook


def reads_a_prompt(gate: Gate) -> bool:
    """Whether it reads more than the last token of a context."""
    return gate.given is not None or any(at != LAST for _, at in gate.reads) or any(map(reads_a_prompt, gate.members))


def covered(scope: str, at: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """Whether an edit of this scope covers position `at` of a row whose context ends at `end`; nothing where that is −1."""
    inside = {"prompt-last": at == end, "prompt": at <= end, "generated": at >= end, "all": at >= 0}[scope]
    return inside & (end >= 0)


def digest(ids: Sequence[int]) -> bytes:
    """A short name of token ids."""
    return blake2b(np.asarray(ids, np.int64).tobytes(), digest_size=16).digest()
