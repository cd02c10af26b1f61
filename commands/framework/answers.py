"""Answering prompts in every arm, for `generate` and `reproduce`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from commands.framework.app import Session
from commands.framework.arms import chosen_arms
from commands.framework.artefacts import Artefact
from commands.framework.prompts import fingerprint_of
from commands.framework.records import Key, model_key, note, unchanged
from commands.framework.settings import Settings

if TYPE_CHECKING:
    import polars as pl

    from interventions.model.model import Model
    from interventions.steering.arms import Arm
    from interventions.steering.plans import Tools


@dataclass(frozen=True)
class Ready:
    """All that answering takes but the prompts.

    Attributes:
        model: An open model.
        tools: What its arms draw on.
        arms: What is compared.
        rests_on: Identities of the artefacts that the tools come from.
        max_new_tokens: At most so many tokens an answer.
        seed: Written into the tables.
    """

    model: "Model"
    tools: "Tools"
    arms: "list[Arm]"
    rests_on: dict[str, str]
    max_new_tokens: int
    seed: int

    def key(self, prompts: "pl.DataFrame") -> Key:
        """What answers to these prompts are made from."""
        return model_key(self.model) | {
            **self.rests_on,
            "fingerprint": fingerprint_of(prompts),
            "arms": [arm.record for arm in self.arms],
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
        }


def prepare(session: Session, s: Settings) -> Ready:
    """Vectors, which are made if they are missing, and the arms with all they need."""
    model, arms, tools, rests_on = chosen_arms(session, s)
    return Ready(model, tools, arms, rests_on, s.get("max_new_tokens"), s.get("seed"))


def answer_prompts(
    s: Settings, ready: Ready, prompts: "pl.DataFrame", artefact: Artefact[Any], data: Sequence[str]
) -> None:
    """Answer prompts in every arm into a table, unless that was done already."""
    from data.store.rundir import now
    from interventions.steering.generate import generate

    start, key = now(), ready.key(prompts)
    if not unchanged(s, artefact, key):
        generate(ready.model, prompts, ready.tools, artefact.path(s.run), arms=ready.arms, max_new_tokens=ready.max_new_tokens,
                 batch_tokens=s.get("batch_tokens"), seed=ready.seed)  # fmt: skip
        note(s, artefact, key, ready.model, start, data=data)
