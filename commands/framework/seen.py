"""Which prompts anything was fitted to or chosen on, and which prompts are siblings."""

from typing import TYPE_CHECKING

from commands.framework.artefacts import (
    ACTIVATIONS,
    FITTED_METHODS,
    GATE_FOLDER,
    LOWRANK,
    PROBE,
    SWEEP,
    VECTORS,
    activations_artefact,
    gate_artefact,
)
from commands.framework.output import warn
from commands.framework.prompts import sources_of
from commands.framework.settings import Record, Settings
from data.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl


def asked_themes(s: Settings, prompts: "pl.DataFrame") -> "tuple[pl.DataFrame, list[str]]":
    """`dataset`, `id`, `theme` of prompts, in their order, and the data sets that could not be asked."""
    from data import known_themes

    found = known_themes(prompts, s.get("data_mirror"), sources_of(s))
    if found.lost:
        warn(f"intervals take each prompt of {', '.join(found.lost)} for itself, not with those of its theme: "
             f"{next(iter(found.lost.values()))}")  # fmt: skip
    return found.table, sorted(found.lost)


def wrapped(s: Settings, prompts: "pl.DataFrame", used: Record, file: "Path | str") -> "pl.DataFrame":
    """Prompts put into a template, as a data set of their own, `NAME in TEMPLATE`; those that were fitted to are left out.

    Nothing could tell later that a wrapped prompt's own words were fitted to.

    Raises:
        UserError: The file has no place for a prompt, or can't be read.
    """
    from pathlib import Path

    import polars as pl

    from data.prompts.conversations import PLACE
    from data.prompts.conversations import wrapped as put_into
    from reports.scoring.scores import same_text

    try:
        template = Path(file).read_text("utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--wrap {file}: can't be read as UTF-8 text: {error}") from None
    if PLACE not in template:
        raise UserError(f"--wrap {file}: it has no {PLACE}, where each prompt goes")
    fitted = fitted_texts(s, used)
    free = prompts.filter(
        ~pl.col("prompt").map_elements(lambda text: same_text(text) in fitted, return_dtype=pl.Boolean)
    )
    if free.height < prompts.height:
        warn(
            f"--wrap: {prompts.height - free.height} of {prompts.height} prompts were used for fitting and are left out"
        )
    return free.with_columns(
        pl.col("prompt").map_elements(lambda text: put_into(template, text), return_dtype=pl.String),
        pl.format("{} in {}", "dataset", pl.lit(Path(file).stem)).alias("dataset"),
    )


def fitted_texts(s: Settings, used: Record) -> set[str]:
    """Texts of the prompts that anything that a record's key names was fitted to or chosen on."""
    import polars as pl

    from data import for_split
    from data.store.rundir import records
    from data.store.tables import read_parquet
    from interventions.fitting.contrasts import with_category
    from reports.scoring.scores import same_text

    known = records(s.run)
    harmful, benign = (pl.col("label") == "harmful") & pl.col("category").is_not_null(), pl.col("label") == "benign"
    labelled = pl.col("label").is_not_null()
    bases = [(VECTORS.name, ("split",), harmful | benign), (PROBE.name, ("split", "threshold_split"), labelled),
             (LOWRANK.name, ("split", "held_out"), labelled),
             *((method.name, ("split",), labelled) for method in FITTED_METHODS.values())]  # fmt: skip
    texts: set[str] = set()
    for artefact, splits, rows in bases:
        key = known.get(artefact, {}).get("key", {})
        path = s.run / f"{key.get('source', ACTIVATIONS.name)}.parquet"
        if artefact in used and key:
            if not path.exists() or known.get(key.get("source", ACTIVATIONS.name), {}).get("id") != key["activations"]:
                raise UserError(f"which prompts the {artefact} behind these answers were fitted to is not known any more, so "
                                f"that rates can't leave them out: {path} is newer or gone; run vectors and generate again")  # fmt: skip
            activations_artefact(path.stem).check(s.run)
            table = read_parquet(path)
            for split in splits:
                chosen = with_category(
                    for_split(table, key.get(split, "validation"))
                )  # a map keeps its best epoch on validation rows
                texts |= {same_text(text) for text in chosen.filter(rows)["prompt"]}
    for name in used:
        if name.startswith(GATE_FOLDER):
            gate_artefact(name.removeprefix(GATE_FOLDER)).check(s.run)
            texts |= {same_text(text) for text in read_parquet(s.run / f"{name}_prompts.parquet")["prompt"]}
    if SWEEP.name in used:
        path = s.run / "sweep_prompts.parquet"
        if not path.exists():
            raise UserError(f"{path}, what the setting was chosen on, is gone: run sweep again")
        SWEEP.check(s.run)
        texts |= {same_text(text) for text in read_parquet(path)["prompt"]}
    return texts
