"""`vectors`: activations to one steering vector a category."""

from typing import TYPE_CHECKING

from commands.framework.activations import default_layer, needs_pairs
from commands.framework.app import Session, command
from commands.framework.artefacts import ACTIVATIONS, LENS, PAIRS, VECTORS, need
from commands.framework.options import BENIGN, METHOD, NORMALIZE, TAU, TOP_K, TRAIN
from commands.framework.output import Summary, warn
from commands.framework.records import note, unchanged
from commands.framework.settings import Settings
from data.errors import UserError

if TYPE_CHECKING:
    import polars as pl

    from interventions.methods.vectors import SteeringVectors


@command(METHOD, TAU, TOP_K, NORMALIZE, BENIGN, TRAIN)
def vectors(session: Session, s: Settings) -> Summary:
    """Compute one steering vector a category, and the tokens it writes."""
    from data.store.rundir import now
    from interventions.methods.fit import fit_vectors

    start = now()
    source = PAIRS if needs_pairs(session, s) else ACTIVATIONS
    activations, record = need(session, s, source)
    options = {name: s.get(name) for name in ("method", "tau", "top_k", "normalize", "split", "seed")}
    key = {"activations": record["id"], "source": source.name, **options}
    path = VECTORS.path(s.run)
    if unchanged(s, VECTORS, key):
        steering = VECTORS.load(path)
    else:
        steering = fit_vectors(activations, **options)
        steering.save(path)
        note(s, VECTORS, key, record, start)
    tokens = make_lens(session, s, steering)
    layer = default_layer(record)
    table = _with_tokens(steering.table(layer), tokens, layer)
    return {"categories": len(steering.tensors), "layer": layer, "table": table, "wrote": str(path)}


def make_lens(session: Session, s: Settings, steering: "SteeringVectors") -> "pl.DataFrame":
    """The logit lens of the vectors in the run directory."""
    import polars as pl

    from data.store.rundir import now, records
    from data.store.tables import LOGIT_LENS, write_table
    from interventions.methods.lens import logit_lens

    start, record = now(), records(s.run)[VECTORS.name]
    key = {"vectors": record["id"]}
    if unchanged(s, LENS, key):
        return LENS.load(LENS.path(s.run))
    model = session.model(s, record)
    try:
        tokens = logit_lens(model, steering)
    except UserError as error:  # the vectors are whole without it
        warn(f"no logit lens: {error}")
        return pl.DataFrame(schema=LOGIT_LENS)
    write_table(LENS.path(s.run), tokens)
    note(s, LENS, key, model, start)
    return tokens


def _with_tokens(table: "pl.DataFrame", tokens: "pl.DataFrame", layer: int) -> "pl.DataFrame":
    """The table with the three tokens that each vector writes most."""
    import polars as pl

    best = tokens.filter(layer=layer).group_by("category", maintain_order=True).head(3)
    shown = best.group_by("category", maintain_order=True).agg(pl.col("token").str.strip_chars().str.join(" "))
    return table.join(shown.rename({"token": "writes"}), on="category", how="left", maintain_order="left")
