"""The parts of a report, in the order in which they stand. Each is a function: a run in, a section or None out. Imports page,
statistics, scoring and data.
"""

from collections.abc import Callable
from functools import partial

from reports.page.blocks import Section
from reports.page.run import Run
from reports.page.sections import (
    activations,
    answer,
    costs,
    diffing,
    lengths,
    paper,
    provenance,
    rates,
    samples,
    traces,
    vectors,
)
from reports.page.sections.selective import category, compared, gates, probe, sweep
from reports.page.sections.validity import agreement, judges, parity


def ordered(map_of_activations: str = "pca") -> list[Callable[[Run], Section | None]]:
    """All of them; `map_of_activations` is one of `data.contract.MAPS`."""
    return [
        answer.section,
        rates.section,
        lengths.section,
        paper.section,
        samples.section,
        agreement.section,
        judges.section,
        judges.rubric,
        parity.section,
        compared.section,
        sweep.section,
        costs.effects,
        costs.capability,
        vectors.section,
        partial(activations.section, how=map_of_activations),
        traces.section,
        probe.section,
        gates.section,
        category.section,
        diffing.section,
        provenance.left_out,
        provenance.provenance,
    ]
