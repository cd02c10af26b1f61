"""How probable answers are to the unsteered model: what steering made of them aside, is this text that the model could have written?"""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from data.store.journal import Journal
from interventions.backends.batches import run_batches
from interventions.model.model import Model
from interventions.reading.batches import plan_batches
from interventions.reading.budget import default_batch_tokens
from interventions.steering.arms import baseline
from interventions.steering.batches import variants_of
from interventions.steering.effects import forced_variants
from interventions.steering.plans import Tools, made_from, plan_arm
from interventions.steering.teacher_forcing import most_rows


class Likelihoods(NamedTuple):
    """A mean of log p a token for each answer, nats, None for those without text; and the journal that holds them until they are written."""

    means: list[float | None]
    journal: Journal


def log_likelihoods(
    model: Model,
    prompts: Sequence[str],
    answers: Sequence[Sequence[int]],
    skipped: Sequence[int],
    tools: Tools,
    path: Path,
    *,
    batch_tokens: int | None = None,
) -> Likelihoods:
    """Mean log-likelihood a token of answers under the unsteered model, given their prompts; finished batches of a killed run are kept.

    Args:
        model: An open model.
        prompts: One an answer.
        answers: Token ids of each.
        skipped: How many first tokens of each are given and not counted: a control token is a decision, not text.
        tools: Any of this model; none is drawn on.
        path: The file that is being made, beside which the journal stands.
        batch_tokens: Padded tokens a batch, default 2048, on a GPU as many as its memory holds.
    """
    asked = [row for row, (ids, first) in enumerate(zip(answers, skipped, strict=True)) if len(ids) > first]
    texts, given = [prompts[row] for row in asked], [list(answers[row]) for row in asked]
    plans = [plan_arm(model, baseline(0), tools, [{"category": None, "label": None}] * len(asked))]
    variants = variants_of(model, texts, plans)
    digest = sha256(repr((texts, given, list(skipped))).encode()).hexdigest()
    lengths = [len(context) + len(ids) for context, ids in zip(variants[0][0].ids, given, strict=True)]
    most = most_rows(model, max(map(len, given), default=1))
    plan = plan_batches(lengths, batch_tokens or default_batch_tokens(model), most)
    journal = Journal(path.parent / f".{path.stem}.journal", made_from(model, digest, plans, tools), plan)

    def work(rows: list[int]) -> list[float]:
        nll = forced_variants(model, variants, rows, [given[row] for row in rows], "nll", [])[:, 0]
        firsts = [skipped[asked[row]] for row in rows]
        return [
            -float(nll[at, first : len(given[row])].mean())
            for at, (row, first) in enumerate(zip(rows, firsts, strict=True))
        ]

    found = run_batches(model.backend, journal, work, "coherence")
    means: list[float | None] = [None] * len(answers)
    for row, mean in zip(asked, found, strict=True):
        means[row] = mean
    return Likelihoods(means, journal)
