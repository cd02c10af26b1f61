"""Answers and activations from nnsight's vLLM engine: each row of each arm is a request, and vLLM batches them as it likes.

What is done to a request is a block that is installed on the engine under a name; requests that are treated alike share
one, so that a vector crosses to the worker once and not with every prompt. Unsteered looks go first where a route, a gate
or a comparison needs them; what they decide is worked out here, by the functions that every other trace uses.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from data.errors import UserError
from interventions.traced.answering import Question
from interventions.traced.decoding import Decoding, FirstPosition, first_position
from interventions.traced.edits import (
    EMBEDDING,
    LATER,
    WIDE,
    ArmPlan,
    LayerEdit,
    RowEdits,
    Unsteered,
    first_alike,
    gated,
    row_edits,
)
from interventions.traced.gating import LAST, Gate, score
from interventions.traced.requests import Look, Span, Steer, install_look, install_read, install_steer
from interventions.traced.residual import Pass

END = Span(-1, 0)  # a prompt's last token
Install = Callable[[str], Any]  # a block under a name; what clears it
Put = Callable[[Hashable, Install], str]  # the name of a block that is installed once a key


class Asking(NamedTuple):
    """A request: a prompt's token ids, and the name of what is done to it; empty for nothing."""

    ids: list[int]
    edit: str


class Reply(NamedTuple):
    """New tokens, and what the block saved by name."""

    tokens: list[int]
    saves: dict[str, Any]

    def saved(self, block: str, name: str, whole: int | None = None) -> torch.Tensor:
        """A tensor that a block saved in a dictionary; of so many numbers, where that is said.

        Raises:
            UserError: It did not; an engine may be anybody's server.
        """
        there = self.saves.get(block)
        value = there.get(name) if isinstance(there, dict) else None
        if not isinstance(value, torch.Tensor) or (whole is not None and value.shape != (whole,)):
            raise UserError(
                f"the vLLM engine sent back no {name} of the form that was asked for: is this an nnsight-serve?"
            )
        return value


class Transport(Protocol):
    """How requests reach an engine.

    Attributes:
        network: nnsight's VLLM, whose envoys blocks are written against.
        tells: Whether `ask` sees by itself that a request lost its cache on the way; else its block must.
        record: Engine, versions, type, and how many devices share each tensor.
    """

    network: Any
    tells: bool
    record: Mapping[str, Any]

    def edit(self, *, name: str) -> Any:
        """What installs a block under a name: nnsight's `edit`, for a `with`."""
        ...

    def ask(self, requests: Sequence[Asking], tokens: int, stops: Sequence[int]) -> list[Reply]:
        """Answer requests, greedily, with at most so many tokens, ending at any of `stops`.

        Raises:
            UserError: The engine failed, or can't be reached.
        """
        ...


@dataclass
class Engine:
    """An open vLLM engine.

    Attributes:
        transport: How requests reach it.
        stream: Its part that holds `layers` and `embed_tokens`.
        requests: How many requests are under way at once.
    """

    transport: Transport
    stream: Any
    requests: int
    _names: int = 0

    @property
    def record(self) -> dict[str, Any]:
        """For run.json."""
        return dict(self.transport.record)

    def check(self, width: int, name: str) -> None:
        """Does every block put out what it wrote and the stream before it, (positions, d_model) each?

        Raises:
            UserError: One does not.
        """
        every = {
            "input_ids": torch.ones((1, 3), dtype=torch.long),
            "attention_mask": torch.ones((1, 3), dtype=torch.long),
        }
        layers = range(len(self.stream.layers))
        try:
            (found,) = self.read(layers, [Pass(every, None, None)])
        except UserError as error:
            raise UserError(
                f"vLLM's blocks of {name} don't put out what steering needs ({error}): pass --engine transformers"
            ) from error
        if found.shape != (1, len(layers), width) or not bool(found.isfinite().all()):
            raise UserError(
                f"vLLM's blocks of {name} put out {tuple(found.shape)}, or no numbers: pass --engine transformers"
            )

    def read(self, layers: Sequence[int], passes: Sequence[Pass]) -> list[torch.Tensor]:
        """Activations as `traced.residual.read` gives them: for each pass float32 (rows, layers, d_model), means of a row adjacent.

        Args:
            layers: Ascending block numbers.
            passes: Without an opening of their own, or places: a row stands in its batch as it is.
        """
        edit = self.transport.edit
        blocks = [self.stream.layers[layer] for layer in layers]
        with self._installing() as put:
            asked = [
                Asking(ids, put(spans, lambda name, spans=spans: install_read(edit, name, blocks, spans)))
                for one in passes
                for ids, spans in zip(rows_of(one.batch), spans_of(one.batch, one.weights), strict=True)
            ]
            replies = iter(self.transport.ask(asked, 1, ()))
        return [torch.cat([states_of(next(replies)) for _ in range(len(one.batch["input_ids"]))]) for one in passes]

    def answered(self, question: Question) -> dict[str, Any]:
        """Answers as `traced.answering.answered` gives them.

        Raises:
            UserError: A generation_config is to be followed, or the engine failed.
        """
        how, rows = question.how, rows_of(question.batch)
        if how.rules:
            raise UserError(
                "--engine vllm can't follow a generation_config: leave --generation-config out, or pass --engine transformers"
            )
        out: dict[str, Any] = {"follows": True, "found": []}
        seen, gates = Unsteered(), list(how.gates)
        if question.looks:
            seen, gates, states = self._look(question, rows)
            out |= {"gates": torch.stack(list(seen.scores), dim=1)} if gates else {}
            out |= {"residual": states} if question.kept else {}
        groups = [
            _Group(plans, [number for number, _ in blocks], seen, gates, how) for plans, blocks in question.groups
        ]
        treated: dict[tuple[Any, ...], str] = {}
        with self._installing() as put:
            asked = [
                Asking(rows[slot // group.many], self._treatment(put, treated, number, group, slot))
                for number, group in enumerate(groups)
                for slot in group.alive.tolist()
            ]
            replies = iter(self.transport.ask(asked, how.steps, how.ending.tolist()))
        for group in groups:
            out["found"].append(group.found([next(replies) for _ in range(len(group.alive))]))
        return out

    def _look(self, question: Question, rows: Sequence[list[int]]) -> tuple[Unsteered, list[Gate], torch.Tensor | None]:
        """The unsteered last position of every prompt; the gates with their scores; (rows, layers, d_model) of those kept."""
        network, edit = self.transport.network, self.transport.edit
        how, marks = question.how, question.marks
        named = {
            position: [spans[0] for spans in spans_of(question.batch, weights)]
            for position, weights in marks.weights.items()
        }
        at = {layer: [position for number, position in marks.reads if number == layer] for layer, _ in marks.blocks}
        leaves = [leaf for gate in how.gates for leaf in leaves_of(gate)]
        tokens, whole = how.refusing.tolist(), how.top_k > 0

        def look(row: int) -> tuple[tuple[int, tuple[tuple[str, Span], ...]], ...]:
            return tuple(
                (layer, tuple((name, named[name][row] if name != LAST else END) for name in names))
                for layer, names in at.items()
            )

        def install(name: str, reads: Any) -> Any:
            parts = [(layer, self.stream.layers[layer], dict(spans)) for layer, spans in reads]
            what = Look(parts, [(layer, LAST) for layer in question.kept], leaves, tokens, whole)
            return install_look(network, edit, name, what)

        with self._installing() as put:
            keys = [look(row) for row in range(len(rows))]
            asked = [
                Asking(ids, put(key, lambda name, key=key: install(name, key)))
                for ids, key in zip(rows, keys, strict=True)
            ]
            found = self.transport.ask(asked, 1, ())

        def stacked(name: str, whole: int | None = None) -> torch.Tensor:
            return torch.stack([reply.saved("seen", name, whole) for reply in found])

        scores = iter(stacked("scores", len(leaves)).T) if leaves else iter(())
        gates = [with_scores(gate, scores) for gate in how.gates]
        nothing = torch.zeros(0)
        seen = Unsteered(
            stacked("tokens", len(tokens)) if tokens else None,
            [score(gate, {}, nothing, torch.device("cpu")) for gate in gates],
            stacked("logits") if whole else None,
        )
        return seen, gates, stacked("states") if question.kept else None

    def _treatment(self, put: Put, treated: dict[tuple[Any, ...], str], number: int, group: "_Group", slot: int) -> str:
        """The name of what is done to one of a group's rows in one of its arms; installed where it is not yet."""
        network, edit, key = self.transport.network, self.transport.edit, (number, *group.key(slot))
        if key not in treated:
            what = group.steer(slot, self._site)
            later = group.later(slot) or not self.transport.tells
            if what.sites or what.bias is not None:
                treated[key] = put(key, lambda name: install_steer(network, edit, name, what, later))
            else:
                plain = what.reads_logits and put("plain", lambda name: install_steer(network, edit, name, what, False))
                treated[key] = plain or ""
        return treated[key]

    def _site(self, number: int) -> Any:
        """The envoy of what writes to the residual stream under a number."""
        if number == EMBEDDING:
            return self.stream.embed_tokens
        return self.stream.layers[number] if number >= 0 else self.stream.layers[-2 - number].self_attn

    @contextmanager
    def _installing(self) -> Iterator[Put]:
        """Blocks for one call: installed once a key, cleared at its end."""
        names: dict[Hashable, str] = {}
        handles = []

        def put(key: Hashable, install: Install) -> str:
            if key not in names:
                self._names += 1
                handles.append(install(f"edit-{self._names}"))
                names[key] = f"edit-{self._names}"
            return names[key]

        try:
            yield put
        finally:
            for handle in handles:
                handle.clear()


class _Group:
    """Arms of one kind of scope for all rows, as what an unsteered look gave decides them."""

    def __init__(
        self, plans: Sequence[ArmPlan], layers: Sequence[int], seen: Unsteered, gates: Sequence[Gate], how: Decoding
    ) -> None:
        self.plans, self.layers, self.seen, self.how = plans, layers, seen, how
        self.many, self.wide = len(plans), plans[0].scope in WIDE
        self.edits: RowEdits = row_edits(plans, seen, gates, layers, torch.device("cpu"))
        self.alive, self.back = first_alike(plans, self.edits).unique(return_inverse=True)
        self.bias = [
            None if plan.bias is None else gated(plan, plan.bias.strengths, plan.bias.benign, plan.bias.harmful, seen, gates)
            for plan in plans
        ]  # fmt: skip

    def key(self, slot: int) -> tuple[int, int, float, float]:
        """What two rows of an arm have in common that are treated alike."""
        row, arm = divmod(slot, self.many)
        bias = self.bias[arm]
        return (
            arm,
            int(self.edits.vector[slot]),
            float(self.edits.strength[slot]),
            0.0 if bias is None else float(bias[row]),
        )

    def later(self, slot: int) -> bool:
        """Whether an arm goes on after the prompt."""
        return self.plans[slot % self.many].scope in LATER

    def steer(self, slot: int, site: Callable[[int], Any]) -> Steer:
        """What is done to a row in an arm."""
        row, arm = divmod(slot, self.many)
        plan, bias = self.plans[arm], self.bias[arm]
        edits = {
            layer: alone(self.edits.layers[layer], slot) for layer in self.layers if layer in plan.layers or plan.maps
        }
        edits = {layer: edit for layer, edit in edits.items() if does_anything(edit)}
        added = None
        if plan.bias is not None and bias is not None and float(bias[row]):
            added = (plan.bias.tokens, float(bias[row]))
        whole = self.how.top_k > 0
        refusing = [] if whole else self.how.refusing.tolist()
        return Steer([(layer, site(layer)) for layer in edits], edits, self.wide, added, refusing, whole)

    def found(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """Its arms' tokens and figures, as `traced.decoding.decoded` gives them."""
        rows = len(self.edits.vector) // self.many
        tokens = torch.zeros(len(replies), self.how.steps, dtype=torch.long)
        for at, reply in enumerate(replies):
            if not 0 < len(reply.tokens) <= self.how.steps:
                raise UserError(
                    f"the vLLM engine sent back {len(reply.tokens)} tokens, of at most {self.how.steps} asked for"
                )
            tokens[at, : len(reply.tokens)] = torch.tensor(reply.tokens)
        back, figures = self.back.view(rows, self.many), FirstPosition()
        if self.how.top_k:
            logits = torch.stack([reply.saved("first", "logits") for reply in replies])
            figures = first_position(logits, self.seen, self.how, self.alive // self.many, back)
        elif len(self.how.refusing):
            refusal = torch.stack([reply.saved("first", "refusal") for reply in replies])
            figures = figures._replace(refusal=refusal[back])
        vector, strength = (part.view(rows, self.many) for part in (self.edits.vector, self.edits.strength))
        return figures._asdict() | {"tokens": tokens[back], "vector": vector, "strength": strength}


def states_of(reply: Reply) -> torch.Tensor:
    """(means, layers, d_model), what `traced.requests.read_states` saved; its shape is looked at by who asked."""
    states = reply.saves.get("states")
    if not isinstance(states, torch.Tensor) or states.ndim != 3:
        raise UserError("the vLLM engine sent back no activations: is this an nnsight-serve?")
    return states


def rows_of(batch: Mapping[str, torch.Tensor]) -> list[list[int]]:
    """Token ids of each row, without padding."""
    return [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


def spans_of(batch: Mapping[str, torch.Tensor], weights: torch.Tensor | None) -> list[tuple[Span, ...]]:
    """What each row's weights read, as spans that are the same for prompts of different lengths.

    Args:
        batch: Padded prompts.
        weights: (rows, columns), or (rows, means, columns), each a mean over adjacent columns; None reads the last.
    """
    masks = batch["attention_mask"].bool()
    if weights is None:
        return [(END,)] * len(masks)
    found = []
    for mask, own in zip(masks, weights if weights.ndim == 3 else weights[:, None], strict=True):
        spans = []
        for one in own[:, mask].cpu():
            places = one.nonzero()[:, 0].tolist()
            start, stop = places[0], places[-1] + 1
            assert stop - start == len(places)
            spans.append(Span(-1 if len(places) == 1 else start, int(mask.sum()) - stop))
        found.append(tuple(spans))
    return found


def leaves_of(gate: Gate) -> list[Gate]:
    """The gates whose scores must be computed where the states are: those that are not given and join no others."""
    if gate.members:
        return [leaf for member in gate.members for leaf in leaves_of(member)]
    return [] if gate.given is not None else [gate]


def with_scores(gate: Gate, scores: Iterator[torch.Tensor]) -> Gate:
    """The gate with the scores (rows,) of its leaves, in the order of `leaves_of`."""
    if gate.members:
        return gate._replace(members=tuple(with_scores(member, scores) for member in gate.members))
    return gate if gate.given is not None else gate._replace(given=next(scores))


def alone(edit: LayerEdit, slot: int) -> LayerEdit:
    """What is done to one of rows × arms, without what it takes no part in."""
    one = slice(slot, slot + 1)
    unit = None if edit.unit is None or not bool(edit.unit[one].any()) else edit.unit[one].clone()
    return LayerEdit(
        edit.add[one].clone(),
        unit,
        [(low, share[one].clone()) for low, share in edit.lowrank if bool(share[one].any())],
        [(turn, share[one].clone()) for turn, share in edit.turns if bool(share[one].any())],
        edit.later[one].clone(),
    )


def does_anything(edit: LayerEdit) -> bool:
    """Whether an edit of one row changes it."""
    return bool(edit.add.any()) or edit.unit is not None or bool(edit.lowrank) or bool(edit.turns)
