"""Every candidate at the strength that costs harmless prompts as much as every other."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from data.errors import UserError
from interventions.model.model import Model
from interventions.steering.arms import Arm
from interventions.steering.compared.candidates import Candidate
from interventions.steering.compared.equal_kl import PERCENTILE, HarmlessKL, Reached, equal_kl
from interventions.steering.texts import Verdicts, finished

HARMLESS = 40  # prompts that KL is measured on
# Sizes of strength to begin the search with, near what 0.5 nats are of refusal-smollm2: by unit, and of kinds that have none.
START = {"residual": 0.22, "unit": 6.0, "raw": 1.0}
START_OF_KIND = {"angular": 0.07, "alphasteer": 1.9}


def harmless_kl(model: Model, benign: pl.DataFrame, candidate: Candidate, verdicts: Verdicts, seed: int) -> HarmlessKL:
    """Of at most 40 benign prompts that the model answers unsteered: to change its refusals is what steering is for.

    Raises:
        UserError: It answers none.
    """
    some = benign.sample(min(2 * HARMLESS, benign.height), seed=seed, shuffle=True)
    asked = HarmlessKL.of(model, some, candidate.tools)
    texts = [finished(model, ids, len(ids)) for ids in asked.answers]
    said = verdicts([text["response"] for text in texts])
    answers = [not text["refusal_token"] and verdict != "refuse" for text, verdict in zip(texts, said, strict=True)]
    kept = np.flatnonzero(answers)[:HARMLESS].tolist()
    if not kept:
        raise UserError("the model answers no benign prompt unsteered, so that KL on harmless prompts can't be measured; "
                        "add some with --benign NAME_OR_FILE")  # fmt: skip
    return replace(asked, rows=[asked.rows[at] for at in kept], answers=[asked.answers[at] for at in kept])


def sized(candidates: Sequence[Candidate], measured: HarmlessKL, budget: float) -> list[tuple[Candidate, Reached]]:
    """Each candidate at a budget of nats, and what it costs; one without a strength as it is."""
    free = [candidate for candidate in candidates if candidate.sized]
    rest = [candidate for candidate in candidates if not candidate.sized]
    starts = [START_OF_KIND.get(candidate.kind, START[candidate.arm.unit]) for candidate in free]
    of_rest: list[float] = []

    def measure(sizes: Mapping[int, float]) -> dict[int, float]:
        """Of some at a strength; and once, in the same passes, of those without one."""
        more = [] if of_rest else rest
        arms = [free[at].at(size).arm for at, size in sizes.items()] + [candidate.arm for candidate in more]
        costs = _costs([*(free[at] for at in sizes), *more], arms, measured)
        of_rest.extend(costs[len(sizes) :])
        return dict(zip(sizes, costs, strict=False))

    reached = iter(zip(free, equal_kl(measure, starts, budget), strict=True))
    if not free:
        measure({})
    costs = iter(of_rest)
    found: list[tuple[Candidate, Reached]] = []
    for candidate in candidates:
        if candidate.sized:
            mine, at = next(reached)
            found.append((mine.at(at.strength), at))
        else:
            found.append(
                (candidate, Reached(abs(candidate.arm.strength), next(costs), 1, "it has no strength to change"))
            )
    return found


def _costs(candidates: Sequence[Candidate], arms: Sequence[Arm], measured: HarmlessKL) -> list[float]:
    """KL of each, nats."""
    if not arms:
        return []
    means = measured.means(arms, [candidate.tools for candidate in candidates])
    return np.percentile(means, PERCENTILE, axis=0).tolist()
