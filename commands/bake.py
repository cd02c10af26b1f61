"""`bake`: a model folder with the steering in its weights."""

from commands.framework.app import Session, command
from commands.framework.arms import single_arm
from commands.framework.artefacts import VECTORS, need
from commands.framework.options import OPERATION, OUT, STEERING
from commands.framework.output import Summary, direction
from commands.framework.settings import Settings
from commands.framework.types import FOLDER
from data.errors import UserError


@command(*STEERING[:4], *OPERATION, OUT.but(help="The model folder.", type=FOLDER, shown="RUN/baked"))
def bake(session: Session, s: Settings) -> Summary:
    """Write a model folder with the steering in its weights, for use without this tool.

    As everywhere, a negative strength, the default, is away from refusal. No gate goes into weights: the vector is added
    to every prompt, harmful ones too, and at every position, which is scope all, where generate's default is generated.
    """
    from interventions.carried.bake import bake_ablate, bake_add

    steering, record = need(session, s, VECTORS)
    model = session.model(s, record)
    if not model.backend.has_module:
        raise UserError("bake writes weights, which are elsewhere: run it with --local and --engine transformers")
    arm, out = single_arm(s, model, steering), s.get("out") or s.run / "baked"
    noted = {"category": arm.category, "layer": arm.layer}
    if s.get("operation") == "add":
        delta = steering.delta(arm.layer, arm.category, arm.strength, arm.unit)
        noted |= {"strength": arm.strength, "unit": arm.unit}
        bake_add(model, out, arm.layer, delta, noted)
    else:
        bake_ablate(model, out, steering.delta(arm.layer, arm.category, 1.0, "unit"), noted)
    told: Summary = {"model": model.name, "operation": s.get("operation"), "layer": arm.layer}
    if s.get("operation") == "add":
        told |= {"strength": arm.strength, "unit": arm.unit, "direction": direction(arm.strength)}
    return told | {"wrote": str(out)}
