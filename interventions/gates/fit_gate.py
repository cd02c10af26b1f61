"""Fitting a gate on labelled prompts: scores out of fold, a threshold that promises something, and how it carries over."""

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch

from data.contract import SITE, gate_members
from data.errors import UserError
from interventions.gates.carry_over import GateRows, carried_over, fit_words
from interventions.gates.combination import joining, out_of_fold
from interventions.gates.features import Features, Kind
from interventions.gates.gate import FittedGate
from interventions.gates.kinds import cast, control, harmfulness, network, ridge
from interventions.gates.quality import choose_threshold
from interventions.gates.threshold import keep_refusal
from interventions.model.model import Model

KINDS = {"network": network.KIND, "ridge": ridge.KIND, "control": control.KIND, "harmfulness": harmfulness.KIND, "cast": cast.KIND,
         "words": Kind(fit_words)}  # fmt: skip


def kind_of(name: str) -> Kind:
    """The kind of a gate, or of several joined."""
    how, members = gate_members(name)
    kinds = {member: KINDS[member] for member in members}
    if not how:
        return kinds[name]

    def reads(model: Model) -> list[tuple[int, str]]:
        return list(dict.fromkeys(read for kind in kinds.values() for read in kind.reads(model)))

    fits = {member: kind.fit for member, kind in kinds.items()}
    return Kind(joining(how, fits), reads, any(kind.reads_tokens for kind in kinds.values()))


@dataclass(frozen=True)
class GateReport:
    """A gate and what is known of it.

    Attributes:
        gate: The gate.
        quality: How well it tells prompts apart that it was fitted without, in the columns of `GATE_QUALITY`.
        score: (rows,) float32, of each prompt that of a gate which was fitted without its theme.
    """

    gate: FittedGate
    quality: pl.DataFrame
    score: np.ndarray


def fit_gate(
    name: str, model: Model, rows: GateRows, features: Features, *, keep: float | None = None, fpr: float | None = None
) -> GateReport:
    """Fit a gate to all rows; its threshold is chosen by scores of gates that were fitted without the row's theme.

    Args:
        name: Of the gate, or of several joined.
        model: The model that it gates.
        rows: The prompts.
        features: What was read of them, in their order.
        keep: Share of the unsteered refusals that the threshold keeps, with 95 % confidence.
        fpr: Share of benign rows that may pass for harmful; without either Youden's J.

    Raises:
        UserError: No harmful or benign row, too few themes, or no threshold that keeps what it should.
    """
    harmful, every = rows.harmful, np.arange(rows.frame.height)
    for there, word in ((harmful.any(), "harmful"), ((~harmful).any(), "benign")):
        if not there:
            raise UserError(f"no {word} row to fit a gate on: add prompts, or --benign NAME_OR_FILE")
    fit = kind_of(name).fit
    score = out_of_fold(features, every, harmful, rows.themes, fit)
    threshold, rule = threshold_of(score, rows, keep, fpr)
    gate = fit(features, every, harmful, list(rows.themes))
    origin = {"model": model.name, "revision": model.revision, "site": SITE}
    gate = replace(
        gate,
        threshold=torch.tensor([threshold], dtype=torch.float32),
        metadata={"kind": name, **origin, **gate.metadata, **rule, "rows": str(len(harmful)), "chosen_on": str(int(rows.counted.sum())),
                  "data": ", ".join(sorted(rows.frame["dataset"].unique()))},
        members={key: replace(one, metadata={"kind": key, **origin, **one.metadata}) for key, one in gate.members.items()},
    )  # fmt: skip
    return GateReport(gate, carried_over(rows, features, fit, score, threshold), score)


def threshold_of(
    score: np.ndarray, rows: GateRows, keep: float | None, fpr: float | None
) -> tuple[float, dict[str, str]]:
    """The threshold by scores out of fold, and how it was chosen, for the metadata.

    Raises:
        UserError: None keeps what it should.
    """
    free = rows.counted
    declined = np.ones(len(score), bool) if rows.declined is None else rows.declined
    score, harmful, declined = score[free], rows.harmful[free], declined[free]
    if keep is None:
        threshold = choose_threshold(harmful, score, fpr)
        return threshold, {"threshold_rule": "youden" if fpr is None else f"fpr<={fpr:g}"}
    found = keep_refusal(score, harmful, declined, keep)
    if found.threshold is None:
        raise UserError(f"no threshold keeps {keep:.0%} of the refusals with 95 % confidence on {found.declined} harmful prompts that "
                        f"are declined: {found.needed} of them, none lost, would be needed; add prompts, or ask --keep-refusal "
                        "for less")  # fmt: skip
    noted = {"threshold_rule": f"keep-refusal>={keep:g}", "kept": f"{found.kept:.6f}", "kept_low": f"{found.low:.6f}",
             "released": f"{found.released:.6f}", "declined": str(found.declined)}  # fmt: skip
    return found.threshold, noted
