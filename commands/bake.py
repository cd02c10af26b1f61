"""`bake`: a model folder with the steering in its weights."""

from pathlib import Path
from typing import Any

import click

from commands.framework.app import Session, command
from commands.framework.arms import STEERING, single_arm
from commands.framework.settings import Settings
from commands.vectors import need_vectors
from data.errors import UserError


@command(
    *STEERING[:4],
    click.option(
        "--add", "operation", flag_value="add", help="A bias that adds the vector at every position.  [default]"
    ),
    click.option("--ablate", "operation", flag_value="ablate", help="Weights that can't write the vector's direction."),
    click.option(
        "--out", type=click.Path(file_okay=False, path_type=Path), help="The model folder.  [default: RUN/baked]"
    ),
)
def bake(session: Session, s: Settings) -> dict[str, Any]:
    """Write a model folder with the steering in its weights, for use without this tool."""
    from interventions.carried.bake import bake_ablate, bake_add

    steering, record = need_vectors(session, s)
    model = session.model(s, record)
    if model.backend.is_remote:
        raise UserError("bake writes weights, which a remote run does not have: run it with --local")
    arm, out = single_arm(s, model, steering), s.get("out", s.run / "baked")
    noted = {"category": arm.category, "layer": arm.layer}
    if s.get("operation", "add") == "add":
        delta = steering.delta(arm.layer, arm.category, arm.strength, arm.unit)
        noted |= {"strength": arm.strength, "unit": arm.unit}
        bake_add(model, out, arm.layer, delta, noted)
    else:
        bake_ablate(model, out, steering.delta(arm.layer, arm.category, 1.0, "unit"), noted)
    return {"model": model.name, "operation": s.get("operation", "add"), "layer": arm.layer, "wrote": str(out)}
