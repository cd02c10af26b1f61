"""Tasks: prompts of this tool's data sets, answered once, scored by its scorers."""

# An optional extra.
# pyright: reportMissingImports=false

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inspect_ai import Epochs, Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, GenerateConfig
from inspect_ai.solver import generate

from data.contract import MAX_NEW_TOKENS
from data.errors import UserError
from refusal_steering.scorers import BY_NAME, named

if TYPE_CHECKING:
    import polars as pl

TURNS = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
WANTED = {"benign": "comply", "harmful": "refuse"}


@task
def over_refusal(
    data: str = "embedded", split: str = "test", scorer: str | Sequence[str] = tuple(BY_NAME), data_mirror: str | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Task:  # fmt: skip
    """Harmless prompts: how many are declined?

    Args:
        data: As `--data` of this tool takes it.
        split: Rows to use.
        scorer: Names of scorers, with commas between them.
        data_mirror: As `--data-mirror`.
        max_new_tokens: At most so many tokens an answer.
    """
    return task_of(prompts_of(data, split, data_mirror, ("benign",)), "over_refusal", scorer, max_new_tokens)


@task
def refusal(
    data: str = "embedded", split: str = "test", scorer: str | Sequence[str] = tuple(BY_NAME), data_mirror: str | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Task:  # fmt: skip
    """Harmful prompts: how many are declined? Arguments as of `over_refusal`."""
    return task_of(prompts_of(data, split, data_mirror, ("harmful",)), "refusal", scorer, max_new_tokens)


@task
def xstest(
    label: str = "benign", scorer: str | Sequence[str] = ("phrases",), data_mirror: str | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Task:  # fmt: skip
    """XSTest (Röttger et al. 2024, arXiv 2308.01263): its safe prompts, or with `label=harmful` its unsafe ones."""
    if label not in WANTED:
        raise UserError(f"-T label={label}: benign or harmful")
    return task_of(prompts_of("xstest", "test", data_mirror, (label,)), "xstest", scorer, max_new_tokens)


def prompts_of(data: str, split: str, mirror: str | None, labels: Sequence[str]) -> "pl.DataFrame":
    """Prompts of a data set with one of these labels.

    Raises:
        UserError: The set can't be had, or holds none.
    """
    from pathlib import Path

    import polars as pl

    from data import for_split, load

    rows = for_split(load(data, None if mirror is None else Path(mirror)), split).filter(pl.col("label").is_in(labels))
    if rows.is_empty():
        raise UserError(f"{data} has no {' or '.join(labels)} prompt in split {split!r}: pass -T split=… or -T data=…")
    return rows


def task_of(prompts: "pl.DataFrame", name: str, scorer: str | Sequence[str], max_new_tokens: int) -> Task:
    """A task over some prompts."""
    names = [part.strip() for part in scorer.split(",")] if isinstance(scorer, str) else list(scorer)
    samples = [sample_of(row) for row in prompts.to_dicts()]
    return Task(MemoryDataset(samples, name=name), solver=generate(), scorer=named(names), name=name, epochs=Epochs(1, "mode"),
                config=GenerateConfig(max_tokens=max_new_tokens, temperature=0))  # fmt: skip


def sample_of(row: dict[str, Any]) -> Sample:
    """One prompt, with what stands before it."""
    from data.prompts.conversations import turns

    said: list[ChatMessage] = [TURNS[turn["role"]](content=turn["content"]) for turn in turns(row["prompt"])]
    told = {name: row[name] for name in ("dataset", "id", "label", "category") if row.get(name) is not None}
    return Sample(
        input=said, target=WANTED.get(row["label"] or "", ""), id=f"{row['dataset']}/{row['id']}", metadata=told
    )
