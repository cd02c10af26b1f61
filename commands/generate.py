"""`trace` and `generate`: prompts under the lens, and answers in every arm."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from commands.framework.app import Session, command
from commands.framework.arms import STEERING, chosen_arms
from commands.framework.output import emit_progress
from commands.framework.prompts import fingerprint_of, load_prompts
from commands.framework.records import (
    GENERATIONS,
    LOWRANK,
    PROBE,
    SWEEP,
    VECTORS,
    contradiction,
    missing,
    model_key,
    note,
    unchanged,
)
from commands.framework.settings import Settings
from data.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from interventions.model.model import Model
    from interventions.steering.arms import Arm
    from interventions.steering.plans import Tools


@command(
    *STEERING, click.option("--max-new-tokens", type=click.IntRange(min=1), help="Tokens an answer.  [default: 32]")
)
def generate(session: Session, s: Settings) -> dict[str, Any]:
    """Answer prompts in every arm."""
    return make_generations(session, s)


def make_generations(session: Session, s: Settings) -> dict[str, Any]:
    """Answer the prompts, with vectors that are made if they are missing."""
    from data import for_split

    prompts = for_split(load_prompts(s, limited=False), s.get("split", "test"))
    prompts = prompts.head(s.get("limit", prompts.height))
    if prompts.is_empty():
        raise UserError(f"no prompt in split {s.get('split', 'test')!r}: pass --split or other --data")
    ready = prepare(session, s)
    path = s.run / "generations.parquet"
    answer_prompts(s, ready, prompts, GENERATIONS, path, list(s.get("data", ("embedded",))))
    return {"prompts": prompts.height, "arms": [arm.name for arm in ready.arms], "wrote": str(path)}


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

    def key(self, prompts: "pl.DataFrame") -> dict[str, Any]:
        """What answers to these prompts are made from."""
        return model_key(self.model) | {
            **self.rests_on,
            "fingerprint": fingerprint_of(prompts),
            "arms": [asdict(arm) for arm in self.arms],
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
        }


def prepare(session: Session, s: Settings) -> Ready:
    """Vectors, which are made if they are missing, and the arms with all they need."""
    model, arms, tools, rests_on = chosen_arms(session, s)
    return Ready(model, tools, arms, rests_on, s.get("max_new_tokens", 32), s.get("seed", 0))


def answer_prompts(
    s: Settings, ready: Ready, prompts: "pl.DataFrame", artefact: str, path: "Path", data: list[str]
) -> None:
    """Answer prompts in every arm into a table, unless that was done already."""
    from data.store.rundir import now
    from interventions.steering.generate import generate as run_generate

    start, key = now(), ready.key(prompts)
    if not unchanged(s, artefact, key, path):
        run_generate(ready.model, prompts, ready.tools, path, arms=ready.arms, max_new_tokens=ready.max_new_tokens,
                     batch_tokens=s.get("batch_tokens"), seed=ready.seed)  # fmt: skip
        note(s, artefact, key, ready.model, start, data=data, options=s.given())


def need_generations(session: Session, s: Settings) -> dict[str, Any]:
    """The record of generations that fit the settings; made if there are none."""
    from data.store.rundir import records

    known = records(s.run)
    record = known.get(GENERATIONS)
    reason, before = "", (record or {}).get("options", {})
    was = before.get("split") or "test"
    split = s.get("split", was)
    if not (s.run / "generations.parquet").exists() or record is None:
        reason = "there are none"
    else:
        newer = [
            name for name in (VECTORS, PROBE, LOWRANK, SWEEP) if _is_newer(known.get(name), record["key"].get(name))
        ]
        reason = f"the {newer[0]} {'are' if newer[0] == VECTORS else 'is'} newer" if newer else contradiction(s, record)
        if not reason and split != was:
            reason = f"split is {split}, was {was}"
        if not reason and (s.get("data") or s.get("limit")):
            from data import for_split

            prompts = for_split(load_prompts(s, limited=False), split)
            prompts = prompts.head(s.get("limit", before.get("limit") or prompts.height))
            reason = "" if fingerprint_of(prompts) == record["key"]["fingerprint"] else "the prompts changed"
    if reason:
        missing(s, "generate", "generations", reason)
        kept = ("layer", "category", "strength", "strength_unit", "scope", "arm", "max_new_tokens")
        same = {name: before.get(name) for name in kept}
        same["data"] = s.get("data") or tuple((record or {}).get("data") or ())
        emit_progress(make_generations(session, s.with_values(**same, split=split)))
        record = records(s.run)[GENERATIONS]
    assert record is not None
    return record


def _is_newer(record: dict[str, Any] | None, used: str | None) -> bool:
    return record is not None and used is not None and record["id"] != used
