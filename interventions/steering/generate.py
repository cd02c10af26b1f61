"""Steered generation in batches, resumable: prompts and vectors in, one row for each prompt and arm out."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from data import fingerprint
from data.contract import MAX_NEW_TOKENS
from data.store.journal import Journal
from data.store.tables import GENERATIONS, write_table
from interventions.backends.batches import run_batches
from interventions.model.control_tokens import refusal_tokens
from interventions.model.model import Model
from interventions.model.prompt_format import Encoded
from interventions.reading.budget import DECODED, Budget, default_batch_tokens
from interventions.steering.answer import Answers
from interventions.steering.arms import Arm
from interventions.steering.batches import answer_rows, plan_answers, variants_of
from interventions.steering.plans import Plan, Tools, made_from, plan_arm
from interventions.steering.texts import Row, arm_columns, row_answer, token_columns, warn_of_overflow


def generate(
    model: Model,
    prompts: pl.DataFrame,
    tools: Tools,
    path: Path,
    *,
    arms: Sequence[Arm],
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_tokens: int | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """Answer every prompt in every arm, greedily, and write the table; a killed run's finished batches are kept.

    Args:
        model: An open model.
        prompts: Rows in the shape of `data.load_all`; no arm but `oracle` reads their category or label.
        tools: Steering vectors of this model, and what else the arms draw on.
        path: The parquet file to write.
        arms: What to compare.
        max_new_tokens: At most so many tokens an answer.
        batch_tokens: Padded tokens a batch, default 2048, on a GPU as many as its memory holds; up to four times as
            many are decoded at once, new ones included.
        seed: Written into the table; greedy decoding draws nothing.

    Raises:
        UserError: The tools don't fit the model, or an arm asks for what isn't there.
    """
    done = answered(model, prompts, tools, path, arms=arms, max_new_tokens=max_new_tokens, batch_tokens=batch_tokens,
                    seed=seed)  # fmt: skip
    write_table(path, done.table)
    done.journal.remove()
    return done.table


class Answered(NamedTuple):
    """Answers, and the journal that holds them until they are written."""

    table: pl.DataFrame
    journal: Journal


def answered(
    model: Model,
    prompts: pl.DataFrame,
    tools: Tools,
    path: Path,
    *,
    arms: Sequence[Arm],
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_tokens: int | None = None,
    seed: int = 0,
) -> Answered:
    """As `generate`, but for writing the table: whoever does removes the journal then."""
    tools.check(model)
    texts = prompts["prompt"].to_list()
    own = prompts.select("category", "label").to_dicts()
    plans = [plan_arm(model, arm, tools, own) for arm in arms]
    variants = variants_of(model, texts, plans, max_new_tokens)
    budget = Budget(DECODED * (batch_tokens or default_batch_tokens(model)))
    count = len(texts)
    plan = [
        [number * count + row for row in rows]
        for number, (encoded, mine) in enumerate(variants)
        for rows in plan_answers(encoded, len(mine), max_new_tokens, budget)
    ]
    key = made_from(model, fingerprint(prompts), plans, tools)
    key |= {"max_new_tokens": max_new_tokens, "seed": seed}
    gates = tools.shipped(model, plans, prompts.to_dicts())
    journal = Journal(path.parent / f".{path.stem}.journal", key, plan)

    def work(numbers: list[int]) -> list[list[Row]]:
        encoded, mine = variants[numbers[0] // count]
        found = answer_rows(model, encoded, [at % count for at in numbers], mine, gates, max_new_tokens, budget)
        return [[row(found, at, arm, plan) for arm, plan in enumerate(mine)] for at in range(len(numbers))]

    def row(found: Answers, at: int, arm: int, plan: Plan) -> Row:
        told = row_answer(model, found, at, arm, plan, max_new_tokens)
        return told | token_columns(model.tokenizer, found.tokens[at, arm].tolist(), told)

    answers = run_batches(model.backend, journal, work, "generate")
    table = _table(model, prompts, arms, variants, answers, seed)
    if refusal_tokens(model).ids:
        warn_of_overflow("refusal probability", table["refusal_probability"].null_count(), table.height)
    return Answered(table, journal)


def _table(
    model: Model,
    prompts: pl.DataFrame,
    arms: Sequence[Arm],
    variants: list[tuple[Encoded, list[Plan]]],
    answers: Sequence[Sequence[Row]],
    seed: int,
) -> pl.DataFrame:
    """One row for each arm and prompt, arm by arm."""
    of_arm: dict[tuple[str, int], Row] = {}
    for at, noted in enumerate(answers):
        variant, row = divmod(at, prompts.height)
        for plan, one in zip(variants[variant][1], noted, strict=True):
            of_arm[plan.arm.name, row] = one
    columns = prompts.select("dataset", "id", "category", "label", "prompt").to_dicts()
    whole = {"model": model.name, "backend": model.backend.kind, "seed": seed}
    return pl.DataFrame(
        [
            columns[row] | arm_columns(arm) | of_arm[arm.name, row] | whole
            for arm in arms
            for row in range(prompts.height)
        ],
        schema=GENERATIONS,
    )
