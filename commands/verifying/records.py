"""Files against the SHA-256 in their records, artefacts against those that they rest on, prompts against their sources."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from commands.framework.artefacts import ACTIVATIONS, GENERATIONS, PAIRS, PROJECTIONS
from commands.framework.settings import Record
from commands.verifying.outcome import DIFFERS, UNKNOWN, Case, Outcome, frames_apart, settled

if TYPE_CHECKING:
    import polars as pl

KEY = ("dataset", "id")


def files(case: Case) -> Iterator[Outcome]:
    """Every file's SHA-256, of its bytes and not of what the ledger says."""
    from data.store.digests import SHA256, verify

    found: dict[str, dict[str, bool | None]] = {name: {} for name in case.records}
    for artefact, name, good in verify(case.run):
        found[artefact][name] = good
    for artefact, those in found.items():
        odd, gone = ([name for name, good in those.items() if good is what] for what in (False, None))
        if not those:
            yield Outcome(artefact, "files", UNKNOWN, f"its record tells of no {SHA256}")
        elif odd or not gone:
            many = f"{len(those)} file{'s' if len(those) > 1 else ''}"
            yield settled(artefact, "files", f"{', '.join(odd)}: another SHA-256 than in run.json" if odd else "", many)
        for name in gone:
            yield Outcome(artefact, "files", UNKNOWN, f"{name} is gone")
    told = {name for those in found.values() for name in those}
    for path in sorted([*case.run.rglob("*.parquet"), *case.run.rglob("*.safetensors")]):
        name = path.relative_to(case.run).as_posix()
        if (
            name not in told
            and not name.startswith(("model/", "baked/", "export/", "tables/"))
            and "/." not in f"/{name}"
        ):
            yield Outcome(name, "files", UNKNOWN, "no record in run.json tells of it")


def rests_on(case: Case) -> Iterator[Outcome]:
    """Whether what an artefact was made from is what lies there now."""
    for artefact, record in case.records.items():
        key = record["key"]
        named = {
            key.get("source", ACTIVATIONS.name) if name == "activations" else name: value for name, value in key.items()
        }
        own = {name: value for name, value in named.items() if name in case.records and isinstance(value, str)}
        odd = [name for name, value in own.items() if case.records[name]["id"] != value]
        if own:
            yield settled(
                artefact,
                "rests on",
                f"made from other {', '.join(odd)} than there are now" if odd else "",
                ", ".join(own),
            )


def prompts(case: Case) -> Iterator[Outcome]:
    """Whether prompts, labels and categories are those of the data sets that the records name."""
    from data import fingerprint
    from data.store.tables import read_parquet

    for artefact in (ACTIVATIONS, PROJECTIONS, PAIRS, GENERATIONS):
        record = case.records.get(artefact.name)
        if record is None:
            continue
        path = artefact.path(case.run) if artefact is GENERATIONS else artefact.path(case.run).with_suffix(".parquet")
        if not path.exists():
            yield Outcome(artefact.name, "prompts", UNKNOWN, f"{path.name} is gone")
            continue
        rows = read_parquet(path)
        if artefact in (ACTIVATIONS, PROJECTIONS):
            same = fingerprint(rows) == record["key"].get("fingerprint")
            yield settled(
                artefact.name,
                "fingerprint",
                "" if same else "not the prompts that the record tells of",
                f"{rows.height} prompts",
            )
        mine = rows.unique(KEY, keep="first", maintain_order=True)
        there = source_rows(case, record)
        known = mine.join(there, on=KEY, how="semi")
        if known.height < mine.height:
            yield Outcome(
                artefact.name,
                "prompts",
                DIFFERS,
                f"{mine.height - known.height} of {mine.height} prompts are not in {', '.join(record['data'])}",
            )
            continue
        again = there.join(mine, on=KEY, how="semi")
        columns = ["prompt", "category", "label"]
        told = frames_apart(mine.select(*KEY, *columns), again.select(*KEY, *columns), KEY)
        rest = rows.select(*KEY, *columns).unique().height - mine.height  # of one prompt in several arms
        yield settled(artefact.name, "prompts", told or (f"{rest} rows have another prompt than their siblings" if rest else ""),
                      f"{mine.height} are as in {', '.join(record['data'])}")  # fmt: skip


def source_rows(case: Case, record: Record) -> "pl.DataFrame":
    """The rows of the data sets that a record names, as they are read now."""
    import polars as pl

    from commands.framework.prompts import load_prompts
    from commands.framework.seen import wrapped
    from data.errors import UserError

    earlier = [source for one in record.get("earlier", []) for source in one.get("data") or []]
    data = tuple(dict.fromkeys([*earlier, *(record.get("data") or [])]))
    if not data:
        raise UserError("its record names no data")
    benign = tuple(record["options"].get("benign") or ())
    made = case.as_made(record, data=data, benign=benign, limit=None)
    rows, file = load_prompts(made, limited=False), record["options"].get("wrap")
    return pl.concat([rows, wrapped(made, rows, record["key"], file)]) if file else rows
