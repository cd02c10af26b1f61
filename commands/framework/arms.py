"""Which arms a command runs, and what they draw on."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from commands.framework.app import Session
from commands.framework.artefacts import FITTED_METHODS, LOWRANK, PROBE, SWEEP, VECTORS, gate_artefact, need
from commands.framework.output import warn
from commands.framework.settings import Record, Settings
from data.contract import CHOSEN, LABELLED_GATE, TUNED_MODEL, TUNED_SETTING
from data.errors import UserError

if TYPE_CHECKING:
    from interventions.methods.vectors import SteeringVectors
    from interventions.model.model import Model
    from interventions.steering.arms import Arm
    from interventions.steering.plans import Tools


class Swept(NamedTuple):
    """The setting that a sweep chose, as its table has it; `id` is the sweep's, `strength` in `unit`s."""

    id: str
    arm: str
    kind: str
    layer: int | None
    strength: float
    unit: str
    category: str
    scope: str

    @property
    def shared(self) -> bool:
        """Whether the setting means something to other arms too."""
        from interventions.steering.sweep import SHARED_SETTING

        return self.kind in SHARED_SETTING

    @property
    def word(self) -> str:
        """It as `--arm` takes it."""
        if self.shared:
            return self.arm
        layer = "" if self.layer is None else f"layer={self.layer},"  # its strength means something to itself alone
        return f"{self.arm}{',' if ':' in self.arm else ':'}{layer}strength={self.strength!r}"


def chosen_arms(session: Session, s: Settings) -> "tuple[Model, list[Arm], Tools, dict[str, str]]":
    """The model, the arms asked for or by default, what they draw on, and the identities of what that comes from."""
    from interventions.steering.arms import parse_arms

    steering, record = need(session, s, VECTORS)
    model = session.model(s, record)
    default, swept = single_arm(s, model, steering), swept_setting(s, record)
    setting = own_setting(s, model, steering) if swept is None else swept.word
    asked = [chosen_word(setting) if word == CHOSEN else word for word in s.get("arm")]
    arms = parse_arms(asked or default_arms(s, model, swept, setting), at_setting(s, default, swept))
    refuse_idle(arms)
    say_outputs_only(model, arms)
    tools, rests_on = need_tools(session, s, arms, steering, record)
    rests_on |= {} if swept is None else {SWEEP.name: swept.id}
    return model, lowrank_at_its_layer(arms, s.get("arm"), tools), tools, rests_on


def refuse_idle(arms: "Sequence[Arm]") -> None:
    """Refuse an arm that would change nothing and be read as a result."""
    for arm in arms:
        if arm.is_idle:
            raise UserError(
                f"arm {arm.name!r} would change nothing: its strength is 0; pass another --strength, or baseline"
            )


def say_outputs_only(model: "Model", arms: "Sequence[Arm]") -> None:
    """Say where ablating everywhere reaches block outputs alone."""
    from interventions.model.blocks import has_plain_blocks

    mine = [arm.name for arm in arms if arm.layers == "all" and arm.operation == "ablate"]
    if mine and not has_plain_blocks(model.module):
        warn(f"arm {mine[0]!r}: the blocks of {model.name} are no Llama's, so the direction is taken out of each block's output, "
             "and not behind its attention and the embeddings too")  # fmt: skip


def drawn_on(arm: "Arm") -> list[str]:
    """Names of the artefacts that an arm draws on."""
    gate = PROBE.name if arm.gate == PROBE.name else gate_artefact(arm.gate).name
    names = {
        VECTORS.name: arm.steers and not arm.maps,
        LOWRANK.name: arm.maps,
        gate: arm.is_gated and arm.gate != LABELLED_GATE,
    } | ({FITTED_METHODS[arm.kind].name: True} if arm.does.fitted else {})
    return [name for name, used in names.items() if used]


def default_arms(s: Settings, model: "Model", swept: Swept | None, setting: str) -> tuple[str, ...]:
    """What is compared if nothing else was said: as much as the run directory's tools and the model's tokens allow.

    The setting that was chosen is among them.
    """
    from interventions.model.control_tokens import refusal_tokens

    arms = ["baseline", "fixed"]
    arms += ["routed"] if refusal_tokens(model).ids else []
    arms += ["gated"] if PROBE.path(s.run).exists() else []
    arms += ["lowrank"] if LOWRANK.path(s.run).exists() else []
    if setting:
        kind = "gated" if swept is None else swept.kind
        arms = [*(arm for arm in arms if arm != kind), setting]
    return tuple(arms)


def chosen_word(setting: str) -> str:
    """What `--arm chosen` stands for.

    Raises:
        UserError: Nothing was chosen, or layer, strength or unit say otherwise.
    """
    if not setting:
        raise UserError(f"--arm {CHOSEN}: no setting was chosen, or --layer, --strength or --strength-unit say otherwise; run "
                        "sweep --methods all, or name an arm")  # fmt: skip
    return setting


def own_setting(s: Settings, model: "Model", steering: "SteeringVectors") -> str:
    """The setting that was chosen for the embedded model and such vectors, where no sweep of the run says another; else empty."""
    from data.store.rundir import records

    mine = model.name == TUNED_MODEL and steering.metadata["method"] == TUNED_SETTING.method
    return TUNED_SETTING.arm if mine and SWEEP.name not in records(s.run) and not says_setting(s) else ""


def says_setting(s: Settings) -> bool:
    """Whether options say what a chosen setting says."""
    return any(s.given(name) is not None for name in ("layer", "strength", "strength_unit"))


def swept_setting(s: Settings, vectors: Record) -> Swept | None:
    """The setting that `sweep` chose, unless layer, strength or unit were given; said on stderr."""
    from data.store.rundir import records

    path, record = SWEEP.path(s.run), records(s.run).get(SWEEP.name)
    if record is None or not path.exists() or says_setting(s):
        return None
    if record["key"]["vectors"] != vectors["id"]:
        warn(f"{path} is of other vectors and not used; run sweep again")
        return None
    rows = SWEEP.read(s.run).filter("chosen").to_dicts()
    if not rows:
        warn(f"{path}: no setting lowered over-refusal without harm; the default is used")
        return None
    row = rows[0]
    place = "" if row["layer"] is None else f" at layer {row['layer']}"
    warn(f"setting of {path}: {row['arm']}, strength {row['strength']:g} {row['strength_unit']}{place}")
    names = ("arm", "kind", "layer", "strength", "strength_unit", "category", "scope")
    return Swept(record["id"], *(row[name] for name in names))


def at_setting(s: Settings, default: "Arm", swept: Swept | None) -> "Arm":
    """What arms leave open, as the sweep chose it."""
    if swept is None or not swept.shared:
        return default
    category, scope = s.given("category") or swept.category, s.given("scope") or swept.scope
    return replace(default, layer=swept.layer, strength=swept.strength, unit=swept.unit, category=category, scope=scope)


def lowrank_at_its_layer(arms: "list[Arm]", words: Sequence[str], tools: "Tools") -> "list[Arm]":
    """A low-rank map steers the layer it was trained at, unless its arm names another, which is a mistake."""
    own = tools.lowrank
    named = [word for word in words if word.startswith("lowrank") and "layer=" in word]
    if own is None or named:
        return arms
    return [replace(arm, layer=own.layer) if arm.maps else arm for arm in arms]


def need_tools(
    session: Session, s: Settings, arms: "list[Arm]", steering: "SteeringVectors", record: Record
) -> tuple["Tools", dict[str, str]]:
    """What the arms draw on, and the identities of the artefacts it comes from."""
    from interventions.steering.plans import Tools

    rests_on = {VECTORS.name: record["id"]}
    probe = lowrank = None
    gates = {}
    for name in dict.fromkeys(arm.gate for arm in arms if arm.is_gated):
        if name == PROBE.name:
            probe, record = need(session, s, PROBE)
            rests_on[PROBE.name] = record["id"]
        elif name != LABELLED_GATE:
            gates[name], record = need(session, s, gate_artefact(name))
            rests_on[gate_artefact(name).name] = record["id"]
    if any(arm.maps for arm in arms):
        lowrank, record = need(session, s, LOWRANK)
        rests_on[LOWRANK.name] = record["id"]
    methods = {}
    for name in dict.fromkeys(arm.kind for arm in arms if arm.does.fitted):
        methods[name], record = need(session, s, FITTED_METHODS[name])
        rests_on[FITTED_METHODS[name].name] = record["id"]
    return Tools(steering, probe, lowrank, gates, methods), rests_on


def single_arm(s: Settings, model: "Model", steering: "SteeringVectors") -> "Arm":
    """The arm of --layer, --category, --strength, --strength-unit, --scope and --seed."""
    from interventions.steering.arms import Arm

    asked = s.for_command("generate")  # which steers where a command has no option for it
    layer = asked.get("layer")
    if layer is not None and layer >= model.n_layers:
        raise UserError(f"layer {layer}: model {model.name!r} has layers 0 to {model.n_layers - 1}")
    if layer is None:
        layer = min(steering.layers, key=lambda at: abs(at - model.default_layer()))
    return Arm("fixed", "fixed", layer, asked.get("category"), strength=asked.get("strength"), unit=asked.get("strength_unit"),
               scope=asked.get("scope"), seed=asked.get("seed"))  # fmt: skip
