"""Strengths at equal harm: the one at which an arm's KL on harmless prompts is a given budget, by a secant on logarithms.

Harm is the 95th percentile over prompts of the mean over the first 20 tokens of KL(unsteered ‖ arm), both reading the
unsteered model's own answer. For small strengths KL grows with their square, so that log KL is nearly a line of
log strength: a few tries do.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl

from interventions.model.model import Model
from interventions.reading.batches import plan_batches
from interventions.reading.budget import DECODED, Budget, default_batch_tokens
from interventions.steering.arms import Arm
from interventions.steering.batches import answer_rows, plan_answers, variants_of
from interventions.steering.effects import forced_variants, upto_stop
from interventions.steering.plans import Tools, plan_arm
from interventions.steering.teacher_forcing import most_rows

BUDGET, TOKENS, PERCENTILE = 0.5, 20, 95  # nats; tokens of an answer; of the prompts
WITHIN, TRIES = 0.05, 12
SLOPE = 1.3  # of log KL over log strength around half a nat; 2 where strengths are small
FAR = math.log(4)  # beyond what was tried a step goes no further, in log strength


class Reached(NamedTuple):
    """The strength nearest to a budget of those that were tried.

    Attributes:
        strength: Above 0.
        kl: What it costs, nats.
        tries: How many strengths were tried.
        why_not: Why `kl` is not within 5 % of the budget; empty where it is.
    """

    strength: float
    kl: float
    tries: int
    why_not: str = ""


def equal_kl(
    measure: Callable[[Mapping[int, float]], Mapping[int, float]],
    starts: Sequence[float],
    budget: float = BUDGET,
    *,
    within: float = WITHIN,
    tries: int = TRIES,
) -> list[Reached]:
    """For each of several arms the strength whose KL is the budget; arms are tried side by side.

    The secant of log KL over log strength, kept inside what is known to be too weak and too strong; where it would leave
    that, or KL does not grow, the middle is tried, and at either end a step of at most a factor of 4.

    Args:
        measure: KL in nats of some arms (by their place in `starts`), each at a strength.
        starts: Where to begin, above 0: sizes alone, whoever measures knows signs and units.
        budget: Nats, above 0.
        within: How near to it is near enough, as a share of it.
        tries: At most so many strengths for an arm.
    """
    tried: list[list[tuple[float, float]]] = [[] for _ in starts]
    now = dict(enumerate(map(float, starts)))
    while now:
        for at, kl in measure(now).items():
            tried[at].append((now[at], math.inf if math.isnan(kl) else float(kl)))
        now = {
            at: step
            for at in now
            if abs(_best(tried[at], budget)[1] / budget - 1) > within and len(tried[at]) < tries
            for step in [_next(tried[at], budget)]
            if step is not None
        }
    return [_reached(points, budget, within) for points in tried]


def _next(points: Sequence[tuple[float, float]], budget: float) -> float | None:
    """The strength to try next, or None where a try more would say nothing new."""
    goal = math.log(budget)
    known = sorted((math.log(size), math.log(kl) if 0 < kl < math.inf else -math.inf if kl == 0 else math.inf)
                   for size, kl in points)  # fmt: skip
    weak = max((x for x, y in known if y < goal), default=None)
    strong = min((x for x, y in known if y >= goal and (weak is None or x > weak)), default=None)
    finite = sorted(((x, y) for x, y in known if math.isfinite(y)), key=lambda point: abs(point[1] - goal))[:2]
    slope = SLOPE
    if len(finite) == 2 and finite[0][0] != finite[1][0]:
        slope = (finite[0][1] - finite[1][1]) / (finite[0][0] - finite[1][0])
    guess = finite[0][0] + (goal - finite[0][1]) / slope if finite and slope > 0 else None
    if weak is None:
        low = known[0][0]
        step = max(low - FAR, guess) if guess is not None and guess < low else low - FAR
    elif strong is None:
        step = min(weak + FAR, guess) if guess is not None and guess > weak else weak + FAR
    else:
        step = guess if guess is not None and weak < guess < strong else (weak + strong) / 2
        if strong - weak < 1e-3:
            return None
    return math.exp(step)


def _best(points: Sequence[tuple[float, float]], budget: float) -> tuple[float, float]:
    """The point nearest to the budget, by the logarithm of what KL is of it."""
    return min(points, key=lambda point: abs(math.log(point[1] / budget)) if 0 < point[1] < math.inf else math.inf)


def _reached(points: Sequence[tuple[float, float]], budget: float, within: float) -> Reached:
    size, kl = _best(points, budget)
    why = ""
    if not abs(kl / budget - 1) <= within:
        sizes, costs = [x for x, _ in points], [y for _, y in points]
        if max(costs) < budget:
            why = f"at most {max(costs):.3g} nats, at {max(sizes):.3g} as at less"
        elif all(cost > budget or cost != cost for cost in costs):
            why = f"at least {min(costs):.3g} nats, down to a strength of {min(sizes):.3g}"
        else:
            why = f"no strength tried in {len(points)} comes nearer: KL jumps there"
    return Reached(size, kl, len(points), why)


@dataclass(frozen=True)
class HarmlessKL:
    """KL of arms on harmless prompts, whose unsteered answers were read once.

    Attributes:
        model: An open model.
        tools: What the arms draw on.
        rows: The prompts' rows; no arm but `oracle` and `perfect` reads their category or label.
        answers: The first tokens of each unsteered answer, the stop token among them.
        batch_tokens: Padded tokens a batch.
    """

    model: Model
    tools: Tools
    rows: list[dict[str, str | None]]
    answers: list[list[int]]
    batch_tokens: int

    @classmethod
    def of(
        cls, model: Model, prompts: pl.DataFrame, tools: Tools, tokens: int = TOKENS, batch_tokens: int | None = None
    ) -> "HarmlessKL":
        """Answer the prompts unsteered, at most so many tokens each."""
        rows, batch = prompts.to_dicts(), batch_tokens or default_batch_tokens(model)
        plan = plan_arm(model, Arm("baseline", "baseline", 0), tools, rows)
        [(encoded, plans)] = variants_of(model, [row["prompt"] for row in rows], [plan], tokens)
        answers: list[list[int]] = [[] for _ in rows]
        budget = Budget(DECODED * batch)
        for some in plan_answers(encoded, 1, tokens, budget):
            found = answer_rows(model, encoded, some, plans, [], tokens, budget)
            for row, ids in zip(some, found.tokens[:, 0].tolist(), strict=True):
                answers[row] = upto_stop(model, ids)
        return cls(model, tools, rows, answers, batch)

    def means(self, arms: Sequence[Arm], tools: Sequence[Tools] | None = None) -> np.ndarray:
        """(prompts, arms): the mean over an answer's first tokens of KL(unsteered ‖ arm), nats.

        Args:
            arms: What is measured.
            tools: What each draws on, with the same gates in all; default `self.tools`.
        """
        plain = [Arm("baseline", "baseline", 0)] * all(
            arm.does.instructs for arm in arms
        )  # stands for the prompts as they are, whose distributions all are compared with
        drawn = [self.tools] * (len(plain) + (0 if tools else len(arms))) + list(tools or [])
        plans = [plan_arm(self.model, arm, on, self.rows) for arm, on in zip([*plain, *arms], drawn, strict=True)]
        variants = variants_of(self.model, [str(row["prompt"]) for row in self.rows], plans, TOKENS)
        place = {id(plan): at for at, plan in enumerate(plans)}
        order = np.argsort([place[id(plan)] for _, mine in variants for plan in mine])[len(plain) :]
        gates = self.tools.shipped(self.model, plans, self.rows)
        found = np.zeros((len(self.rows), len(arms)))
        most = most_rows(self.model, max(map(len, self.answers)))
        lengths = [len(answer) + len(ids) for answer, ids in zip(self.answers, variants[0][0].ids, strict=True)]
        for some in plan_batches(lengths, self.batch_tokens, most):
            kl = forced_variants(self.model, variants, some, [self.answers[row] for row in some], "kl", gates)
            found[some] = kl.sum(-1)[:, order] / np.array([len(self.answers[row]) for row in some])[:, None]
        return found

    def __call__(self, arms: Sequence[Arm]) -> np.ndarray:
        """(arms,): the 95th percentile over prompts, nats."""
        return np.percentile(self.means(arms), PERCENTILE, axis=0)
