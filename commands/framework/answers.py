"""Answers of prompts in arms, which add up: what a run has of them, and what is missing of what is asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from commands.framework.app import Session
from commands.framework.arms import chosen_arms, drawn_on
from commands.framework.artefacts import Artefact, as_before
from commands.framework.options import TEST
from commands.framework.output import warn
from commands.framework.prompts import fingerprint_of, prompts_of
from commands.framework.records import Key, answering_key, identity, note, replaced
from commands.framework.seen import wrapped
from commands.framework.settings import Record, Settings, Values

if TYPE_CHECKING:
    import polars as pl

    from data.store.journal import Journal
    from interventions.model.model import Model
    from interventions.steering.arms import Arm
    from interventions.steering.plans import Tools

    Make = Callable[[pl.DataFrame, list[Arm]], tuple[pl.DataFrame, Journal]]


@dataclass(frozen=True)
class Ready:
    """All that answering takes but the prompts.

    Attributes:
        model: An open model.
        tools: What its arms draw on.
        arms: What is compared.
        rests_on: Identities of the artefacts that the tools come from.
        max_new_tokens: At most so many tokens an answer.
        seed: Written into the tables.
    """

    model: "Model"
    tools: "Tools"
    arms: "list[Arm]"
    rests_on: dict[str, str]
    max_new_tokens: int
    seed: int

    @property
    def shared(self) -> Key:
        """What all rows of a table must have in common."""
        return answering_key(self.model) | {"max_new_tokens": self.max_new_tokens, "seed": self.seed}

    def key(self, prompts: "pl.DataFrame") -> Key:
        """What answers to these prompts are made from."""
        return self.shared | self.rests_on | {
            "fingerprint": fingerprint_of(prompts),
            "arms": [arm.record for arm in self.arms],
        }  # fmt: skip


@dataclass(frozen=True)
class Standing:
    """What a table of prompts × arms holds that stays.

    Attributes:
        table: Its rows; None if there are none.
        arms: Its arms, as it calls them.
        asked: What earlier commands asked for, oldest first: options, and `arms`, identities of settings.
    """

    table: "pl.DataFrame | None" = None
    arms: "list[Arm]" = field(default_factory=list)
    asked: list[Values] = field(default_factory=list)


def prepare(session: Session, s: Settings) -> Ready:
    """Vectors, which are made if they are missing, and the arms with all they need."""
    model, arms, tools, rests_on = chosen_arms(session, s)
    return Ready(model, tools, arms, rests_on, s.get("max_new_tokens"), s.get("seed"))


def answer_prompts(
    s: Settings, ready: Ready, prompts: "pl.DataFrame", artefact: Artefact[Any], data: Sequence[str]
) -> "pl.DataFrame":
    """Answer prompts in every arm, as far as the table does not hold them; gives the rows asked for."""
    from interventions.steering.generate import answered

    def make(some: "pl.DataFrame", arms: "list[Arm]") -> "tuple[pl.DataFrame, Journal]":
        return answered(ready.model, some, ready.tools, artefact.path(s.run), arms=arms, max_new_tokens=ready.max_new_tokens,
                        batch_tokens=s.get("batch_tokens"), seed=ready.seed)  # fmt: skip

    return Adding(s, artefact, ready, prompts, data).run(make)


@dataclass(frozen=True)
class Adding:
    """Rows of prompts × arms that are added to a table: what fits of it stays, with --replace nothing.

    Attributes:
        s: The command's options.
        artefact: The table.
        ready: The arms asked for and what they draw on.
        prompts: The prompts asked for.
        data: Where these come from.
        fits: Of a trace, whether a row has the text that is asked for.
    """

    s: Settings
    artefact: "Artefact[pl.DataFrame]"
    ready: Ready
    prompts: "pl.DataFrame"
    data: Sequence[str]
    fits: "pl.Expr | None" = None

    def run(self, make: "Make") -> "pl.DataFrame":
        """Make what is missing, arms that lack the same prompts at once; gives the rows asked for, arms called as asked."""
        import polars as pl

        from data.store import adding
        from data.store.rundir import now
        from interventions.steering.arms import together

        start, held = now(), self._standing()
        arms = together([*held.arms, *self.ready.arms])
        wanted = [next(arm for arm in arms if arm.setting == own.setting) for own in self.ready.arms]
        names = {old.name: arm.name for old in held.arms for arm in arms if arm.setting == old.setting}
        table = held.table
        if table is not None and held.table is not None:
            table = adding.with_labels_of(table.with_columns(pl.col("arm").replace(names)), self.prompts)
            if lost := held.table.height - table.height:
                warn(f"{self.artefact.name}: {lost} rows are of prompts that have other words now, and go")
        known = table if table is None or self.fits is None else table.filter(self.fits)
        parts = adding.missing(known, [arm.name for arm in wanted], self.prompts, [arm.reads_labels for arm in wanted])
        whole, left = len(wanted) * self.prompts.height, sum(len(part.arms) * len(part.rows) for part in parts)
        if 0 < left < whole:
            warn(f"{self.s.command}: {whole - left} of {whole} are there already")
        for part in parts:
            new, journal = make(self.prompts[part.rows], [wanted[at] for at in part.arms])
            table = new if table is None else adding.joined(table, new, [arm.name for arm in arms])
            self._write(table, arms, held, start)
            journal.remove()
        assert table is not None
        if not parts and not self._is_recorded(table, arms, held):
            self._write(table, arms, held, start)
        own = {arm.name: mine.name for arm, mine in zip(wanted, self.ready.arms, strict=True)}
        rows = adding.of_prompts(table, self.prompts).filter(pl.col("arm").is_in(list(own)))
        return rows.with_columns(pl.col("arm").replace(own))

    def _standing(self) -> Standing:
        """What is there and stays; what does not is said."""
        from data.store.rundir import records

        known, path = records(self.s.run), self.artefact.path(self.s.run)
        record = known.get(self.artefact.name)
        if record is None:
            self.artefact.check(self.s.run)
        if record is None or not path.exists() or "arms" not in record["key"]:
            return Standing()
        key = record["key"]
        changed = sorted(name for name, value in self._shared.items() if key.get(name) != value)
        if changed or self.s.get("replace"):
            why = "begins anew" if self.s.get("replace") else f"is made again: {', '.join(changed)} changed"
            warn(f"{self.artefact.name} {why}{replaced(record)}")
            return Standing()
        arms = arms_of(record)
        stale = {
            arm.name: name for arm in arms for name in drawn_on(arm) if key.get(name) != known.get(name, {}).get("id")
        }
        if stale:
            warn(f"{self.artefact.name}: without {', '.join(stale)}, of other {', '.join(dict.fromkeys(stale.values()))} than there "
                 "are now")  # fmt: skip
        kept = [arm for arm in arms if arm.name not in stale]
        there = {identity(arm.setting) for arm in kept}
        asked = [one for one in all_asked(self.artefact, record) if set(one["arms"]) <= there]
        self.artefact.check(self.s.run, own=True)
        table = self.artefact.load(path)
        return (
            Standing(table.filter(table["arm"].is_in([arm.name for arm in kept])), kept, asked) if kept else Standing()
        )

    @property
    def _shared(self) -> Key:
        """What all rows of the table must have in common; traces may differ in length."""
        return self.ready.shared if self.fits is None else answering_key(self.ready.model)

    def _key(self, table: "pl.DataFrame", arms: "list[Arm]", held: Standing) -> Key:
        """Of the table: where it holds other rows than all prompts asked for in all arms asked for, which ones."""
        import polars as pl

        from data.store import adding
        from data.store.rundir import records

        known = records(self.s.run)
        older = {name: known[name]["id"] for arm in held.arms for name in drawn_on(arm)}
        key = self._shared | older | self.ready.rests_on | {"fingerprint": fingerprint_of(self.prompts)}
        key |= {"arms": [arm.record for arm in arms]}
        settings = [own.setting for own in self.ready.arms]
        wanted = pl.col("arm").is_in([arm.name for arm in arms if arm.setting in settings])
        if (
            not adding.of_prompts(table, self.prompts).filter(wanted).height
            == table.height
            == len(settings) * self.prompts.height
        ):
            rows = identity({"rows": table.select("dataset", "id", "prompt", "arm").rows()})
            key |= {"asked": adding.runs_of(table, self.prompts), "rows": rows}
        return key

    def _is_recorded(self, table: "pl.DataFrame", arms: "list[Arm]", held: Standing) -> bool:
        from data.store.rundir import records

        path, record = self.artefact.path(self.s.run), records(self.s.run).get(self.artefact.name, {})
        return path.exists() and record.get("id") == identity(self._key(table, arms, held))

    def _write(self, table: "pl.DataFrame", arms: "list[Arm]", held: Standing, start: str) -> None:
        """The table and its record."""
        from data.store.tables import write_table

        mine = [identity(arm.setting) for arm in self.ready.arms]
        earlier = [one for one in held.asked if one["arms"] != mine]
        key = self._key(table, arms, held)
        write_table(self.artefact.path(self.s.run), table)
        note(
            self.s,
            self.artefact,
            key,
            self.ready.model,
            start,
            data=self.data,
            more={"earlier": earlier} if earlier else {},
        )


def arms_of(record: Record) -> "list[Arm]":
    """A table's arms."""
    from interventions.steering.arms import Arm

    return [Arm(**({"said": noted["name"].partition(":")[2]} | noted)) for noted in record["key"]["arms"]]


def all_asked(artefact: Artefact[Any], record: Record) -> list[Values]:
    """What the commands behind a record asked for, oldest first; the last one's arms are those that no earlier one had."""
    earlier = record.get("earlier", [])
    before = {name for one in earlier for name in one["arms"]}
    arms = [identity(arm.setting) for arm in arms_of(record)]
    last = {name: record["options"].get(name) for name in ("split", "limit")} | as_before(artefact, record)
    return [*earlier, last | {"data": record.get("data") or [], "arms": [name for name in arms if name not in before]}]


def split_of(s: Settings, record: Record | None) -> tuple[str, str]:
    """The split that is to be answered, and the one that was."""
    was = (record or {}).get("options", {}).get("split") or TEST.default
    return s.given("split") or was, was


def asked_prompts(s: Settings, record: Record) -> "pl.DataFrame | None":
    """The prompts that --data, --split and --limit of a command ask for answers to; None if it has none of these."""
    if all(s.given(name) is None for name in ("data", "split", "limit")):
        return None
    data = s.given("data") or tuple(record.get("data") or ())
    limit = s.given("limit") or record["options"].get("limit")
    prompts = prompts_of(s.with_values(data=data), split_of(s, record)[0])[:limit]
    file = record["options"].get("wrap")
    return wrapped(s, prompts, record["key"], file) if file else prompts


def asked_rows(s: Settings, table: "pl.DataFrame", record: Record) -> "pl.DataFrame":
    """Of all answers those to the prompts that were asked for: by --data, --split or --limit, else by the last `generate`."""
    from data.store.adding import in_runs, of_prompts

    prompts = asked_prompts(s, record)
    if prompts is not None:
        rows = of_prompts(table, prompts)
    else:
        rows = in_runs(table, record["key"]["asked"]) if "asked" in record["key"] else table
    left = (table.select("dataset", "id").n_unique()) - rows.select("dataset", "id").n_unique()
    if left and prompts is None:
        warn(f"{s.command} takes the prompts that generate was last asked for; {left} more have answers: --data, --split and "
             "--limit say which to take")  # fmt: skip
    return rows
