"""`lowrank`: activations and vectors to a low-rank combination of the vectors."""

from typing import TYPE_CHECKING, Any

import click

from commands.extract import default_layer, need_activations
from commands.framework.app import Session, command
from commands.framework.output import emit_progress
from commands.framework.records import ACTIVATIONS, LOWRANK, VECTORS, contradiction, missing, note, unchanged
from commands.framework.settings import Settings
from commands.vectors import need_vectors

if TYPE_CHECKING:
    from interventions.methods.lowrank import LowRank


@command(
    click.option("--layer", type=click.IntRange(min=0), help="Block to steer.  [default: round(18/32 · n_layers)]"),
    click.option("--mode", type=click.Choice(["fixed", "input"]), help="fixed: one vector, U z, for every row, as published; "
                 "input: U Vᵀ(h − mean), which depends on the row.  [default: fixed]"),
    click.option("--basis", type=click.Choice(["shrunk", "published"]), help="Where U and V start: whitened with a shrunk "
                 "covariance and mapped back; or as published, flaws included.  [default: shrunk]"),
    click.option("--epochs", type=click.IntRange(min=1), help="Passes through the prompts.  [default: 3]"),
    click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Learning rate, as a share of each parameter's "
                 "size.  [default: 0.03]"),
)  # fmt: skip
def lowrank(session: Session, s: Settings) -> dict[str, Any]:
    """Train a low-rank combination of the vectors; at strength 1 it steers towards refusal."""
    return make_lowrank(session, s, own_data=True)


def make_lowrank(session: Session, s: Settings, *, own_data: bool) -> dict[str, Any]:
    """Train the map on the prompts that there are activations of."""
    import polars as pl

    from data.store.rundir import now, replacing
    from interventions.methods.lowrank import LowRank, start_lowrank
    from interventions.steering.train_lowrank import train_lowrank

    start = now()
    activations = need_activations(session, s, own_data=own_data)
    steering, record = need_vectors(session, s)
    options = {"mode": s.get("mode", "fixed"), "split": s.get("split", "train"), "seed": s.get("seed", 0)}
    training = {"epochs": s.get("epochs", 3), "rate": s.get("rate", 0.03)}
    layer, published = s.get("layer", default_layer(activations)), s.get("basis", "shrunk") == "published"
    key = {"activations": activations["id"], "vectors": record["id"], "layer": layer, "published": published}
    key |= options | training
    path, history_path = s.run / "lowrank.safetensors", s.run / "lowrank_training.parquet"
    if unchanged(s, LOWRANK, key, path) and history_path.exists():
        trained, history = LowRank.load(path), pl.read_parquet(history_path)
    else:
        file = s.run / f"{ACTIVATIONS}.safetensors"
        model = session.model(s, record)
        begun = start_lowrank(file, steering, layer, published=published, **options)
        rows = pl.read_parquet(file.with_suffix(".parquet"))
        trained, history = train_lowrank(model, begun, steering, rows, s.run, split=options["split"], seed=options["seed"],
                                         batch_tokens=s.get("batch_tokens", 2048), **training)  # fmt: skip
        with replacing(history_path) as unfinished:
            history.write_parquet(unfinished)
        trained.save(path)
        note(s, LOWRANK, key, model, start, data=activations.get("data"), options=s.given())
    return {"layer": trained.layer, "mode": trained.metadata["mode"], "rank": len(trained.z),
            "kept epoch": int(trained.metadata["kept_epoch"]), "table": history, "wrote": str(path)}  # fmt: skip


def need_lowrank(session: Session, s: Settings) -> tuple["LowRank", str]:
    """The low-rank map, and the identity of its artefact; trained, as it was before, if there is none."""
    from data.store.rundir import records
    from interventions.methods.lowrank import LowRank

    path, known = s.run / "lowrank.safetensors", records(s.run)
    record = known.get(LOWRANK)
    if not path.exists() or record is None:
        reason = "there is none"
    else:
        newer = [name for name, below in (("activations", ACTIVATIONS), ("vectors", VECTORS))
                 if known.get(below, {}).get("id", record["key"][name]) != record["key"][name]]  # fmt: skip
        reason = f"the {newer[0]} are newer" if newer else contradiction(s, record)
    if reason:
        missing(s, "lowrank", "a low-rank map", reason)
        before = (record or {}).get("options", {})
        options = {name: before.get(name) for name in ("layer", "mode", "basis", "epochs", "rate")}
        emit_progress(make_lowrank(session, s.for_missing(own_data=False).with_values(**options), own_data=False))
        record = records(s.run)[LOWRANK]
    assert record is not None
    return LowRank.load(path), record["id"]
