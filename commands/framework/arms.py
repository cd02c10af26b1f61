"""Which arms a command runs, and what they draw on."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from commands.framework.app import Session
from commands.framework.output import warn
from commands.framework.records import LOWRANK, PROBE, SWEEP, VECTORS
from commands.framework.settings import Finite, Settings
from commands.lowrank import need_lowrank
from commands.probe import need_probe
from commands.vectors import need_vectors
from data.errors import UserError

if TYPE_CHECKING:
    from interventions.methods.vectors import SteeringVectors
    from interventions.model.model import Model
    from interventions.steering.arms import Arm
    from interventions.steering.plans import Tools


def readable_arms(_ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
    """Arms as they were typed, if they can be read: nothing runs otherwise."""
    if texts:
        from interventions.steering.arms import Arm, parse_arms

        try:
            parse_arms(texts, Arm("fixed", "fixed", 0))
        except UserError as error:
            raise click.BadParameter(str(error)) from None
    return texts


STEERING = (
    click.option("--layer", type=click.IntRange(min=0), help="Block to steer.  [default: round(18/32 · n_layers)]"),
    click.option("--category", help="Whose vector to add.  [default: the mean of all categories']"),
    click.option("--strength", type=Finite(), help="How much of it.  [default: -0.3]"),
    click.option("--strength-unit", type=click.Choice(["raw", "unit", "residual"]), help="Times the vector, the unit "
                 "vector, or the unit vector × the mean residual norm.  [default: residual]"),
    click.option("--scope", type=click.Choice(["prompt-last", "prompt", "generated", "all"]), help="Positions to steer; "
                 "generated: the last prompt token and each generated one.  [default: generated]"),
    click.option("--arm", multiple=True, callback=readable_arms, help="KIND or KIND:KEY=VALUE,…, repeatable.  Kinds: "
                 "baseline, fixed, routed, gated, lowrank, ablate, random, wrong-category, prompt-only, logit-bias, oracle.  Keys: category, harmful, layer, "
                 "operation, route, scope, seed, strength, text, unit.  [default: baseline, fixed, and what the run's probe, "
                 "low-rank map and sweep and the model's tokens allow; trace: fixed]"),
)  # fmt: skip


def chosen_arms(session: Session, s: Settings) -> "tuple[Model, list[Arm], Tools, dict[str, str]]":
    """The model, the arms asked for or by default, what they draw on, and the identities of what that comes from."""
    from interventions.steering.arms import parse_arms

    steering, record = need_vectors(session, s)
    model = session.model(s, record)
    default, swept = single_arm(s, model, steering), swept_setting(s, record)
    arms = parse_arms(s.get("arm") or default_arms(s, model, swept), at_setting(s, default, swept))
    tools, rests_on = need_tools(session, s, arms, steering, record)
    rests_on |= {} if swept is None else {SWEEP: swept["id"]}
    return model, lowrank_at_its_layer(arms, s.get("arm", ()), tools), tools, rests_on


def default_arms(s: Settings, model: "Model", swept: dict[str, Any] | None = None) -> tuple[str, ...]:
    """What is compared if nothing else was said: as much as the run directory's tools and the model's tokens allow.

    The arm that a sweep chose is among them, as it was swept.
    """
    from interventions.model.control_tokens import refusal_tokens

    arms = ["baseline", "fixed"]
    if refusal_tokens(model).ids:
        arms.append("routed")
        arms += ["gated"] if (s.run / "probe.safetensors").exists() else []
    arms += ["lowrank"] if (s.run / "lowrank.safetensors").exists() else []
    if swept is not None:
        word = swept["arm"]
        if not swept["shared"]:  # its strength means something to itself alone
            word += f"{',' if ':' in word else ':'}strength={swept['strength']!r}"
        arms = [*(arm for arm in arms if arm != swept["kind"]), word]
    return tuple(arms)


def swept_setting(s: Settings, vectors: dict[str, Any]) -> dict[str, Any] | None:
    """The setting that `sweep` chose, unless layer, strength or unit were given; said on stderr."""
    import polars as pl

    from data.store.rundir import records
    from interventions.steering.sweep import SHARED_SETTING

    path, record = s.run / "sweep.parquet", records(s.run).get(SWEEP)
    if (
        record is None
        or not path.exists()
        or any(s.get(name) is not None for name in ("layer", "strength", "strength_unit"))
    ):
        return None
    if record["key"]["vectors"] != vectors["id"]:
        warn(f"{path} is of other vectors and not used; run sweep again")
        return None
    rows = pl.read_parquet(path).filter("chosen").to_dicts()
    if not rows:
        warn(f"{path}: no setting lowered over-refusal without harm; the default is used")
        return None
    row = rows[0]
    place = "" if row["layer"] is None else f" at layer {row['layer']}"
    warn(f"setting of {path}: {row['arm']}, strength {row['strength']:g} {row['strength_unit']}{place}")
    return row | {"id": record["id"], "shared": row["kind"] in SHARED_SETTING}


def at_setting(s: Settings, default: "Arm", swept: dict[str, Any] | None) -> "Arm":
    """What arms leave open, as the sweep chose it."""
    if swept is None or not swept["shared"]:
        return default
    category, scope = s.get("category", swept["category"]), s.get("scope", swept["scope"])
    return replace(default, layer=swept["layer"], strength=swept["strength"], unit=swept["strength_unit"],
                   category=category, scope=scope)  # fmt: skip


def lowrank_at_its_layer(arms: "list[Arm]", words: Sequence[str], tools: "Tools") -> "list[Arm]":
    """A low-rank map steers the layer it was trained at, unless its arm names another, which is a mistake."""
    own = tools.lowrank
    named = [word for word in words if word.startswith("lowrank") and "layer=" in word]
    if own is None or named:
        return arms
    return [replace(arm, layer=own.layer) if arm.maps else arm for arm in arms]


def need_tools(
    session: Session, s: Settings, arms: "list[Arm]", steering: "SteeringVectors", record: dict[str, Any]
) -> tuple["Tools", dict[str, str]]:
    """What the arms draw on, and the identities of the artefacts it comes from."""
    from interventions.steering.plans import Tools

    rests_on = {VECTORS: record["id"]}
    probe = lowrank = None
    if any(arm.is_gated for arm in arms):
        probe, rests_on[PROBE] = need_probe(session, s)
    if any(arm.maps for arm in arms):
        lowrank, rests_on[LOWRANK] = need_lowrank(session, s)
    return Tools(steering, probe, lowrank), rests_on


def single_arm(s: Settings, model: "Model", steering: "SteeringVectors") -> "Arm":
    """The arm of --layer, --category, --strength, --strength-unit, --scope and --seed, and of trace's one --arm."""
    from data.contract import DEFAULT_SCOPE, DEFAULT_STRENGTH, DEFAULT_UNIT
    from interventions.steering.arms import Arm, parse_arms

    layer = s.get("layer")
    if layer is not None and layer >= model.n_layers:
        raise UserError(f"layer {layer}: model {model.name!r} has layers 0 to {model.n_layers - 1}")
    if layer is None:
        layer = min(steering.layers, key=lambda at: abs(at - model.default_layer()))
    arm = Arm("fixed", "fixed", layer, s.get("category", "mean"), strength=s.get("strength", DEFAULT_STRENGTH),
              unit=s.get("strength_unit", DEFAULT_UNIT), scope=s.get("scope", DEFAULT_SCOPE),
              seed=s.get("seed", 0))  # fmt: skip
    if s.command == "trace" and s.get("arm"):
        arms = [a for a in parse_arms(s.get("arm"), arm) if not a.is_baseline]
        if len(arms) != 1:
            raise UserError("trace shows one steered arm beside the unsteered model: pass one --arm fixed:…")
        arm = arms[0]
    return arm
