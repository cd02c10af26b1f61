"""What is asked of the engine, one row at a time, and what it tells of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from transformers import LogitsProcessorList

from interventions.steering.plans import Plan
from interventions.traced.gating import Gate

Projections: TypeAlias = list[list[float]]  # layers × categories


@dataclass(frozen=True)
class Sampling:
    """How a row's tokens are chosen.

    Attributes:
        temperature: 0 takes the most probable token.
        top_p: Tokens are drawn of the smallest set with so much probability.
        seed: Of the draws.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Asked:
    """One answer that is wanted.

    Attributes:
        ids: The rendered prompt's token ids.
        user: Tokens [start, stop) of it that hold the user's text.
        plan: The arm, for one row.
        gates: What it goes by, of `Tools.shipped` for one row.
        steps: At most so many new tokens.
        sampling: How they are chosen.
        top: How many of the most probable tokens to tell of with each; None: no log-probabilities at all.
        projects: Whether to tell each token's projections.
    """

    ids: Sequence[int]
    user: tuple[int, int]
    plan: Plan
    gates: Sequence[Gate]
    steps: int
    sampling: Sampling = Sampling()
    top: int | None = None
    projects: bool = False

    @property
    def size(self) -> int:
        """Tokens, new ones included."""
        return len(self.ids) + self.steps


@dataclass(frozen=True)
class Opened:
    """The prompt was read, and what is done to its answer is decided.

    Attributes:
        vector: Number of the vector it gets.
        strength: How strongly.
        gate: The gate's score; None without one.
        refusal: Probability of all refusal tokens at the first generated position; None where the model has none.
        projections: Of each prompt token from the user's first on, (tokens, layers, categories); None where not asked for.
    """

    vector: int
    strength: float
    gate: float | None
    refusal: float | None
    projections: list[Projections] | None = None


@dataclass(frozen=True)
class Token:
    """A new token.

    Attributes:
        id: Its number.
        logprob: Its log-probability, before temperature and top-p; None where not asked for.
        top: The most probable tokens and their log-probabilities.
        projections: Of the position that it was chosen at, on each category's unit vector, (layers, categories).
    """

    id: int
    logprob: float | None = None
    top: Sequence[tuple[int, float]] = ()
    projections: Projections | None = None


@dataclass(frozen=True)
class Ended:
    """The answer is over: `stop`, `length`; or, with an error's words, `error`, or `busy` where it may go another time."""

    finish: str = "stop"
    error: str = ""


Event: TypeAlias = Opened | Token | Ended


@dataclass(eq=False)
class Row:
    """One answer under way.

    Attributes:
        asked: What is wanted.
        tell: Called with what is new of it, in the engine's thread.
        gone: Set by anybody: nobody waits for it any more.
        made: Its tokens so far.
        rules: What a generation_config that is followed asks of it.
        over: Whether it has ended.
        draws: Its random numbers.
    """

    asked: Asked
    tell: Callable[[Event], None]
    gone: bool = False
    made: list[int] = field(default_factory=list)
    rules: LogitsProcessorList | None = None
    over: bool = False
    draws: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        """Seed its draws."""
        self.draws = torch.Generator().manual_seed(self.asked.sampling.seed)

    def end(self, finish: str = "stop", error: str = "") -> None:
        """Say that it is over, once."""
        if not self.over:
            self.over = True
            self.tell(Ended(finish, error))
