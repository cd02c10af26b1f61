"""`diff`: what fine-tuning did to each category's direction, layer by layer."""

from pathlib import Path
from typing import TYPE_CHECKING

from commands.framework.activations import pairing, say_rows
from commands.framework.app import Session, command
from commands.framework.artefacts import DIFF, activations_artefact
from commands.framework.options import AGAINST, BENIGN, LAYERS, MEANS, OWN_SPLIT, TEXT, TRAIN
from commands.framework.output import Summary, warn
from commands.framework.prompts import fingerprint_of, load_prompts
from commands.framework.records import model_key, note, unchanged
from commands.framework.settings import Settings
from data.errors import UserError

if TYPE_CHECKING:
    import polars as pl

    from interventions.model.model import Model


@command(AGAINST, LAYERS.but(help="Blocks to compare, such as 5, 0-9 or 3,5."), TEXT, MEANS, OWN_SPLIT, BENIGN, TRAIN)
def diff(session: Session, s: Settings) -> Summary:
    """Compare the categories' directions of a base and its fine-tuned model."""
    import polars as pl

    from data.store.rundir import now
    from data.store.tables import write_table
    from interventions.fitting.diffing import compare, compare_means
    from interventions.model.same_tokens import reading_as, splitting_alone
    from interventions.reading.extract import checked_layers

    start = now()
    tuned = session.model(s)
    base = session.model(s.with_values(model=other_model(s, tuned)))
    split, own = s.get("split"), s.get("own_split")
    rows = compared_rows(s, split)
    reader = splitting_alone(base, tuned) if own else reading_as(base, tuned, rows["prompt"].to_list())
    kinds = compared_texts(s, base, tuned, rows, split, own)
    layers = checked_layers(tuned, s.get("layers"))
    key = {"base": model_key(reader), "tuned": model_key(tuned), "fingerprint": fingerprint_of(rows), "layers": layers,
           "texts": list(kinds), "split": split, "own_split": own, "seed": s.get("seed")}  # fmt: skip
    key |= {"means": True} if s.get("means") else {}
    path = DIFF.path(s.run)
    if unchanged(s, DIFF, key):
        table = DIFF.read(s.run)
    else:
        tables, pair = [], {"base": reader, "tuned": tuned}
        for prompts, suffixes in kinds.values():
            files = [read(s, model, name, prompts, layers, suffixes) for name, model in pair.items()]
            how = {"split": split, "same_tokens": not own}
            tables.append(compare_means(*files, **how) if s.get("means") else compare(*files, seed=key["seed"], **how))
        table = pl.concat(tables)
        write_table(path, table)
        note(s, DIFF, key, tuned, start, data=s.get("data"))
    layer = min(layers, key=lambda at: abs(at - tuned.default_layer()))
    shown = table if s.get("as_json") else table.filter(layer=layer).drop("layer", "halves")
    return {"base": base.name, "tuned": tuned.name, "layer": layer, "table": shown, "wrote": str(path)}


def other_model(s: Settings, tuned: "Model") -> str:
    """Whose directions the model's are compared with."""
    from interventions.model.embedded import BASE, TUNED

    name = s.get("against") or (BASE if tuned.name == TUNED else None)
    if name is None:
        raise UserError(f"pass --against MODEL, the model that {tuned.name!r} was tuned from")
    return name


def compared_rows(s: Settings, split: str) -> "pl.DataFrame":
    """Rows of the split that a direction rests on: benign, or harmful with a category."""
    import polars as pl

    from data import for_split
    from interventions.fitting.contrasts import with_category

    harmful = (pl.col("label") == "harmful") & pl.col("category").is_not_null()
    rows = with_category(for_split(load_prompts(s, limited=True), split)).filter(
        harmful | (pl.col("label") == "benign")
    )
    if rows.filter(label="harmful").is_empty():
        raise UserError(f"no harmful row in split {split!r}: pass --split or other --data")
    return rows


def compared_texts(
    s: Settings, base: "Model", tuned: "Model", rows: "pl.DataFrame", split: str, own_split: bool
) -> "dict[str, tuple[pl.DataFrame, tuple[str, ...]]]":
    """Which prompts are read with which suffixes, for `tagged` and `untagged`, as far as the base can read them."""
    from interventions.model.same_tokens import knows

    kinds: dict[str, tuple[pl.DataFrame, tuple[str, ...]]] = {}
    asked = s.get("text")
    if asked != "untagged":
        try:
            prompts, suffixes = pairing(tuned, rows, split)
            if not own_split and not knows(base, tuned, suffixes):
                raise UserError(f"the refusal tokens of {tuned.name!r} lie beyond the vocabulary of {base.name!r}, which "
                                "can't read them: compare --text untagged")  # fmt: skip
            kinds["tagged"] = prompts, suffixes
        except UserError as error:
            if asked == "tagged":
                raise
            warn(f"untagged text only: {error}")
    if asked != "tagged":
        kinds["untagged"] = rows, ()
    return kinds


def read(
    s: Settings, model: "Model", name: str, prompts: "pl.DataFrame", layers: list[int], suffixes: tuple[str, ...]
) -> Path:
    """The activations file of one of the two models, or of means alone the file of their sums."""
    from data.store.rundir import now
    from interventions.fitting.diffing import summed
    from interventions.reading.extract import extract
    from interventions.reading.sums import extract_sums

    start, kind, means = now(), "pairs" if suffixes else "prompts", s.get("means")
    artefact = activations_artefact(f"diff-{name}-{kind}/sums" if means else f"diff-{name}/{kind}")
    key = model_key(model) | {"fingerprint": fingerprint_of(prompts), "layers": layers, "suffixes": list(suffixes)}
    key |= {"split": s.get("split")} if means else {}
    path = artefact.path(s.run)
    if not unchanged(s, artefact, key):
        how = {"layers": layers, "position": "suffix" if suffixes else "last", "suffixes": suffixes,
               "batch_tokens": s.get("batch_tokens")}  # fmt: skip
        if means:
            extract_sums(model, prompts, path.parent, lambda rows: summed(rows, split=s.get("split")), **how)
        else:
            say_rows(s, "the interval, ceiling and floor of each cosine draw them; --means does without")
            extract(model, prompts, path.parent, **how)
        note(s, artefact, key, model, start, data=s.get("data"))
    return path
