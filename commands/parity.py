"""`parity`: do two engines say the same?"""

from typing import TYPE_CHECKING

from commands.framework.app import Session, command
from commands.framework.arms import chosen_arms
from commands.framework.artefacts import PARITY, Artefact
from commands.framework.options import AGAINST_ENGINE, NEW_TOKENS, REPLACE, STEERING, TEST, TOLERANCE
from commands.framework.output import Summary, warn
from commands.framework.prompts import fingerprint_of, prompts_of, spread
from commands.framework.records import identity, model_key, note, unchanged
from commands.framework.settings import Settings
from data.contract import UNQUANTISED
from data.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from interventions.steering.compared.parity import Measured

PROMPTS = 64
TIE = {"float32": 1e-3}  # nats between two tokens that rounding alone may put in another order
NARROW_TIE = 0.25
FOLDER = "parity/"
REFERENCE = "transformers-float32"


@command(*STEERING, NEW_TOKENS, AGAINST_ENGINE, TOLERANCE, REPLACE, TEST)
def parity(session: Session, s: Settings) -> Summary:
    """Hold one engine against another: the residual stream layer by layer, first distributions, answers token by token.

    What the engine of the options says of the prompts (--limit of them, 64 unless given, evenly drawn) is kept, and held
    against what --against says: transformers on this machine, in float32, which runs here and now, or another setting that
    parity ran for before, such as vllm-float32. Exit 1 where the residual stream deviates by more than --tolerance, or an
    answer differs and not near a tie.
    """
    from data.store.rundir import now
    from data.store.tables import write_table
    from interventions.steering.compared.parity import compare, engine_name, margins, measure, verdict

    start = now()
    model, arms, tools, rests_on = chosen_arms(session, s)
    prompts = spread(prompts_of(s, s.get("split")), s.get("limit") or PROMPTS)
    if prompts.is_empty():
        raise UserError(f"no prompt in split {s.get('split')!r}: pass --split or other --data")
    shared = {"fingerprint": fingerprint_of(prompts), "arms": [arm.record for arm in arms], "max_new_tokens": s.get("max_new_tokens"), **rests_on,
              **{name: value for name, value in model_key(model).items() if name not in ("dtype", "quantize")}}  # fmt: skip
    key, name, against = identity(shared), engine_name(model), s.get("against")
    artefact = measured_artefact(name)
    if s.get("replace") or not unchanged(s, artefact, shared | {"engine": name}):
        artefact.path(s.run).parent.mkdir(exist_ok=True)
        measure(model, prompts, tools, arms, s.get("max_new_tokens"), key).save(artefact.path(s.run))
        note(s, artefact, shared | {"engine": name}, model, start, data=s.get("data"))
    own: Measured = artefact.read(s.run)
    if name == against or (name, against) == (REFERENCE, "transformers"):
        warn(f"{name} is what others are held against: pass --engine vllm, --dtype or --quantize to hold one")
        return {"measured": name, "prompts": prompts.height, "wrote": str(artefact.path(s.run))}
    judge = None
    if against == "transformers":
        plain = s.with_values(engine="transformers", dtype="float32", quantize=UNQUANTISED,
                              **dict.fromkeys(("serve", "tensor_parallel", "requests", "max_model_len")))  # fmt: skip
        oracle = session.model(plain)
        against = engine_name(oracle)
        reference = measured_artefact(against)
        if s.get("replace") or not unchanged(s, reference, shared | {"engine": against}):
            measure(oracle, prompts, tools, arms, s.get("max_new_tokens"), key).save(reference.path(s.run))
            note(s, reference, shared | {"engine": against}, oracle, start, data=s.get("data"))
        judge = margins(oracle, prompts, tools, arms)
    elif not measured_artefact(against).path(s.run).exists():
        raise UserError(
            f"nothing is kept of {against}: run parity with its options first; kept: {', '.join(kept(s.run)) or 'nothing'}"
        )
    held = measured_artefact(against).read(s.run)
    tie = TIE.get(model.dtype, NARROW_TIE)
    layers, told = compare(held, own, tie, judge)
    tolerance = s.get("tolerance") or (1e-5 if model.dtype == "float32" else 0.1)
    pair, shown = {"engine": name, "against": against}, told
    for path, table in ((PARITY.path(s.run), told), (s.run / PARITY.beside[0], layers)):
        write_table(path, with_others(path, pair, table))
    note(s, PARITY, shared | pair | {"tolerance": tolerance, "tie": tie}, model, start, data=s.get("data"))
    if odd := verdict(layers, told, tolerance):
        warn(f"see {PARITY.path(s.run)}, or report")
        raise UserError(f"{name} and {against} don't say the same: {'; '.join(odd)}")
    return {**pair, "prompts": prompts.height, "tolerance": tolerance, "largest_deviation": layers["deviation"].max(), "table": shown,
            "wrote": str(PARITY.path(s.run))}  # fmt: skip


def measured_artefact(name: str) -> "Artefact[Measured]":
    """What an engine said."""
    return Artefact(f"{FOLDER}{name}", _measured, "safetensors", command="parity", called=f"what {name} says")


def with_others(path: "Path", pair: dict[str, str], table: "pl.DataFrame") -> "pl.DataFrame":
    """A table with the pair's rows, and those of other pairs that the file has."""
    import polars as pl

    from data.store.tables import read_parquet

    mine = table.select(*(pl.lit(value).alias(name) for name, value in pair.items()), pl.all())
    if not path.exists():
        return mine
    others = read_parquet(path).filter((pl.col("engine") != pair["engine"]) | (pl.col("against") != pair["against"]))
    return pl.concat([others, mine], how="vertical_relaxed")


def kept(run: "Path") -> list[str]:
    """Engines whose words are kept."""
    return sorted(path.stem for path in (run / FOLDER).glob("*.safetensors"))


def _measured(path: "Path") -> "Measured":
    from interventions.steering.compared.parity import Measured

    return Measured.load(path)
