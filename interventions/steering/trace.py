"""One prompt under the lens: unsteered and steered side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl
import torch

from data import fingerprint
from data.store.journal import Journal
from data.store.tables import TRACES
from interventions.backends.batches import run_batches
from interventions.methods.vectors import SteeringVectors
from interventions.model.model import Model
from interventions.model.prompt_format import Encoded, shown
from interventions.reading.batches import pad_batch, pad_id, plan_batches
from interventions.reading.budget import DECODED, Budget, default_batch_tokens
from interventions.reading.extract import RESULT_BYTES
from interventions.steering.answer import Answers
from interventions.steering.arms import Arm
from interventions.steering.batches import answer_rows, variants_of
from interventions.steering.plans import Plan, Tools, plan_arm, tools_fingerprint
from interventions.steering.teacher_forcing import teacher_forced
from interventions.steering.texts import Row, arm_columns, finite, row_answer, warn_of_overflow


class Traced(NamedTuple):
    """Rows, and the journal that holds them until they are written."""

    table: pl.DataFrame
    journal: Journal


def trace(
    model: Model,
    prompts: pl.DataFrame,
    tools: Tools,
    folder: Path,
    *,
    arms: Sequence[Arm],
    max_new_tokens: int = 0,
    top_k: int = 5,
    batch_tokens: int | None = None,
) -> Traced:
    """Next token, projections and, if asked for, text of each prompt, without and with what each arm does.

    A row a prompt and arm; whoever writes them removes the journal then. `category` is that of the vector which was
    added; the prompt's own is `prompt_category`; `rendered` is the prompt as the arm reads it, with all control tokens. Projections are those of the unsteered residual stream at the last
    prompt token onto each category's unit vector.

    Raises:
        UserError: The vectors don't fit the model.
    """
    tools.vectors.check(model)
    vectors = tools.vectors
    baseline = Arm("baseline", "baseline", arms[0].layer)
    own = prompts.select("category", "label").to_dicts()
    plans = [plan_arm(model, one, tools, own) for one in (baseline, *arms)]
    variants = variants_of(model, prompts["prompt"].to_list(), plans, max_new_tokens)
    lengths = [len(ids) + max_new_tokens for ids in variants[-1][0].ids]
    key = {
        "model": model.identity,
        "data": fingerprint(prompts),
        "arms": [arm.record for arm in arms],
        "tools": tools_fingerprint(plans, tools),
        "options": [max_new_tokens, top_k],
    }
    batch_tokens = batch_tokens or default_batch_tokens(model)
    budget = Budget(DECODED * batch_tokens)
    most_rows = max(1, RESULT_BYTES // (4 * len(vectors.layers) * model.d_model))  # every layer of a row comes back
    gates = tools.shipped(model, plans, prompts.to_dicts())
    journal = Journal(folder / ".traces.journal", key, plan_batches(lengths, batch_tokens, most_rows))

    def work(rows: list[int]) -> list[list[Row]]:
        sides = [
            answer_rows(
                model, encoded, rows, mine, gates, max_new_tokens, budget, read_layers=vectors.layers, top_k=top_k
            )
            for encoded, mine in variants
        ]
        assert sides[0].residual is not None
        shadows = projections(sides[0].residual, vectors)
        steered = {}
        for side, (encoded, mine) in zip(sides, variants, strict=True):
            for at, plan in enumerate(mine):
                kl = (
                    side.kl[:, at]
                    if side is sides[0] and side.kl is not None
                    else _divergence(model, rows, variants[0][0], encoded, plan)
                )
                texts = [shown(model.tokenizer, encoded.ids[row]) for row in rows]
                steered[plan.arm.name] = _Steered(side, at, plan, kl, texts)
        return [
            [
                _row(model, steered["baseline"], steered[arm.name], at, max_new_tokens) | {"projections": shadows[at]}
                for arm in arms
            ]
            for at in range(len(rows))
        ]

    rows = run_batches(model.backend, journal, work, "trace")
    columns = prompts.select("dataset", "id", "prompt", pl.col("category").alias("prompt_category"), "label").to_dicts()
    whole = [columns[row] | rows[row][at] for at in range(len(arms)) for row in range(prompts.height)]
    table = pl.DataFrame(whole, schema=TRACES)
    warn_of_overflow("KL divergence", table["kl"].null_count(), table.height)
    return Traced(table, journal)


class _Steered(NamedTuple):
    """One arm's side of a batch: its answers, its number among their arms, its divergence (rows,), and what it reads."""

    side: Answers
    at: int
    plan: Plan
    kl: torch.Tensor
    texts: list[str]


def projections(residual: torch.Tensor, vectors: SteeringVectors) -> list[list[Row]]:
    """h · v/‖v‖ for every category and layer; residual (rows, layers, d_model)."""
    names, layers = vectors.categories, vectors.layers
    stacked = torch.stack([vectors.tensors[name] for name in names]).double()  # (categories, layers, d_model)
    unit = stacked / stacked.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    values = torch.einsum("rld,cld->rcl", residual.double(), unit)
    return [
        [
            {"category": name, "layer": layer, "value": finite(row[c, at])}
            for c, name in enumerate(names)
            for at, layer in enumerate(layers)
        ]
        for row in values
    ]


def _divergence(model: Model, rows: Sequence[int], plain: Encoded, other: Encoded, plan: Plan) -> torch.Tensor:
    """KL(unsteered ‖ arm) of the first position where the arm's prompts are others: (rows,), nats."""
    pad = pad_id(model.tokenizer)
    before, after = (pad_batch([encoded.ids[row] for row in rows], pad, model.device) for encoded in (plain, other))
    kl = teacher_forced(
        model, after, [[pad]] * len(rows), [plan.for_rows(rows)], reference=before
    ).kl  # whichever token follows
    assert kl is not None
    return kl[:, 0, 0]


def _row(model: Model, before: _Steered, after: _Steered, row: int, max_new_tokens: int) -> Row:
    """What the table says of one prompt in one arm."""
    assert before.side.top is not None and after.side.top is not None
    plain, steered = (row_answer(model, one.side, row, one.at, one.plan, max_new_tokens) for one in (before, after))
    arm = after.plan.arm
    columns = arm_columns(arm)
    return {
        "arm": arm.name,
        "kind": arm.kind,
        "category": steered["vector"],
        "strength": steered["strength"],
        "gate": steered["gate"],
        **{name: columns[name] for name in ("layer", "strength_unit", "scope")},
        "kl": finite(after.kl[row]),
        "top_unsteered": _top(model, before.side.top[0][row, 0], before.side.top[1][row, 0]),
        "top_steered": _top(model, after.side.top[0][row, after.at + 1], after.side.top[1][row, after.at + 1]),
        "text_unsteered": plain["response"] if max_new_tokens else None,
        "text_steered": steered["response"] if max_new_tokens else None,
        "max_new_tokens": max_new_tokens,
        "rendered": after.texts[row],
    }


def _top(model: Model, ids: torch.Tensor, shares: torch.Tensor) -> list[Row]:
    pairs = zip(ids.tolist(), shares, strict=True)
    return [{"token": model.tokenizer.decode([token]), "probability": finite(share)} for token, share in pairs]
