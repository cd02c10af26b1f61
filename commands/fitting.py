"""`probe` and `lowrank`: activations to a gate, and to a low-rank combination of the vectors."""

from typing import TYPE_CHECKING

from commands.framework import Session
from commands.settings import Settings

if TYPE_CHECKING:
    from interventions.lowrank import LowRank
    from interventions.probes import Probe


def need_probe(session: Session, s: Settings) -> tuple["Probe", str]:
    """The probe, and the identity of its artefact; fitted if there is none."""
    raise NotImplementedError


def need_lowrank(session: Session, s: Settings) -> tuple["LowRank", str]:
    """The low-rank map, and the identity of its artefact; trained if there is none."""
    raise NotImplementedError
