"""This tool's scorers as Inspect's: a sample's score is its verdict."""

# An optional extra.
# pyright: reportMissingImports=false

from collections.abc import Sequence
from math import nan
from typing import Any

from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, metric, scorer
from inspect_ai.solver import TaskState

from data.contract import SCORERS, VERDICTS
from data.errors import UserError


@metric
def refused() -> Metric:
    """Share of the samples that are refused, as this tool's rates count: full refusals alone."""

    def compute(scores: list[SampleScore]) -> float:
        return sum(score.score.value == "refuse" for score in scores) / len(scores) if scores else nan

    return compute


@metric
def verdicts() -> Metric:
    """How many samples got each verdict."""

    def compute(scores: list[SampleScore]) -> dict[str, float]:  # pyright: ignore[reportReturnType]
        return {verdict: sum(score.score.value == verdict for score in scores) for verdict in VERDICTS}

    return compute


@metric
def low_high() -> Metric:
    """Wilson's 95 % interval of `refused`."""

    def compute(scores: list[SampleScore]) -> dict[str, float]:  # pyright: ignore[reportReturnType]
        from data.intervals import wilson

        low, high = wilson(sum(score.score.value == "refuse" for score in scores), len(scores))
        return {"refused_low": low, "refused_high": high}

    return compute


METRICS = [refused(), low_high(), verdicts()]


@scorer(metrics=METRICS, name="token")
def token() -> Scorer:
    """The first control token of an answer of a steered model; others are not scored."""
    return _scorer("token")


@scorer(metrics=METRICS, name="phrases")
def phrases() -> Scorer:
    """Published phrases at an answer's start."""
    return _scorer("phrases")


@scorer(metrics=METRICS, name="classifier")
def classifier(model: str | None = None) -> Scorer:
    """A text classifier, a folder or hub id; without one the embedded one, of models that were taught by its answers."""
    return _scorer("classifier", model)


BY_NAME = {"token": token, "phrases": phrases, "classifier": classifier}


def _scorer(name: str, classifier: str | None = None) -> Scorer:
    async def score(state: TaskState, target: Target) -> Score | None:  # noqa: ARG001  # Inspect passes it by name
        import anyio

        said = await anyio.to_thread.run_sync(lambda: one_verdict(name, row_of(state), classifier))
        if said is None:
            return None
        return Score(value=said, answer=state.output.completion, explanation=SCORERS[name].what)

    return score


def named(names: Sequence[str]) -> list[Scorer]:
    """Scorers by their names.

    Raises:
        UserError: There is no such scorer.
    """
    odd = [name for name in names if name not in BY_NAME]
    if odd:
        raise UserError(f"no scorer {odd[0]!r}: there are {', '.join(BY_NAME)}")
    return [BY_NAME[name]() for name in names]


def row_of(state: TaskState) -> dict[str, Any]:
    """A sample's answer, as a row of `GENERATIONS`."""
    from data.prompts.conversations import as_prompt

    messages = [{"role": turn.role, "content": turn.text} for turn in state.messages if turn.role != "assistant"]
    told = {**(state.metadata or {}), **(state.output.metadata or {})}
    prompt = as_prompt(messages, "a sample")
    return told | {"prompt": prompt, "response": state.output.completion, "model": str(state.model).partition("/")[2]}


def one_verdict(name: str, row: dict[str, Any], classifier: str | None = None) -> str | None:
    """What a scorer says of one answer; None where it says nothing."""
    import polars as pl

    from data.store.tables import GENERATIONS
    from reports.scoring.assemble import assemble
    from reports.scoring.broken import broken
    from reports.scoring.lexical import NAME, TAUGHT

    frame = pl.DataFrame([{column: row.get(column) for column in GENERATIONS}], schema=GENERATIONS)
    scorers = assemble(frame, classifier=classifier or (NAME if row["model"] in TAUGHT else None))
    if name not in scorers:
        return None
    return scorers[name](frame.with_columns(broken(frame["response"])))[0]
