"""`vectors`: activations to one steering vector a category."""

from typing import TYPE_CHECKING, Any

import click

from commands.extract import default_layer, need_activations
from commands.framework.app import Session, command
from commands.framework.output import emit_progress
from commands.framework.records import ACTIVATIONS, LENS, PAIRS, VECTORS, contradiction, missing, note, unchanged
from commands.framework.settings import Settings

if TYPE_CHECKING:
    import polars as pl

    from interventions.methods.vectors import SteeringVectors

METHODS = ("mean", "contrastive", "pca", "logistic", "lda", "random", "shuffled")
OPTIONS = ("method", "tau", "top_k", "normalize")


@command(
    click.option("--method", type=click.Choice(METHODS), help="Difference in means of harmful and benign prompts; or "
                 "contrastive: of the same prompts followed by [category] and by [respond]; pca of these pairs, or of "
                 "prompts where the model has no such tokens; logistic regression; LDA with shrinkage; and two controls.  "
                 "[default: mean]"),
    click.option("--tau", type=click.FloatRange(min=0), help="Zero entries below this.  [default: none; published: 1e-3]"),
    click.option("--top-k", type=click.IntRange(min=1), help="Keep the K largest entries.  [default: all; published: 200]"),
    click.option("--normalize", is_flag=True, default=None, help="Scale to unit length.  [default: off]"),
    click.option("--benign", multiple=True, help="More prompts, all benign; repeatable.  [default: none]"),
)  # fmt: skip
def vectors(session: Session, s: Settings) -> dict[str, Any]:
    """Compute one steering vector a category, and the tokens it writes."""
    return make_vectors(session, s, own_data=True)


def make_vectors(session: Session, s: Settings, *, own_data: bool) -> dict[str, Any]:
    """Compute vectors from activations, which are made if they are missing."""
    from data.store.rundir import now
    from interventions.methods.fit import fit_vectors
    from interventions.methods.vectors import SteeringVectors

    start = now()
    method = s.get("method", "mean")
    source = PAIRS if needs_pairs(session, s) else ACTIVATIONS
    record = need_activations(session, s, own_data=own_data, artefact=source)
    options: dict[str, Any] = {"method": method, "tau": s.get("tau"), "top_k": s.get("top_k")}
    options |= {"normalize": s.get("normalize", False), "split": s.get("split", "train"), "seed": s.get("seed", 0)}
    key = {"activations": record["id"], "source": source, **options}
    path = s.run / "vectors.safetensors"
    if unchanged(s, VECTORS, key, path):
        steering = SteeringVectors.load(path)
    else:
        steering = fit_vectors(s.run / f"{source}.safetensors", **options)
        steering.save(path)
        note(s, VECTORS, key, None, start, like=record, options=s.given())
    tokens = make_lens(session, s, steering)
    layer = default_layer(record)
    return {
        "categories": len(steering.tensors),
        "layer": layer,
        "table": _with_tokens(steering.table(layer), tokens, layer),
        "wrote": str(path),
    }


def make_lens(session: Session, s: Settings, steering: "SteeringVectors") -> "pl.DataFrame":
    """The logit lens of the vectors in the run directory."""
    import polars as pl

    from data.store.rundir import now, records, replacing
    from interventions.methods.lens import logit_lens

    start, record = now(), records(s.run)[VECTORS]
    key, path = {"vectors": record["id"]}, s.run / "logit_lens.parquet"
    if unchanged(s, LENS, key, path):
        return pl.read_parquet(path)
    model = session.model(s, record)
    tokens = logit_lens(model, steering)
    with replacing(path) as unfinished:
        tokens.write_parquet(unfinished)
    note(s, LENS, key, model, start, options=s.given())
    return tokens


def need_vectors(session: Session, s: Settings) -> tuple["SteeringVectors", dict[str, Any]]:
    """Vectors that fit the settings, and their record; made, as they were before, if there are none."""
    from data.store.rundir import records
    from interventions.methods.vectors import SteeringVectors

    path, known = s.run / "vectors.safetensors", records(s.run)
    record = known.get(VECTORS)
    below = known.get(record["key"].get("source", ACTIVATIONS)) if record is not None else None
    if not path.exists() or record is None:
        reason = "there are none"
    elif below is not None and record["key"]["activations"] != below["id"]:
        reason = "the activations are newer"
    else:
        reason = contradiction(s, record)
    if reason:
        missing(s, "vectors", "vectors", reason)
        before = {name: (record or {}).get("options", {}).get(name) for name in OPTIONS}
        emit_progress(make_vectors(session, s.for_missing(own_data=False).with_values(**before), own_data=False))
        record = records(s.run)[VECTORS]
    assert record is not None
    return SteeringVectors.load(path), record


def needs_pairs(session: Session, s: Settings) -> bool:
    """Whether the method compares each prompt with itself, followed by other tokens."""
    method = s.get("method", "mean")
    return method == "contrastive" or (method == "pca" and _speaks(session, s))


def _speaks(session: Session, s: Settings) -> bool:
    """Whether the model has refusal tokens, and one to respond, to put behind a prompt."""
    from data.store.rundir import records
    from interventions.model.control_tokens import refusal_tokens

    tokens = refusal_tokens(session.model(s, records(s.run).get(ACTIVATIONS)))
    return bool(tokens.names) and tokens.respond is not None


def _with_tokens(table: "pl.DataFrame", tokens: "pl.DataFrame", layer: int) -> "pl.DataFrame":
    """The table with the three tokens that each vector writes most."""
    import polars as pl

    best = tokens.filter(layer=layer).group_by("category", maintain_order=True).head(3)
    shown = best.group_by("category", maintain_order=True).agg(pl.col("token").str.strip_chars().str.join(" "))
    return table.join(shown.rename({"token": "writes"}), on="category", how="left", maintain_order="left")
