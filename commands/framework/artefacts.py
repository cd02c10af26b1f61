"""Every artefact, described once; and `need`, which gives one that fits, made first if it is missing or out of date."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from commands.framework.app import Session, perform
from commands.framework.output import Summary, emit_progress, warn
from commands.framework.records import contradiction
from commands.framework.settings import Record, Settings
from data.contract import EDITS
from data.errors import UserError

if TYPE_CHECKING:
    import polars as pl

    from interventions.gates.gate import FittedGate
    from interventions.methods.edits.fitted import FittedMethod
    from interventions.methods.lowrank import LowRank
    from interventions.methods.vectors import SteeringVectors

T = TypeVar("T")


def _table(path: Path) -> "pl.DataFrame":
    from data.store.tables import read_parquet

    return read_parquet(path)


def _of(module: str, name: str) -> Callable[[Path], Any]:
    """What a class of the library loads, which is imported when it does."""
    return lambda path: getattr(import_module(module), name).load(path)


@dataclass(frozen=True)
class Artefact(Generic[T]):
    """A file of the run directory that has a record.

    Attributes:
        name: In `run.json`; the file's name too, but for its ending.
        load: Reads the file.
        ending: The file's.
        beside: Files that belong to it.
        perhaps: Files that belong to it where they are there.
        command: What makes it.
        called: How messages call it.
        rests_on: What it is made from, as its record's key calls that; the key holds that record's id. A folder stands for
            everything in it.
        kept: Options of its command that stay as they were when it is made again.
        sets: Options of its command that make it this artefact and no other.
    """

    name: str
    load: Callable[[Path], T]
    ending: str = "parquet"
    beside: tuple[str, ...] = ()
    perhaps: tuple[str, ...] = ()
    command: str = ""
    called: str = ""
    rests_on: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    sets: tuple[tuple[str, str], ...] = ()

    def path(self, run: Path) -> Path:
        """Where it lies."""
        return run / f"{self.name}.{self.ending}"

    def files(self, run: Path) -> list[Path]:
        """All that may belong to it; a record has the SHA-256 of those that are there."""
        return [self.path(run), *(run / name for name in (*self.beside, *self.perhaps))]

    def read(self, run: Path) -> T:
        """What lies there, if it is what was recorded.

        Raises:
            UserError: It was altered since.
        """
        self.check(run)
        return self.load(self.path(run))

    def check(self, run: Path, *, own: bool = False) -> None:
        """Is it what was recorded? With `own`, what a command made that ended before it was recorded will do too.

        Raises:
            UserError: It was altered since, or nothing here made it.
        """
        from data.store.digests import altered, check_made_here
        from data.store.rundir import records

        record = records(run).get(self.name)
        if record is None:
            check_made_here(run, self.files(run))
        odd = altered(run, record)
        if odd is not None and not (own and odd.is_own):
            raise UserError(odd.words)


TENSORS = "safetensors"
ACTIVATIONS_FOLDER = "activations"


def activations_artefact(name: str, called: str = "", command: str = "extract") -> Artefact[Path]:
    """Activations and the table of their rows."""
    return Artefact(
        f"{ACTIVATIONS_FOLDER}/{name}",
        Path,
        TENSORS,
        (f"{ACTIVATIONS_FOLDER}/{name}.parquet",),
        command=command,
        called=called,
    )


ACTIVATIONS, PAIRS = activations_artefact("prompts", "activations"), activations_artefact("pairs", "pairs")
SUMS = activations_artefact("sums", "sums", "vectors")
PROJECTIONS = activations_artefact("projections", "moments and projections", "probe")
CARRIED = activations_artefact("carried", "projections without themes", "probe")
VECTORS: "Artefact[SteeringVectors]" = Artefact(
    "vectors", _of("interventions.methods.vectors", "SteeringVectors"), TENSORS, command="vectors", called="vectors",
    rests_on=("activations",), kept=("method", "tau", "top_k", "normalize"),
)  # fmt: skip
PROBE: "Artefact[FittedGate]" = Artefact(
    "probe", _of("interventions.gates.gate", "FittedGate"), TENSORS, command="probe", called="a probe",
    beside=("probe_quality.parquet", "probe_layers.parquet", "probe_roc.parquet", "gates/probe_quality.parquet"),
    rests_on=("activations",), kept=("layer", "fit", "fpr", "threshold_split"),
)  # fmt: skip
LOWRANK: "Artefact[LowRank]" = Artefact(
    "lowrank", _of("interventions.methods.lowrank", "LowRank"), TENSORS, command="lowrank", called="a low-rank map",
    beside=("lowrank_training.parquet",),
    rests_on=("activations", "vectors"), kept=("layer", "mode", "basis", "epochs", "rate"),
)  # fmt: skip
PARITY: "Artefact[pl.DataFrame]" = Artefact(
    "parity", _table, beside=("parity_layers.parquet",), command="parity", called="what engines have in common"
)
GATE_FOLDER = "gates/"


def gate_artefact(name: str) -> "Artefact[FittedGate]":
    """A gate that is neither the probe, which has a file of its own, nor `perfect`, which needs none."""
    return Artefact(
        f"{GATE_FOLDER}{name}", _of("interventions.gates.gate", "FittedGate"), TENSORS, command="probe",
        called=f"a gate of {name}", beside=(f"{GATE_FOLDER}{name}_quality.parquet", f"{GATE_FOLDER}{name}_prompts.parquet"),
        kept=("keep_refusal", "fpr", "data"), sets=(("gate", name),),
    )  # fmt: skip


FITTED_METHODS: "dict[str, Artefact[FittedMethod]]" = {
    name: Artefact(
        f"methods/{name}", _of("interventions.methods.edits.fitted", "FittedMethod"), TENSORS, command="vectors",
        called=f"what {name} fits", rests_on=("activations",), sets=(("method", name),),
    )
    for name in EDITS
}  # fmt: skip
GENERATIONS = Artefact(
    "generations", _table, command="generate", called="generations",
    rests_on=("vectors", "probe", "lowrank", "sweep", GATE_FOLDER, *(method.name for method in FITTED_METHODS.values())),
    kept=("layer", "category", "strength", "strength_unit", "scope", "arm", "max_new_tokens", "wrap"),
)  # fmt: skip
SWEEP = Artefact("sweep", _table, beside=("sweep_prompts.parquet",), perhaps=("compared.parquet",))
LENS, TRACES, DIFF, EFFECTS, CAPABILITY, SCORES, SUMMARY, LENGTHS, COHERENCE, PAPER_TABLE, RUBRIC = (
    Artefact(name, _table)
    for name in ("logit_lens", "traces", "diff", "effects", "capability", "scores", "summary", "lengths", "coherence", "paper", "rubric")
)  # fmt: skip
JUDGES = Artefact("judges", _table, beside=("judges_classes.parquet", "judges_disagreements.parquet"),
                  perhaps=("judges_rates.parquet",))  # fmt: skip
CATEGORY = Artefact(
    "category", _table, beside=("category_test.parquet", "category_towards.parquet", "category_away.parquet")
)
MODEL_FOLDER = Artefact("model", Path)


class Making(NamedTuple):
    """How an artefact is made in another command's stead: the command to name, what to call, and how much that is."""

    words: str
    make: Callable[[], Summary]
    much: str = ""


Plan = Callable[[Session, Settings, Artefact[Any], Record | None], Making]
Differs = Callable[[Session, Settings, Artefact[Any], Record], str]
_OWN: dict[str, tuple[Plan, Differs]] = {}


def made_by(*artefacts: Artefact[Any], unless: Differs) -> Callable[[Plan], Plan]:
    """Say how artefacts are made whose command alone does not tell, and what more keeps one from fitting the settings."""

    def register(plan: Plan) -> Plan:
        _OWN.update({artefact.name: (plan, unless) for artefact in artefacts})
        return plan

    return register


def need(session: Session, s: Settings, artefact: Artefact[T]) -> tuple[T, Record]:
    """An artefact that fits the settings, and its record; made, as it was before, if there is none.

    Raises:
        UserError: It is missing or out of date, and --no-auto was given; or a file of it was altered since it was made.
    """
    from data.store.rundir import records

    import_module(f"commands.{artefact.command}")
    plan, _ = _OWN.get(artefact.name, (_as_before, None))
    record = records(s.run).get(artefact.name)
    if reason := unfit(session, s, artefact):
        making = plan(session, s, artefact, record)
        if s.get("no_auto"):
            raise UserError(f"{s.command} needs {artefact.called} in {s.run} ({reason}): "
                            f"run `python cli.py --run {s.run} {making.words}` first")  # fmt: skip
        warn(f"{s.command} needs {artefact.called} ({reason}): running {making.words}{making.much}")
        emit_progress(making.make())
        record = records(s.run)[artefact.name]
    assert record is not None
    return artefact.load(artefact.path(s.run)), record


def unfit(session: Session, s: Settings, artefact: Artefact[Any]) -> str:
    """Why an artefact has to be made, or made again; nothing if it fits the settings.

    Raises:
        UserError: A file of it was altered since it was made.
    """
    from data.store.digests import altered
    from data.store.rundir import records

    import_module(f"commands.{artefact.command}")
    _, differs = _OWN.get(artefact.name, (None, None))
    known = records(s.run)
    record = known.get(artefact.name)
    if record is None or not artefact.path(s.run).exists():
        return "there is none" if artefact.called.startswith("a ") else "there are none"
    odd = altered(s.run, record)
    if odd is not None and not odd.is_own:
        raise UserError(odd.words)
    reason = "a command ended before it was recorded" if odd else newer(artefact, record, known)
    reason = reason or contradiction(s, record)
    return reason or (differs(session, s, artefact, record) if differs else "")


def newer(artefact: Artefact[Any], record: Record, known: dict[str, Record]) -> str:
    """Which of the artefacts that one rests on was made anew since: `the vectors are newer`."""
    folders = tuple(name for name in artefact.rests_on if name.endswith("/"))
    for name in (*artefact.rests_on, *(name for name in record["key"] if name.startswith(folders))):
        used = record["key"].get(name)
        source = record["key"].get("source", ACTIVATIONS.name) if name == "activations" else name
        if used is not None and source in known and known[source]["id"] != used:
            return f"the {name} {'are' if name in ('activations', 'vectors') else 'is'} newer"
    return ""


def as_before(artefact: Artefact[Any], record: Record | None) -> Record:
    """The kept options of an artefact that is made again."""
    options = (record or {}).get("options", {})
    return {name: options.get(name) for name in artefact.kept} | dict(artefact.sets)


def _as_before(session: Session, s: Settings, artefact: Artefact[Any], record: Record | None) -> Making:
    settings = s.for_missing().with_values(**as_before(artefact, record))
    return Making(artefact.command, lambda: perform(session, settings, artefact.command))
