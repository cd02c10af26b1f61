"""`vectors`: activations to one steering vector a category."""

from typing import TYPE_CHECKING

from commands.framework.activations import default_layer, need_to_fit
from commands.framework.app import Session, command
from commands.framework.artefacts import ACTIVATIONS, ACTIVATIONS_FOLDER, FITTED_METHODS, LENS, VECTORS, need
from commands.framework.options import BENIGN, METHOD, NORMALIZE, TAU, TOP_K, TRAIN
from commands.framework.output import Summary, warn
from commands.framework.records import note, unchanged
from commands.framework.settings import Record, Settings
from data.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from interventions.methods.vectors import SteeringVectors


@command(METHOD, TAU, TOP_K, NORMALIZE, BENIGN, TRAIN)
def vectors(session: Session, s: Settings) -> Summary:
    """Compute a steering vector for each category, and the tokens it writes.

    The methods affine, alphasteer, angular and false-refusal fit instead what the arms of these names draw on.
    On a server and without activations in the run directory, mean and contrastive add up there what they compare.
    """
    if s.get("method") in FITTED_METHODS:
        return fit_own(session, s)
    from data.store.rundir import now
    from interventions.methods.fit import fit_vectors

    start = now()
    activations, record = need_to_fit(session, s)
    options = {name: s.get(name) for name in ("method", "tau", "top_k", "normalize", "split", "seed")}
    key = {"activations": record["id"], "source": f"{ACTIVATIONS_FOLDER}/{activations.stem}", **options}
    path = VECTORS.path(s.run)
    if unchanged(s, VECTORS, key):
        steering = VECTORS.read(s.run)
    else:
        steering = fit_vectors(activations, **options)
        steering.save(path)
        note(s, VECTORS, key, record, start)
    tokens = make_lens(session, s, steering)
    layer = default_layer(record)
    table = _with_tokens(steering.table(layer), tokens, layer)
    return {"categories": len(steering.tensors), "layer": layer, "table": table, "wrote": str(path)}


def fit_own(session: Session, s: Settings) -> Summary:
    """Fit a method that is no vector a category to the run's activations."""
    import json

    from data.store.rundir import now
    from interventions.methods.edits.fit import NEEDS_DECLINED, fit_edit

    start, method = now(), s.get("method")
    odd = [f"--{name.replace('_', '-')}" for name in ("tau", "top_k", "normalize") if s.given(name)]
    if odd:
        raise UserError(f"{odd[0]} says nothing of --method {method}, which is no vector a category; leave it out")
    activations, record = need(session, s, ACTIVATIONS)
    artefact = FITTED_METHODS[method]
    key = {"activations": record["id"], "method": method, "split": s.get("split")}
    path = artefact.path(s.run)
    if unchanged(s, artefact, key):
        fitted = artefact.read(s.run)
    else:
        declined = declined_rows(session, s, record) if method in NEEDS_DECLINED else None
        fitted = fit_edit(activations, method, split=s.get("split"), declined=declined)
        fitted.save(path)
        note(s, artefact, key, record, start)
    return {
        "method": method,
        "layers": len(fitted.layers),
        "rows": json.loads(fitted.metadata["counts"]),
        "wrote": str(path),
    }


def declined_rows(session: Session, s: Settings, record: Record) -> "np.ndarray":
    """Which rows of the activations are benign ones of the split that the model declines unsteered, (rows,) bool.

    By its first token; a model without refusal tokens by the first words of its answer.
    """
    import numpy as np
    import polars as pl

    from data import for_split
    from data.store.tables import read_parquet
    from interventions.model.control_tokens import refusal_tokens
    from interventions.steering.first_token import first_texts
    from reports.scoring.lexical import text_verdicts

    table = read_parquet(ACTIVATIONS.path(s.run).with_suffix(".parquet")).with_row_index("row")
    rows = for_split(table, s.get("split")).filter(pl.col("label") == "benign")
    model, texts = session.model(s, record), rows["prompt"].to_list()
    names = set(refusal_tokens(model).names)
    if names:
        said = [name in names for name in session.first_positions(model, rows).most_probable]
    else:
        said = [verdict == "refuse" for verdict in text_verdicts(model.name)(first_texts(model, texts))]
    declined = np.zeros(table.height, bool)
    declined[rows["row"].to_numpy()] = said
    return declined


def make_lens(session: Session, s: Settings, steering: "SteeringVectors") -> "pl.DataFrame":
    """The logit lens of the vectors in the run directory."""
    import polars as pl

    from data.store.rundir import now, records
    from data.store.tables import LOGIT_LENS, write_table
    from interventions.methods.lens import logit_lens

    start, record = now(), records(s.run)[VECTORS.name]
    key = {"vectors": record["id"]}
    if unchanged(s, LENS, key):
        return LENS.read(s.run)
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
