"""Prompts of new rows, each with an arm of its own: as few passes as their gates and scopes need, and their first tokens' logits.

A row whose arm decides by itself is steered in the pass that reads its prompt. One that a gate or a route decides on is read
unsteered first, and its last token, or with the scopes `prompt` and `all` its whole prompt, passes again.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from interventions.model.blocks import sites
from interventions.model.control_tokens import refusal_tokens
from interventions.model.model import Model
from interventions.model.prompt_format import Encoded
from interventions.reading.batches import pad_batch, pad_id
from interventions.reading.budget import passes
from interventions.reading.packing import common_opening
from interventions.steering.answer import marks_of
from interventions.steering.batches import weights_of
from interventions.steering.live.asked import Opened, Row
from interventions.steering.live.passes import Batched, Edits, Passed, Reading, run, stacked
from interventions.traced.blocks import Batch
from interventions.traced.caching import cached, repeated
from interventions.traced.edits import WIDE, RowEdits, Unsteered, row_edits, with_bias
from interventions.traced.gating import Gate, score

SHORT = 4  # an opening of fewer tokens is not worth a pass of its own


@dataclass(frozen=True)
class Joined:
    """New rows, ready to decode: logits (rows, vocabulary) of their first tokens, and projections (rows, layers, categories) there."""

    rows: list[Row]
    edits: list[RowEdits]
    batch: Batched
    logits: torch.Tensor
    projections: torch.Tensor | None


class Joining:
    """Reads the prompts of new rows."""

    def __init__(self, model: Model, units: dict[int, torch.Tensor]) -> None:
        """For a model in this process.

        Args:
            model: The model.
            units: Layer -> (categories, d_model) unit vectors to project on.
        """
        self.model, self.units = model, units
        self.sites = sites(model.nnsight, list(model.layers), model.module)
        self.refusing = refusal_tokens(model).ids
        self._opening: tuple[list[int], DynamicCache] = ([], cached())
        self._before: list[int] = []

    def together(self, rows: Sequence[Row], tokens: int) -> list[Joined]:
        """Rows that were asked for at about the same time, in passes of at most so many tokens."""
        opening = self._shared([list(row.asked.ids) for row in rows], rows)
        found: list[Joined] = []
        for wide in (False, True):
            some = [row for row in rows if _is_wide(row) == wide]
            lengths = [len(row.asked.ids) - opening for row in some]
            parts = passes(self.model, lengths, tokens) if some else []
            found += [self._part([some[at] for at in part], opening, wide) for part in parts]
        return found

    def _shared(self, ids: list[list[int]], rows: Sequence[Row]) -> int:
        """How many first tokens all of them share with the rows before them; computed once, and kept for the next."""
        if not self.model.takes_masks:
            return 0
        known = self._opening[0]
        most = min(row.asked.user[0] for row in rows)
        if known and all(row[: len(known)] == known for row in ids) and len(known) <= most:
            return len(known)
        length = common_opening([*ids, self._before or ids[0]], most)
        self._before = ids[-1]
        if length < SHORT:
            return 0
        cache = cached()
        opening = torch.tensor([ids[0][:length]], device=self.model.device)
        inputs = {
            "input_ids": opening,
            "attention_mask": torch.ones_like(opening),
            "position_ids": torch.arange(length, device=self.model.device)[None],
        }
        run(self.model.nnsight, self.sites, inputs, cache, {})
        self._opening = (ids[0][:length], cache)
        return length

    def _part(self, rows: list[Row], opening: int, wide: bool) -> Joined:
        """One pass over the prompts of some rows, and another over what their gates and routes decided on."""
        device = self.model.device
        looks = [_looks(row) for row in rows]
        edits: list[RowEdits | None] = [None if look else self._decided(row, Unsteered()) for row, look in zip(rows, looks, strict=True)]  # fmt: skip
        seen: list[Unsteered] = [Unsteered()] * len(rows)
        batch = pad_batch([list(row.asked.ids) for row in rows], pad_id(self.model.tokenizer), device, opening)
        start = 0 if wide else opening
        passed: Passed | None = None
        past = self._begun(len(rows), start, batch)
        if any(looks) or not wide:
            reading = self._reading(rows, opening, batch, start)
            own = stacked([edit or _none() for edit in edits], self.model.d_model, device) if not wide else {}
            passed = run(self.model.nnsight, self.sites, _from(batch, start), past, own, first=True, reading=reading)
            for at, look in enumerate(looks):
                if look:
                    seen[at] = self._seen(rows[at], passed, at)
                    edits[at] = self._decided(rows[at], seen[at])
        decided = [edit for edit in edits if edit is not None]
        every = stacked(decided, self.model.d_model, device)
        if wide:
            past = self._begun(len(rows), 0, batch)
            reading = self._projecting(rows, batch, 0)
            passed = run(self.model.nnsight, self.sites, batch, past, every, first=True, wide=True, reading=reading)
        elif any(looks):
            passed = self._again(rows, decided, batch, past, passed)
        assert passed is not None
        biased = [
            with_bias(passed.logits[at : at + 1], [row.asked.plan.shipped], seen[at], row.asked.gates)
            for at, row in enumerate(rows)
        ]
        logits = torch.cat(biased)
        self._tell(rows, decided, seen, logits, passed, opening if not wide else 0)
        last = None if passed.projections is None else passed.projections[:, -1]
        state = Batched(past, batch["attention_mask"], batch["position_ids"][:, -1:])
        return Joined(rows, decided, state, logits, last)

    def _again(
        self, rows: list[Row], edits: list[RowEdits], batch: Batch, past: DynamicCache, passed: Passed | None
    ) -> Passed:  # fmt: skip
        """The last tokens once more, now that it is decided what is done to them; a row that was not looked at stays as it was."""
        assert passed is not None
        past.crop(-1)
        every = stacked(edits, self.model.d_model, self.model.device)
        reading = self._projecting(rows, batch, batch["input_ids"].shape[1] - 1)
        last = run(self.model.nnsight, self.sites, _from(batch, batch["input_ids"].shape[1] - 1), past, every, first=True, reading=reading)  # fmt: skip
        shadows = passed.projections
        if shadows is not None and last.projections is not None:
            shadows = torch.cat([shadows[:, :-1], last.projections], dim=1)
        return Passed(last.logits, passed.states, shadows)

    def _begun(self, rows: int, opening: int, batch: Batch) -> DynamicCache:
        """A cache of the opening for so many rows."""
        own = batch["input_ids"].shape[1] - opening
        return repeated(self._opening[1], rows, own + 1) if opening else cached()

    def _reading(self, rows: Sequence[Row], opening: int, batch: Batch, start: int) -> Reading:
        """What the rows' gates read, and projections where one is asked for."""
        gates = [gate for row in rows for gate in _its_gate(row)]
        encoded = Encoded([list(row.asked.ids) for row in rows], [row.asked.user for row in rows])
        weights = weights_of(encoded, range(len(rows)), opening, gates)
        marks = marks_of(list(self.model.layers), gates, (), weights)
        return self._projecting(rows, batch, start, marks)

    def _projecting(self, rows: Sequence[Row], batch: Batch, start: int, marks: object = None) -> Reading:
        asked = any(row.asked.projects for row in rows)
        columns = batch["input_ids"].shape[1] - start
        more = {} if marks is None else {"marks": marks}
        return Reading(units=self.units if asked else None, columns=columns, **more)  # type: ignore[arg-type]

    def _seen(self, row: Row, passed: Passed, at: int) -> Unsteered:
        """What an unsteered pass gave of one row."""
        logits = passed.logits[at : at + 1]
        states = {read: state[at : at + 1] for read, state in passed.states.items()}
        tokens = logits[:, self.refusing] if self.refusing else None
        mine = row.asked.plan.shipped.gate
        nothing = torch.zeros(1, device=logits.device)
        scores = [score(gate, states, logits, logits.device) if number == mine else nothing for number, gate in enumerate(row.asked.gates)]  # fmt: skip
        return Unsteered(tokens, scores, logits)

    def _decided(self, row: Row, seen: Unsteered) -> RowEdits:
        """What is done to a row, as its arm, its route and its gate decide."""
        plan = row.asked.plan.shipped
        blocks = [number for number, _ in self.sites if number in plan.layers] if plan.operation != "none" else []
        return row_edits([plan], seen, row.asked.gates, blocks, self.model.device)

    def _tell(
        self, rows: Sequence[Row], edits: Sequence[RowEdits], seen: Sequence[Unsteered], logits: torch.Tensor, passed: Passed, opening: int
    ) -> None:  # fmt: skip
        shares = logits[:, self.refusing].logsumexp(-1) - logits.logsumexp(-1) if self.refusing else None
        for at, row in enumerate(rows):
            gate = row.asked.plan.shipped.gate
            shadows = None
            if passed.projections is not None and row.asked.projects:
                own = len(row.asked.ids) - max(row.asked.user[0], opening)
                shadows = passed.projections[at, -own:].tolist()
            row.tell(
                Opened(
                    int(edits[at].vector[0]),
                    float(edits[at].strength[0]),
                    float(seen[at].scores[gate][0]) if gate >= 0 else None,
                    None if shares is None else float(shares[at].exp()),
                    shadows,
                )
            )


def _is_wide(row: Row) -> bool:
    plan = row.asked.plan.shipped
    return plan.scope in WIDE and plan.operation != "none"


def _looks(row: Row) -> bool:
    """Whether what is done to it rests on an unsteered look."""
    plan = row.asked.plan.shipped
    return plan.routed or plan.gate >= 0


def _its_gate(row: Row) -> list[Gate]:
    at = row.asked.plan.shipped.gate
    return [row.asked.gates[at]] if at >= 0 else []


def _none() -> RowEdits:
    return RowEdits(torch.zeros(1, dtype=torch.long), torch.zeros(1), {})


def _from(batch: Batch, start: int) -> Batch:
    """A batch's columns from one on, and its whole mask."""
    return {name: batch[name][:, start:] for name in ("input_ids", "position_ids")} | {"attention_mask": batch["attention_mask"]}  # fmt: skip


__all__ = ["Edits", "Joined", "Joining"]
