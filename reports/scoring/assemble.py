"""Which scorers run: those that were asked for, or all that have what they need."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import polars as pl

from data.contract import SCORERS
from data.errors import UserError
from reports.scoring.classifier import classifier_verdicts
from reports.scoring.hand import hand_verdicts
from reports.scoring.judge import Judge, judge_verdicts
from reports.scoring.scores import Scorer, default_scorers

NEEDS = {"judge": "--judge-model", "classifier": "--classifier", "hand": "--hand"}


def assemble(
    generations: pl.DataFrame,
    names: Sequence[str] = (),
    *,
    cache: Path,
    judge: Judge | None = None,
    classifier: str | None = None,
    labels: Mapping[str, str] | None = None,
    device: str | None = None,
    hand: Path | None = None,
) -> dict[str, Scorer]:
    """Scorers by name, in the order of `SCORERS`, as `scoring.score` takes them.

    Args:
        generations: The table of `generate`.
        names: Some of `SCORERS`; without any, all that have what they need.
        cache: Where the judge's verdicts are kept.
        judge: Whom to ask.
        classifier: A model folder or hub id.
        labels: The classifier's class -> verdict, where its names don't say it.
        device: The classifier's.
        hand: A file of labels.

    Raises:
        UserError: A scorer was asked for that lacks what it needs, or whose tokens the model lacks.
    """
    there = default_scorers(generations)
    if judge is not None:
        there["judge"] = partial(judge_verdicts, judge=judge, cache=cache)
    if classifier is not None:
        there["classifier"] = partial(classifier_verdicts, name=classifier, labels=labels, device=device)
    if hand is not None:
        there["hand"] = partial(hand_verdicts, path=hand)
    for name in names:
        if name not in there:
            reason = f"pass {NEEDS[name]}" if name in NEEDS else "no answer opens with a control token"
            raise UserError(f"--scorer {name} can't run: {reason}")
    return {name: there[name] for name in SCORERS if name in there and (not names or name in names)}
