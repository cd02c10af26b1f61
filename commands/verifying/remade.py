"""What only its own command can give again: done anew in a run directory beside, from what the run's other artefacts hold."""

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

from commands.framework.app import perform
from commands.framework.artefacts import CATEGORY, EFFECTS, JUDGES, SWEEP
from commands.framework.output import said_before
from commands.framework.settings import Settings
from commands.verifying.outcome import COMPUTED, DIFFERS, FIGURE, UNKNOWN, Case, Outcome, frames_apart, settled
from data.errors import UserError
from data.store.digests import SHA256

if TYPE_CHECKING:
    from pathlib import Path

    from commands.framework.artefacts import Artefact

WHOLE = "--share 1 makes it again, as long as making it took"


def effects(case: Case) -> Iterator[Outcome]:
    """Side effects of every arm."""
    yield from by_the_model(case, EFFECTS)


def category(case: Case) -> Iterator[Outcome]:
    """Every category's vector on every category's rows, strengths and all."""
    yield from by_the_model(case, CATEGORY)


def sweep(case: Case) -> Iterator[Outcome]:
    """The figures of layers and strengths; methods are compared for hours, with vectors that the run need not have any more."""
    if "budgets" in case.records[SWEEP.name]["key"]:
        why = "the answers behind them are not kept; sweep in another --run makes them again"
        yield Outcome(SWEEP.name, "its figures", UNKNOWN, why)
    else:
        yield from by_the_model(case, SWEEP)


def judges(case: Case) -> Iterator[Outcome]:
    """Scorers beside labels by hand, where these are at hand and no model is asked."""
    record = case.records[JUDGES.name]
    asked = [name for name in record["key"]["scorers"] if name.startswith("judge")]
    if asked:
        yield Outcome(JUDGES.name, "made again", UNKNOWN, f"{', '.join(asked)}: a model was asked")
        return
    yield from made_again(case, JUDGES, case.as_made(record), FIGURE)


def by_the_model(case: Case, artefact: "Artefact[Any]") -> Iterator[Outcome]:
    """As `made_again`, by the model that it was made with."""
    from commands.verifying.model import model_of

    record = case.records[artefact.name]
    if case.share < 1:
        yield Outcome(artefact.name, "made again", UNKNOWN, WHOLE)
        return
    if case.s.given("model") not in (None, record["model"]):
        raise UserError(f"it is made again without --model alone, by {record['model']}")
    model_of(case, record)
    most = COMPUTED if record.get("dtype") == "float32" else 0.05
    yield from made_again(case, artefact, case.as_made(record, model=record["model"]), most)


def made_again(case: Case, artefact: "Artefact[Any]", made: Settings, most: float) -> Iterator[Outcome]:
    """Every table of an artefact against what its command makes now, and its record's key against the new one's."""
    import polars as pl

    from data.store.rundir import records
    from data.store.tables import read_parquet

    record, made.run = case.records[artefact.name], run_without(case, artefact)
    import_module(f"commands.{artefact.name}")
    with said_before():
        perform(case.session, made, artefact.name)
    key, now = record["key"], records(made.run)[artefact.name]["key"]
    if odd := sorted(name for name in {*key, *now} if key.get(name) != now.get(name)):
        yield Outcome(
            artefact.name, "made again", DIFFERS, f"its record was of other {', '.join(odd)} than it is made from now"
        )
        return
    for path in artefact.files(case.run):
        if path.exists():
            there, again = (read_parquet(folder / path.relative_to(case.run)) for folder in (case.run, made.run))
            texts = [name for name, kind in again.schema.items() if kind == pl.String]
            told = frames_apart(there.with_row_index("row"), again.with_row_index("row"), ["row", *texts], most)
            yield settled(artefact.name, path.stem, told, f"{again.height} rows")


def run_without(case: Case, artefact: "Artefact[Any]") -> "Path":
    """A run directory with links to the recorded files of all artefacts but one, whose record it lacks."""
    import json

    folder = case.scratch / artefact.name
    known = {name: record for name, record in case.records.items() if name != artefact.name}
    for name in {name for record in known.values() for name in record.get(SHA256, {})}:
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if (case.run / name).exists():
            link.symlink_to((case.run / name).absolute())
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"format": 1, "artefacts": known}))
    return folder
