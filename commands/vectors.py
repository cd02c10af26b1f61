"""`vectors`: activations to one steering vector a category."""

from typing import TYPE_CHECKING, Any

import click

from commands.activations import need_activations
from commands.framework import Session, command
from commands.output import emit_progress
from commands.records import ACTIVATIONS, VECTORS, missing, note, unchanged
from commands.settings import Settings

if TYPE_CHECKING:
    from interventions.vectors import SteeringVectors


@command(
    click.option("--method", type=click.Choice(["mean"]), help="Difference in means.  [default: mean]"),
    click.option("--tau", type=click.FloatRange(min=0), help="Zero entries below this.  [default: none; published: 1e-3]"),
    click.option("--top-k", type=click.IntRange(min=1), help="Keep the K largest entries.  [default: all; published: 200]"),
    click.option("--normalize", is_flag=True, default=None, help="Scale to unit length.  [default: off]"),
    click.option("--benign", multiple=True, help="More prompts, all benign; repeatable.  [default: none]"),
)  # fmt: skip
def vectors(session: Session, s: Settings) -> dict[str, Any]:
    """Compute one steering vector a category."""
    return make_vectors(session, s, own_data=True)


def make_vectors(session: Session, s: Settings, *, own_data: bool) -> dict[str, Any]:
    """Compute vectors from activations, which are made if they are missing."""
    from interventions.rundir import now
    from interventions.vectors import SteeringVectors, difference_in_means

    start = now()
    record = need_activations(session, s, own_data=own_data)
    options: dict[str, Any] = {name: s.get(name) for name in ("tau", "top_k")}
    options |= {"normalize": s.get("normalize", False), "split": s.get("split", "train")}
    key = {"activations": record["id"], "method": "mean", **options, "seed": s.get("seed", 0)}
    path = s.run / "vectors.safetensors"
    if unchanged(s, VECTORS, key, path):
        steering = SteeringVectors.load(path)
    else:
        steering = difference_in_means(s.run / "activations" / "prompts.safetensors", **options)
        steering.save(path)
        note(s, VECTORS, key, None, start, like=record, options=s.given())
    layers = steering.layers
    layer = layers[min(round(18 / 32 * len(layers)), len(layers) - 1)]
    return {"categories": len(steering.tensors), "layer": layer, "table": steering.table(layer), "wrote": str(path)}


def need_vectors(session: Session, s: Settings) -> tuple["SteeringVectors", dict[str, Any]]:
    """Vectors that fit the settings, and their record; made if there are none."""
    from interventions.rundir import records
    from interventions.vectors import SteeringVectors

    path = s.run / "vectors.safetensors"
    record, below = records(s.run).get(VECTORS), records(s.run).get(ACTIVATIONS)
    reason = ""
    if not path.exists() or record is None:
        reason = "there are none"
    elif below is not None and record["key"]["activations"] != below["id"]:
        reason = "the activations are newer"
    else:
        reason = next((f"{name} is {s.get(name)}, was {record[name]}" for name in ("model", "dtype")
                       if s.get(name) is not None and s.get(name) != record[name]), "")  # fmt: skip
    if reason:
        missing(s, "vectors", "vectors", reason)
        emit_progress(make_vectors(session, s.for_missing(own_data=False), own_data=False))
        record = records(s.run)[VECTORS]
    assert record is not None
    return SteeringVectors.load(path), record
