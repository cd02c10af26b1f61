"""`lowrank`: activations and vectors to a low-rank combination of the vectors."""

from commands.framework.activations import default_layer
from commands.framework.app import Session, command
from commands.framework.artefacts import ACTIVATIONS, LOWRANK, VECTORS, need
from commands.framework.options import BASIS, BATCH_TOKENS, EPOCHS, LAYER, MODE, RATE, TRAIN
from commands.framework.output import Summary
from commands.framework.records import note, unchanged
from commands.framework.settings import Settings
from data import contract

# A step's rows are part of what is learned, and the same on every machine.
STEP = BATCH_TOKENS.but(help="Padded tokens a step, of at most 32 rows.", default=contract.BATCH_TOKENS, shown=None)


@command(LAYER, MODE, BASIS, EPOCHS, RATE, STEP, TRAIN)
def lowrank(session: Session, s: Settings) -> Summary:
    """Train a low-rank combination of the vectors; at strength 1 it steers towards refusal."""

    from data.store.rundir import now
    from data.store.tables import read_parquet, write_table
    from interventions.methods.lowrank import start_lowrank
    from interventions.steering.train_lowrank import train_lowrank

    start = now()
    file, activations = need(session, s, ACTIVATIONS)
    steering, record = need(session, s, VECTORS)
    options = {name: s.get(name) for name in ("mode", "split", "seed")}
    training = {name: s.get(name) for name in ("epochs", "rate")}
    layer = default_layer(activations) if s.get("layer") is None else s.get("layer")
    published = s.get("basis") == "published"
    key = {"activations": activations["id"], "vectors": record["id"], "layer": layer, "published": published}
    key |= options | training
    path, history_path = LOWRANK.path(s.run), s.run / "lowrank_training.parquet"
    if unchanged(s, LOWRANK, key):
        trained, history = LOWRANK.read(s.run), read_parquet(history_path)
    else:
        model = session.model(s, record)
        begun = start_lowrank(file, steering, layer, published=published, **options)
        rows = read_parquet(file.with_suffix(".parquet"))
        trained, history = train_lowrank(model, begun, steering, rows, s.run, split=options["split"], seed=options["seed"],
                                         batch_tokens=s.get("batch_tokens"), **training)  # fmt: skip
        write_table(history_path, history)
        trained.save(path)
        note(s, LOWRANK, key, model, start, data=activations.get("data") or ())
    return {"layer": trained.layer, "mode": trained.metadata["mode"], "rank": len(trained.z),
            "kept epoch": int(trained.metadata["kept_epoch"]), "table": history, "wrote": str(path)}  # fmt: skip
