"""Steering: edits of the residual stream, row by row, in one session that computes nothing twice.

All arms of a batch share one prefill: with the scopes `prompt-last` and `generated` every position before the last is
the same for all of them. One look at the last position, unsteered, gives what routes and gates read. The first step of
all arms is one pass over that cache, side by side under a mask. Then every arm's rows decode together over copies of
it, and rows that have finished leave.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from data.errors import UserError
from interventions.backends.ndif.result import expect
from interventions.model.blocks import logits_from, sites
from interventions.model.model import Model
from interventions.reading.budget import DECODED, passes
from interventions.traced.answering import Question, answered
from interventions.traced.blocks import Batch, Block, Blocks
from interventions.traced.caching import prefill_parts
from interventions.traced.decoding import Decoding
from interventions.traced.edits import WIDE, ArmPlan
from interventions.traced.gating import LAST, Gate, Marks

LOGIT_TOKENS = 16  # a row's logits, and what is computed of them, take the memory of some so many cached tokens


class Gating(NamedTuple):
    """Gates, and for each position that they read beside `last` (rows, columns) of a batch, of `residual.WEIGHTS`."""

    gates: Sequence[Gate] = ()
    weights: Mapping[str, torch.Tensor] = MappingProxyType({})


NO_GATES = Gating()


class Asked(NamedTuple):
    """What is wanted of each answer.

    Attributes:
        max_new_tokens: At most so many tokens; 0 computes the first position's figures alone.
        refusal_ids: Token ids of the refusal tokens.
        stops: Token ids that end an answer.
        gates: What gated arms go by.
        read_layers: Ascending blocks to read the unsteered last position of.
        top_k: How many of the most probable first tokens to give, with the KL divergence; 0 gives neither.
    """

    max_new_tokens: int
    refusal_ids: Sequence[int] = ()
    stops: Sequence[int] = ()
    gates: Sequence[Gate] = ()
    read_layers: Sequence[int] = ()
    top_k: int = 0


@dataclass(frozen=True)
class Answers:
    """What came out of B rows and A arms.

    Attributes:
        tokens: (B, A, steps) new tokens; what follows a row's stop token means nothing.
        refusal: (B, A) probability of all refusal tokens at the first generated position; None without any.
        vector: (B, A) number of the vector each row got.
        strength: (B, A) how strongly.
        gates: (B, gates) their scores, or None.
        residual: (B, layers, d_model) of the unsteered last position, float32, or None.
        kl: (B, A) KL(unsteered ‖ arm) of the first generated position, nats, float64, or None.
        top: Token ids and probabilities (B, A + 1, k) at the first generated position, unsteered first, or None.
    """

    tokens: torch.Tensor
    refusal: torch.Tensor | None
    vector: torch.Tensor
    strength: torch.Tensor
    gates: torch.Tensor | None
    residual: torch.Tensor | None
    kl: torch.Tensor | None
    top: tuple[torch.Tensor, torch.Tensor] | None

    @classmethod
    def joined(cls, parts: "Sequence[Answers]", rows: Sequence[Sequence[int]]) -> "Answers":
        """Parts of a batch as one: `rows` says where each part's rows stand."""
        back = torch.tensor([at for some in rows for at in some]).argsort()

        def whole(tensors: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
            there = [tensor for tensor in tensors if tensor is not None]
            return torch.cat(there)[back] if there else None

        fields = {name: whole([getattr(part, name) for part in parts]) for name in vars(parts[0]) if name != "top"}
        ids, shares = (whole([part.top[at] if part.top else None for part in parts]) for at in (0, 1))
        return cls(**fields, top=None if ids is None or shares is None else (ids, shares))  # type: ignore[arg-type]


def answer(
    model: Model,
    batch: Batch,
    plans: Sequence[ArmPlan],
    asked: Asked,
    *,
    together: int = 1 << 13,
    opening: int = 0,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> Answers:
    """Greedy continuations of a batch in every arm.

    Args:
        model: An open model; what its `rules` say is followed.
        batch: Padded batch of B rows, of `batches.pad_batch`.
        plans: A arms in tensors.
        asked: What is wanted of each.
        together: Tokens, padded and new, that may be decoded at once; more arms go in turns.
        opening: How many first columns of the batch are the same in all rows; they are computed once.
        weights: For each position that a gate reads beside `last` (rows, columns), of `residual.WEIGHTS`.
    """
    path = list(model.layers)
    rows, width = batch["input_ids"].shape
    at_once = model.takes_masks and asked.max_new_tokens <= 1
    groups = _groups(plans, rows, width + asked.max_new_tokens, together, at_once)
    looks = bool(asked.gates) or bool(asked.read_layers) or asked.top_k > 0 or any(plan.routed for plan in plans)
    shares = looks or any(plan.scope not in WIDE for plan in plans)
    lengths = (batch["attention_mask"].sum(-1) - opening).tolist()
    question = Question(
        batch=dict(batch),
        opening=opening if shares else 0,
        shares=shares,
        parts=prefill_parts(batch, opening, passes(model, lengths, max(1, together // DECODED)), looks)
        if shares
        else [],
        groups=[([plans[at] for at in group], edited_blocks(model, [plans[at] for at in group])) for group in groups],
        marks=marks_of(path, asked.gates, asked.read_layers, weights or {}),
        kept=list(asked.read_layers),
        looks=looks,
        how=Decoding(
            steps=max(asked.max_new_tokens, 1),
            side_by_side=model.takes_masks,
            refusing=torch.tensor(list(asked.refusal_ids), dtype=torch.long),
            ending=torch.tensor(list(asked.stops), dtype=torch.long),
            gates=list(asked.gates),
            top_k=asked.top_k,
            rules=model.rules,
        ),
    )
    if model.backend.engine is not None:
        out = model.backend.engine.answered(question)
    else:
        out = answered(model.nnsight, model.backend.nnsight(model.nnsight), path[-1],
                       logits_from(model.nnsight, model.module), question)  # fmt: skip
    if out.get("follows") is False:
        raise UserError(
            "in a sandbox, as with an ordinary key, answers can't follow a generation_config: leave --generation-config out"
        )
    _check(out, groups, question, rows, model)
    return _assembled(out, groups, len(plans))


def _check(out: dict[str, Any], groups: list[list[int]], question: Question, rows: int, model: Model) -> None:
    """Is what came back what was asked for?

    Raises:
        UserError: It is not; a server may be anybody's.
    """
    how, found = question.how, out.get("found")
    if not isinstance(found, list) or len(found) != len(groups) or not all(isinstance(part, dict) for part in found):
        raise UserError("answers came back in another form than they were asked for; is this an NDIF server?")
    shown = min(how.top_k, model.module.config.get_text_config().vocab_size)
    for group, part in zip(groups, found, strict=True):
        arms = (rows, len(group))
        expect(part.get("tokens"), (*arms, how.steps), "tokens", whole=True)
        expect(part.get("vector"), arms, "numbers of vectors", whole=True)
        expect(part.get("strength"), arms, "strengths")
        if len(how.refusing):
            expect(part.get("refusal"), arms, "refusal probabilities")
        if how.top_k:
            expect(part.get("kl"), arms, "divergences")
            for ids, shares, shape in (("top_ids", "top_shares", arms), ("own_ids", "own_shares", (rows, 1))):
                expect(part.get(ids), (*shape, shown), "tokens", whole=True)
                expect(part.get(shares), (*shape, shown), "probabilities")
    if question.looks and how.gates:
        expect(out.get("gates"), (rows, len(how.gates)), "gates' scores")
    if question.looks and question.kept:
        expect(out.get("residual"), (rows, len(question.kept), model.d_model), "activations")


def marks_of(
    path: Sequence[Block], gates: Sequence[Gate], layers: Sequence[int], weights: Mapping[str, torch.Tensor]
) -> Marks:
    """What some gates, and whoever wants the last position at some layers, read of a batch's prompts."""
    reads = dict.fromkeys([*(read for gate in gates for read in gate.reads), *((layer, LAST) for layer in layers)])
    numbers = sorted({layer for layer, _ in reads})
    return Marks([(number, path[number]) for number in numbers], tuple(reads), dict(weights))


def edited_blocks(model: Model, plans: Sequence[ArmPlan]) -> Blocks:
    """Number and envoy of each block that some arms edit, and of what else they do, in the order of the forward pass."""
    edited = {layer for plan in plans for layer in plan.layers}
    return [site for site in sites(model.nnsight, list(model.layers), model.module) if site[0] in edited]


def _groups(plans: Sequence[ArmPlan], rows: int, tokens: int, together: int, at_once: bool) -> list[list[int]]:
    """Arms that decode together: those that share a cache, and those that don't, in portions.

    `at_once`: those that share a cache take one step side by side, so that they share their prompts' tokens too.
    """
    groups = []
    for wide in (False, True):
        arms = [at for at, plan in enumerate(plans) if (plan.scope in WIDE) == wide]
        most = max(1, together // max(1, rows * (LOGIT_TOKENS if at_once and not wide else tokens)))
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
    return Answers(tokens, joined("refusal"), vector, strength, out.get("gates"), out.get("residual"), kl, top)
