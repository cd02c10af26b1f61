"""One prompt under the lens: unsteered and steered side by side."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl
import torch

from data import fingerprint
from data.store.journal import Journal
from data.store.tables import TRACES
from interventions.backends.batches import run_batches
from interventions.methods.vectors import SteeringVectors
from interventions.model.model import Model
from interventions.model.prompt_format import Encoded
from interventions.reading.batches import pad_batch, pad_id, plan_batches
from interventions.reading.budget import DECODED, Budget, default_batch_tokens
from interventions.reading.extract import RESULT_BYTES
from interventions.steering.answer import Answers
from interventions.steering.arms import Arm
from interventions.steering.batches import answer_rows, variants_of
from interventions.steering.plans import Plan, Tools, plan_arm, tools_fingerprint
from interventions.steering.teacher_forcing import teacher_forced
from interventions.steering.texts import Row, arm_columns, finite, row_answer, warn_of_overflow


def trace(
    model: Model,
    prompts: pl.DataFrame,
    tools: Tools,
    arm: Arm,
    folder: Path,
    *,
    max_new_tokens: int = 0,
    top_k: int = 5,
    batch_tokens: int | None = None,
) -> pl.DataFrame:
    """Next token, projections and, if asked for, text of each prompt, without and with what the arm does.

    `category` is that of the vector which was added; the prompt's own is `prompt_category`. Projections are those
    of the unsteered residual stream at the last prompt token onto each category's unit vector.

    Raises:
        UserError: The vectors don't fit the model.
    """
    tools.vectors.check(model)
    vectors = tools.vectors
    baseline = replace(arm, name="baseline", kind="baseline", route="fixed")
    own = prompts.select("category", "label").to_dicts()
    plans = [plan_arm(model, one, tools, own) for one in (baseline, arm)]
    variants = variants_of(model, prompts["prompt"].to_list(), plans, max_new_tokens)
    lengths = [len(ids) + max_new_tokens for ids in variants[-1][0].ids]
    key = {
        "model": model.identity,
        "data": fingerprint(prompts),
        "arm": arm.record,
        "tools": tools_fingerprint(plans, tools),
        "options": [max_new_tokens, top_k],
    }
    batch_tokens = batch_tokens or default_batch_tokens(model)
    budget = Budget(DECODED * batch_tokens)
    most_rows = max(1, RESULT_BYTES // (4 * len(vectors.layers) * model.d_model))  # every layer of a row comes back
    gates = tools.shipped(model, plans, prompts.to_dicts())
    journal = Journal(folder / ".traces.journal", key, plan_batches(lengths, batch_tokens, most_rows))

    def work(rows: list[int]) -> list[Row]:
        sides = [
            answer_rows(
                model, encoded, rows, mine, gates, max_new_tokens, budget, read_layers=vectors.layers, top_k=top_k
            )
            for encoded, mine in variants
        ]
        assert sides[0].residual is not None and sides[0].kl is not None
        kl = sides[0].kl[:, 1] if len(sides) == 1 else _divergence(model, rows, variants)
        shadows = projections(sides[0].residual, vectors)
        return [
            _row(model, sides, at, plans, max_new_tokens) | {"kl": finite(kl[at]), "projections": shadows[at]}
            for at in range(len(rows))
        ]

    rows = run_batches(model.backend, journal, work, "trace")
    journal.remove()
    columns = prompts.select("dataset", "id", "prompt", pl.col("category").alias("prompt_category"), "label").to_dicts()
    table = pl.DataFrame([columns[row] | rows[row] for row in range(prompts.height)], schema=TRACES)
    warn_of_overflow("KL divergence", table["kl"].null_count(), table.height)
    return table


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


def _divergence(model: Model, rows: Sequence[int], variants: Sequence[tuple[Encoded, list[Plan]]]) -> torch.Tensor:
    """KL(unsteered ‖ arm) of the first position where the arm's prompts are others: (rows,), nats."""
    pad = pad_id(model.tokenizer)
    plain, other = (pad_batch([encoded.ids[row] for row in rows], pad, model.device) for encoded, _ in variants)
    plans = [plan.for_rows(rows) for plan in variants[1][1]]
    kl = teacher_forced(model, other, [[pad]] * len(rows), plans, reference=plain).kl  # whichever token would follow
    assert kl is not None
    return kl[:, 0, 0]


def _row(model: Model, sides: Sequence[Answers], row: int, plans: Sequence[Plan], max_new_tokens: int) -> Row:
    """What the table says of one prompt; the first side begins with the baseline, the last ends with the arm."""
    first, last = sides[0], sides[-1]
    assert first.top is not None and last.top is not None
    arm = plans[1].arm
    before = row_answer(model, first, row, 0, plans[0], max_new_tokens)
    after = row_answer(model, last, row, last.tokens.shape[1] - 1, plans[1], max_new_tokens)
    columns = arm_columns(arm)
    return {
        "category": after["vector"],
        "strength": after["strength"],
        **{name: columns[name] for name in ("layer", "strength_unit", "scope")},
        "top_unsteered": _top(model, first.top[0][row, 0], first.top[1][row, 0]),
        "top_steered": _top(model, last.top[0][row, -1], last.top[1][row, -1]),
        "text_unsteered": before["response"] if max_new_tokens else None,
        "text_steered": after["response"] if max_new_tokens else None,
    }


def _top(model: Model, ids: torch.Tensor, shares: torch.Tensor) -> list[Row]:
    pairs = zip(ids.tolist(), shares, strict=True)
    return [{"token": model.tokenizer.decode([token]), "probability": finite(share)} for token, share in pairs]
