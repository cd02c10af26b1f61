"""`reproduce`: a paper's whole table, by the same steps as the single commands, from one file of settings."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from commands.framework.activations import needs_pairs, pairing, read_activations
from commands.framework.answers import Ready, answer_prompts, prepare
from commands.framework.app import Session, command, perform
from commands.framework.artefacts import GENERATIONS, PAPER_TABLE, SUMMARY, VECTORS, Artefact, need
from commands.framework.options import DEPTH, FOLLOW, LAYER, LIMIT, NEW_TOKENS, SCORING, STRENGTH, TEST, UNIT, Declared
from commands.framework.output import Summary, emit, warn
from commands.framework.prompts import fitting_prompts, spread, spread_in_kinds
from commands.framework.recipe import PAPER, RECIPE, RESIDUAL, Recipe, read_recipe
from commands.framework.records import identity, note, unchanged, without_secrets
from commands.framework.settings import Command, Settings, Values
from data.errors import UserError

if TYPE_CHECKING:
    import polars as pl

    from interventions.steering.arms import Arm
    from reports.page.blocks import Table

PAPERS = ("paper",)
CONFIG = Declared(
    "--config", "TOML file of what to run.", RECIPE, PAPER, "commands/paper.toml, which says what may stand in it"
)
VERIFY = Declared(
    "--verify",
    "At the end hold the run against itself, as the command verify does; exit 1 if anything differs.",
    bool,
    False,
)
LITTLE = 0.1  # of the mean residual norm; what this tool steers with by itself is 0.3
STRENGTHS = (
    STRENGTH.but(help="Of the arms that add a vector, in place of the file's; a gated arm's strength for harmful prompts keeps its "
                 "ratio to it. Negative is away from refusal.", default=None, shown="the file's: -6, and 4 where the gate sees harm"),
    UNIT.but(default=None, shown=f"the file's: unit, or residual with the strengths that it has for that, where those in unit vectors are under {LITTLE:.0%} "
             "of the mean residual norm"),
)  # fmt: skip


class Reproduction(Command):
    """A command whose one word may stand before its options: click, reading a chain, would stop at the word."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the word behind all options, and parse."""
        _, rest, _ = self.make_parser(ctx).parse_args([*args])
        word = len(args) - len(rest) - 1
        if rest and rest[0].startswith("-") and word >= 0 and args[word] in PAPERS:
            options, rest, _ = self.make_parser(ctx).parse_args(rest)
            end = len(args) - len(rest) - isinstance(options.get("what"), str)  # that would be the next command
            args = [*args[:word], *args[word + 1 : end], args[word], *args[end:]]
        return super().parse_args(ctx, args)


@dataclass(frozen=True)
class Set:
    """One data set that is there: as it was asked for, and its prompts."""

    source: str
    prompts: "pl.DataFrame"

    @property
    def artefact(self) -> "Artefact[pl.DataFrame]":
        """Its answers."""
        plain = "".join(c if c.isalnum() or c in ".-" else "-" for c in self.source)
        return replace(GENERATIONS, name=f"sets/{plain[-60:]}-{identity({'source': self.source})[:6]}")


@command(
    click.argument("what", type=click.Choice(PAPERS)), CONFIG,
    LAYER.but(help="Block to read and to steer.", shown=f"the file's, else {DEPTH}"), *STRENGTHS,
    LIMIT.but(help="N prompts of each set, evenly spread over it; vectors, probe and map are then fitted on at most N of each label "
              "and category in each split."),
    NEW_TOKENS.but(default=None, shown="the file's, 128"), FOLLOW, *SCORING, VERIFY, TEST, cls=Reproduction,
)  # fmt: skip
def reproduce(session: Session, s: Settings) -> Summary:
    """Run the whole table of arXiv 2603.13359, and put paper and ours side by side.

    Usage: reproduce paper [OPTIONS]. --data names other sets than the file's. What is done is kept: run the same command
    again to go on. A set that can't be had leaves an empty row, and a line that says how to get it.
    """
    recipe = read_recipe(s.get("config"))
    s = s.with_defaults(**recipe.for_model(s.given("model")))
    wanted = s.with_defaults(**recipe.of("generate"))
    arms = read_arms(wanted, wanted.given("arm"))  # says at once if one can't be read
    there, missing = load_sets(wanted)
    keep(s.get("config"), s.run / "paper.toml")
    nothing: Values = {"data": (), "limit": None, "split": None, "no_auto": None}
    below = s.with_values(**nothing).with_defaults(model=session.model(s).name)
    layer = fit(session, below, recipe, arms, s.get("limit"))
    steered, little = at_strengths(
        session, s, wanted.with_values(**nothing, layer=layer, model=below.get("model")), recipe
    )
    answer_sets(session, steered, there)
    perform(session, below.with_defaults(**recipe.of("evaluate")), "evaluate")
    table = write_table(below, there, missing, little)
    page = perform(session, below, "report")
    if s.get("verify"):
        emit("verify", perform(session, below, "verify"), s.get("as_json"))
    prompts = sum(one.prompts.height for one in there)
    if s.get("as_json"):
        return {"prompts": prompts, "missing": missing, "table": table.frame, "wrote": str(s.run)}
    return {"prompts": prompts, "sets": len(there), "missing": len(missing), "table": table.shown,
            "wrote": page["wrote"]}  # fmt: skip


def load_sets(s: Settings) -> tuple[list[Set], dict[str, str]]:
    """The sets of --data that can be had, at most --limit prompts of each; and of the others, how to get them.

    Raises:
        UserError: There are none, or two hold the same prompt.
    """
    from data import OutOfReachError, for_split, load, stacked
    from data.prompts.hub import cached_only

    there: list[Set] = []
    missing: dict[str, str] = {}
    split = s.get("split")
    with ExitStack() as rest:
        for source in s.get("data"):
            try:
                prompts = for_split(load(source, s.get("data_mirror")), split)
                if prompts.is_empty():
                    raise UserError(f"no prompt in split {split!r}: pass --split")
            except UserError as error:
                if isinstance(error, OutOfReachError):
                    rest.enter_context(cached_only())
                missing[source] = how_to_get(source, str(error))
                warn(f"{source} is missing and left out: {missing[source]}")
            else:
                there.append(Set(source, spread(prompts, s.get("limit"))))
    if not there:
        raise UserError(f"none of the {len(missing)} data sets is there: {next(iter(missing.values()))}")
    stacked([one.prompts for one in there])
    return there, missing


def keep(recipe: Path, copy: Path) -> None:
    """Leave a copy of what was run, without what is secret in its addresses."""
    from data.store.rundir import replacing

    text = without_secrets(recipe.read_bytes().decode("utf-8"))
    with replacing(copy) as unfinished:
        unfinished.write_bytes(text.encode("utf-8"))


def how_to_get(source: str, error: str) -> str:
    """What to do about a set that can't be had; of one that is gated, that its terms come first."""
    from data.prompts.catalogue import find
    from data.prompts.hub import PAGE

    found = find(source)
    if found is None or not found[0].gated or "gated" in error:
        return error
    return f"{error}; it is gated: accept its terms at {PAGE}{found[0].hub} and run `hf auth login` first"


def read_arms(s: Settings, words: Sequence[str]) -> "list[Arm]":
    """Arms as they are worded, in the unit that is set."""
    from interventions.steering.arms import Arm, parse_arms

    return parse_arms(words, Arm("fixed", "fixed", 0, unit=s.given("strength_unit") or UNIT.default))


def fit(session: Session, s: Settings, recipe: Recipe, arms: "Sequence[Arm]", limit: int | None) -> int:
    """Make what the arms draw on: activations at one layer, vectors, and where an arm needs them probe and low-rank map.

    Args:
        session: Of the chain.
        s: Options.
        recipe: What each command is told.
        arms: What is compared.
        limit: At most so many prompts of each label and category in each split; None for all.

    Returns:
        The layer.
    """
    model = session.model(s)
    default = model.default_layer() if recipe.layer is None else recipe.layer
    layer = default if s.get("layer") is None else s.get("layer")
    below = s.with_values(layer=layer, layers=(layer,)).with_defaults(**recipe.of("extract"))
    reading, directions = (
        below.for_command("extract"),
        below.with_defaults(**recipe.of("vectors")).for_command("vectors"),
    )
    whole = fitting_prompts(reading)
    prompts = spread_in_kinds(whole, limit)
    if prompts.height < whole.height:
        warn(f"--limit {limit}: vectors, probe and map are fitted on at most {limit} prompts of each label and category in each split, "
             f"{prompts.height:,} of {whole.height:,}")  # fmt: skip
    read_activations(session, reading, prompts, ())
    if needs_pairs(session, directions):
        paired = pairing(model, prompts, directions.get("split"))
        read_activations(session, directions.for_command("extract"), *paired)
    perform(session, directions.of_what_was_read(), "vectors")
    if any(arm.is_gated for arm in arms):
        perform(session, below.with_defaults(**recipe.of("probe")).of_what_was_read(), "probe")
    if any(arm.maps for arm in arms):
        perform(session, below.with_defaults(**recipe.of("lowrank")).of_what_was_read(), "lowrank")
    return layer


def answer_sets(session: Session, s: Settings, sets: Sequence[Set]) -> None:
    """Answer set by set, each into a file of its own, so that another set costs only its own answers; then join them."""
    s = s.for_command("generate")
    ready = prepare(session, s)
    for arm in ready.arms:
        warn_of_little(ready, arm)
    parts: list[pl.DataFrame] = []
    answered, total = 0, sum(one.prompts.height for one in sets)
    for number, one in enumerate(sets, 1):
        warn(
            f"set {number} of {len(sets)}: {one.source}, {one.prompts.height:,} prompts, after {answered:,} of {total:,}"
        )
        parts.append(answer_prompts(s, ready, one.prompts, one.artefact, [one.source]))
        answered += one.prompts.height
    join_answers(s, ready, sets, parts)


def at_strengths(session: Session, given: Settings, s: Settings, recipe: Recipe) -> "tuple[Settings, Little | None]":
    """The arms at the strengths that count, and what they were to be where that would have been too little to see.

    Args:
        session: Of the chain.
        given: Options of the command line.
        s: These with what the file says of `generate`, and the layer.
        recipe: The file.
    """
    vectors, _ = need(session, s.for_command("generate"), VECTORS)
    norm = json.loads(vectors.metadata["residual_norms"])[vectors.layers.index(s.get("layer"))]
    unit = given.given("strength_unit")
    residual: tuple[str, ...] = recipe.of(RESIDUAL).get("arm") or ()
    little = None
    if unit is None and residual and s.get("strength_unit") == "unit":
        most = max((strongest(arm) for arm in read_arms(s, s.get("arm")) if in_units(arm, "unit")), default=0.0)
        little = Little(most, norm) if 0 < most < LITTLE * norm else None
    if residual and (little or unit == "residual"):
        s = s.with_values(arm=residual, strength_unit="residual")
    if little:
        warn(f"{little.words}, which would change little: strengths are shares of that norm instead, {', '.join(residual)}; "
             "--strength-unit unit keeps the file's")  # fmt: skip
    if given.given("strength") is not None:
        s = s.with_values(arm=tuple(at_strength(word, s) for word in s.get("arm")))
    return s, little


@dataclass(frozen=True)
class Little:
    """A strength in unit vectors, right for one model, that is next to nothing in another's residual stream."""

    strength: float
    norm: float

    @property
    def words(self) -> str:
        """How much it is."""
        return (f"{self.strength:g} × the unit vector is {self.strength / self.norm:.1%} of the mean residual norm of the layer, "
                f"{self.norm:.3g}")  # fmt: skip


def strongest(arm: "Arm") -> float:
    """The largest strength that an arm may steer with."""
    return max(abs(arm.strength), abs(arm.harmful) if arm.is_gated else 0.0)


def in_units(arm: "Arm", unit: str) -> bool:
    """Whether an arm adds vectors in such units."""
    return arm.steers and arm.has_vectors and arm.operation == "add" and arm.unit == unit


def at_strength(word: str, s: Settings) -> str:
    """An arm as it is worded, at --strength if it adds a vector in the unit of all arms."""
    from interventions.steering.arms import NEXT

    strength, (arm,) = s.given("strength"), read_arms(s, [word])
    if not in_units(arm, s.given("strength_unit") or UNIT.default) or not arm.strength:
        return word
    kind, _, rest = word.partition(":")
    kept = [
        pair for pair in NEXT.split(rest) if pair and pair.partition("=")[0] not in ("strength", "benign", "harmful")
    ]
    harmful = [f"harmful={strength * arm.harmful / arm.strength:.6g}"] if arm.is_gated or arm.reads_labels else []
    return f"{kind}:{','.join([f'strength={strength:.10g}', *harmful, *kept])}"


def warn_of_little(ready: Ready, arm: "Arm") -> None:
    """Say that a strength in unit vectors is next to nothing in this model's residual stream."""
    vectors = ready.tools.vectors
    if not in_units(arm, "unit") or arm.layer not in vectors.layers:
        return
    norm = json.loads(vectors.metadata["residual_norms"])[vectors.layers.index(arm.layer)]
    if strongest(arm) < LITTLE * norm:
        warn(f"{arm.name}: {Little(strongest(arm), norm).words}: it may change little; --strength-unit residual takes strengths as "
             "shares of that norm")  # fmt: skip


def join_answers(s: Settings, ready: Ready, sets: Sequence[Set], parts: "Sequence[pl.DataFrame]") -> None:
    """All sets' answers in one table, as `generate` would have written it."""
    import polars as pl

    from data import stacked
    from data.store.rundir import now
    from data.store.tables import write_table

    start = now()
    key = ready.key(stacked([one.prompts for one in sets]))
    if unchanged(s, GENERATIONS, key):
        return
    order = {arm.name: at for at, arm in enumerate(ready.arms)}
    order_of_arms = pl.col("arm").replace_strict(order, return_dtype=pl.Int64)
    whole = pl.concat(parts).sort(order_of_arms, maintain_order=True)
    write_table(GENERATIONS.path(s.run), whole)
    note(s, GENERATIONS, key, ready.model, start, data=[one.source for one in sets])


def write_table(s: Settings, sets: Sequence[Set], missing: dict[str, str], little: Little | None) -> "Table":
    """The papers' table and ours, as `paper.parquet`; its record says what is missing, and what was too little, for a report."""
    from data.store.rundir import now, records
    from data.store.tables import write_table
    from reports.page.run import open_run
    from reports.page.sections.paper import whole

    start, known = now(), records(s.run)
    table, _, _ = whole(open_run(s.run), missing)
    write_table(PAPER_TABLE.path(s.run), table.frame)
    more = {"missing": missing} | ({"too_little": asdict(little)} if little else {})
    note(s, PAPER_TABLE, {"summary": known[SUMMARY.name]["id"], "missing": missing}, known[GENERATIONS.name], start,
         data=[one.source for one in sets], more=more)  # fmt: skip
    return table
