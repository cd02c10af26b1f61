"""Decoders: rows in, their tokens out, step by step. `Continuous` keeps the cache here, `Whole` asks a backend for whole answers."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from collections.abc import Sequence
from typing import Protocol

import torch

from data.contract import BATCH_TOKENS
from interventions.methods.vectors import SteeringVectors
from interventions.model.model import Model
from interventions.model.prompt_format import Encoded
from interventions.reading.budget import DECODED, Budget
from interventions.steering.batches import answer_rows
from interventions.steering.live.asked import Opened, Row, Token
from interventions.steering.live.choosing import chosen
from interventions.steering.live.joining import Joined, Joining
from interventions.steering.live.passes import Batched, Edits, Reading, run, stacked
from interventions.steering.texts import finite, stop_tokens
from interventions.traced.edits import RowEdits
from interventions.traced.gating import Gate
from interventions.traced.next_token import of_row


class Decoder(Protocol):
    """Answers rows.

    Attributes:
        rows: Those under way.
        samples: Whether it can draw tokens, tell log-probabilities and project.
    """

    rows: list[Row]
    samples: bool

    def join(self, rows: Sequence[Row]) -> None:
        """Take new rows in."""
        ...

    def step(self) -> None:
        """Give each row its next token, or more; those that have ended leave."""
        ...


def decoder_of(model: Model, vectors: SteeringVectors) -> Decoder:
    """The one that serves a model: step by step where its cache can be kept in this process."""
    return Continuous(model, vectors) if model.goes_on else Whole(model)


class Continuous:
    """Rows that join between steps, one pass a step for all of them."""

    samples = True

    def __init__(self, model: Model, vectors: SteeringVectors) -> None:
        """For a model in this process, projecting on its vectors."""
        self.model, self.rows = model, list[Row]()
        self.joining = Joining(model, unit_vectors(vectors))
        self._edits: list[RowEdits] = []
        self._stacked: Edits = {}
        self._batch: Batched | None = None
        self._stops = stop_tokens(model)

    def join(self, rows: Sequence[Row]) -> None:
        """Read their prompts, give them their first tokens."""
        if self.model.rules:
            ending = torch.tensor(sorted(self._stops))
            for row in rows:
                row.rules = of_row(self.model.rules, torch.tensor(row.asked.ids), ending, row.asked.steps)
        for new in self.joining.together(rows, BATCH_TOKENS):
            self._take(new)
        self._leave()

    def step(self) -> None:
        """One pass."""
        self._leave()
        if not self.rows or self._batch is None:
            return
        batch, device = self._batch, self.model.device
        batch.places = batch.places + 1
        batch.mask = torch.cat([batch.mask, torch.ones_like(batch.places)], dim=1)
        inputs = {
            "input_ids": torch.tensor([row.made[-1:] for row in self.rows], device=device),
            "attention_mask": batch.mask,
            "position_ids": batch.places,
        }
        asked = any(row.asked.projects for row in self.rows)
        reading = Reading(units=self.joining.units if asked else None)
        passed = run(self.model.nnsight, self.joining.sites, inputs, batch.past, self._stacked, reading=reading)
        shadows = None if passed.projections is None else passed.projections[:, -1]
        self._give(self.rows, chosen(passed.logits, self.rows, shadows))
        self._leave()

    def _take(self, new: Joined) -> None:
        self._give(new.rows, chosen(new.logits, new.rows, new.projections))
        self.rows += new.rows
        self._edits += new.edits
        self._batch = new.batch if self._batch is None else self._batch.joined(new.batch)
        self._restack()

    def _give(self, rows: Sequence[Row], tokens: Sequence[Token]) -> None:
        for row, token in zip(rows, tokens, strict=True):
            row.made.append(token.id)
            if token.id in self._stops:
                row.end("stop")
                continue
            row.tell(token)
            if len(row.made) >= row.asked.steps:
                row.end("length")

    def _leave(self) -> None:
        """Without the rows that have ended, or that nobody waits for."""
        stay = [at for at, row in enumerate(self.rows) if not (row.over or row.gone)]
        if len(stay) == len(self.rows):
            return
        self.rows, self._edits = [self.rows[at] for at in stay], [self._edits[at] for at in stay]
        self._batch = self._batch.kept(stay) if stay and self._batch is not None else None
        self._restack()

    def _restack(self) -> None:
        self._stacked = stacked([_later(edit) for edit in self._edits], self.model.d_model, self.model.device)

    def clear(self) -> None:
        """Forget all rows, after a pass that failed."""
        self.rows, self._edits, self._stacked, self._batch = [], [], {}, None


class Whole:
    """Whole answers, a request for each arm among the rows that wait: where no cache stays between passes, such as on a server."""

    samples = False

    def __init__(self, model: Model) -> None:
        """For any model and backend."""
        self.model, self.rows = model, list[Row]()

    def join(self, rows: Sequence[Row]) -> None:
        """Take them in; the next step answers them."""
        self.rows += rows

    def step(self) -> None:
        """Answer all rows of one arm."""
        self.rows = [row for row in self.rows if not (row.over or row.gone)]
        if not self.rows:
            return
        first = self.rows[0].asked
        some = [row for row in self.rows if row.asked.plan is first.plan]
        self.rows = [row for row in self.rows if row.asked.plan is not first.plan]
        encoded = Encoded([list(row.asked.ids) for row in some], [row.asked.user for row in some])
        steps = max(row.asked.steps for row in some)
        plan = first.plan.repeated(len(some))
        gates = [_beside([row.asked.gates[at] for row in some]) for at in range(len(first.gates))]
        budget = Budget(DECODED * BATCH_TOKENS)
        found = answer_rows(self.model, encoded, range(len(some)), [plan], gates, steps, budget)
        stops, number = stop_tokens(self.model), first.plan.shipped.gate
        for at, row in enumerate(some):
            score = None if found.gates is None or number < 0 else finite(found.gates[at, number])
            refusal = None if found.refusal is None else finite(found.refusal[at, 0])
            row.tell(Opened(int(found.vector[at, 0]), float(found.strength[at, 0]), score, refusal))
            for token in found.tokens[at, 0, : row.asked.steps].tolist():
                if token in stops:
                    row.end("stop")
                    break
                row.tell(Token(token))
            row.end("length")

    def clear(self) -> None:
        """Forget all rows."""
        self.rows = []


def unit_vectors(vectors: SteeringVectors) -> dict[int, torch.Tensor]:
    """Layer -> (categories, d_model), each category's vector at length 1; zero where it is."""
    stack = torch.stack([vectors.tensors[name] for name in vectors.categories], dim=1).float()
    units = torch.nn.functional.normalize(stack, dim=-1)
    return dict(zip(vectors.layers, units, strict=True))


def _later(edits: RowEdits) -> RowEdits:
    """What of a row's edits goes on after its prompt."""
    return edits._replace(layers={layer: edit for layer, edit in edits.layers.items() if bool(edit.later.any())})


def _beside(gates: Sequence[Gate]) -> Gate:
    """A gate for several rows, of those for one each."""
    given = [gate.given for gate in gates]
    whole = None if given[0] is None else torch.cat([part for part in given if part is not None])
    members = tuple(_beside(some) for some in zip(*(gate.members for gate in gates), strict=True))
    return gates[0]._replace(given=whole, members=members)
