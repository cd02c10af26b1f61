"""`trace` and `generate`: prompts under the lens, and answers in every arm."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from commands.framework.app import Session, command
from commands.framework.output import emit_progress, warn
from commands.framework.prompts import fingerprint_of, load_prompts, traced_prompts
from commands.framework.records import (
    GENERATIONS,
    LOWRANK,
    PROBE,
    SWEEP,
    VECTORS,
    contradiction,
    missing,
    model_key,
    note,
    unchanged,
)
from commands.framework.settings import Finite, Settings
from commands.probe import need_lowrank, need_probe
from commands.vectors import need_vectors
from data.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from interventions.methods.vectors import SteeringVectors
    from interventions.model.opening import Model
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


@command(
    *STEERING,
    click.option("--max-new-tokens", type=click.IntRange(min=0), help="Also generate so many.  [default: 0]"),
    click.option("--prompt", multiple=True, help="A prompt; repeatable.  [default: embedded examples]"),
)
def trace(session: Session, s: Settings) -> dict[str, Any]:
    """Look at prompts unsteered and steered, side by side."""
    from data.store.rundir import now, replacing
    from interventions.steering.trace import trace as run_trace

    start = now()
    prompts = traced_prompts(s)
    steering, record = need_vectors(session, s)
    model = session.model(s, record)
    arm = single_arm(s, model, steering)
    tools, rests_on = need_tools(session, s, [arm], steering, record)
    tokens = s.get("max_new_tokens", 0)
    key = model_key(model) | {
        **rests_on,
        "fingerprint": fingerprint_of(prompts),
        "arm": asdict(arm),
        "max_new_tokens": tokens,
        "seed": s.get("seed", 0),
    }
    path = s.run / "traces.parquet"
    if unchanged(s, "traces", key, path):
        import polars as pl

        table = pl.read_parquet(path)
    else:
        table = run_trace(model, prompts, tools, arm, s.run, max_new_tokens=tokens, batch_tokens=s.get("batch_tokens"))
        with replacing(path) as unfinished:
            table.write_parquet(unfinished)
        note(s, "traces", key, model, start, data=list(s.get("data", ())), options=s.given())
    return {"prompts": table.height, "table": trace_table(table), "wrote": str(path)}


@command(
    *STEERING, click.option("--max-new-tokens", type=click.IntRange(min=1), help="Tokens an answer.  [default: 32]")
)
def generate(session: Session, s: Settings) -> dict[str, Any]:
    """Answer prompts in every arm."""
    return make_generations(session, s)


def make_generations(session: Session, s: Settings) -> dict[str, Any]:
    """Answer the prompts, with vectors that are made if they are missing."""
    from data import for_split

    prompts = for_split(load_prompts(s, limited=False), s.get("split", "test"))
    prompts = prompts.head(s.get("limit", prompts.height))
    if prompts.is_empty():
        raise UserError(f"no prompt in split {s.get('split', 'test')!r}: pass --split or other --data")
    ready = prepare(session, s)
    path = s.run / "generations.parquet"
    answer_prompts(s, ready, prompts, GENERATIONS, path, list(s.get("data", ("embedded",))))
    return {"prompts": prompts.height, "arms": [arm.name for arm in ready.arms], "wrote": str(path)}


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

    def key(self, prompts: "pl.DataFrame") -> dict[str, Any]:
        """What answers to these prompts are made from."""
        return model_key(self.model) | {
            **self.rests_on,
            "fingerprint": fingerprint_of(prompts),
            "arms": [asdict(arm) for arm in self.arms],
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
        }


def prepare(session: Session, s: Settings) -> Ready:
    """Vectors, which are made if they are missing, and the arms with all they need."""
    model, arms, tools, rests_on = chosen_arms(session, s)
    return Ready(model, tools, arms, rests_on, s.get("max_new_tokens", 32), s.get("seed", 0))


def answer_prompts(
    s: Settings, ready: Ready, prompts: "pl.DataFrame", artefact: str, path: "Path", data: list[str]
) -> None:
    """Answer prompts in every arm into a table, unless that was done already."""
    from data.store.rundir import now
    from interventions.steering.generate import generate as run_generate

    start, key = now(), ready.key(prompts)
    if not unchanged(s, artefact, key, path):
        run_generate(ready.model, prompts, ready.tools, path, arms=ready.arms, max_new_tokens=ready.max_new_tokens,
                     batch_tokens=s.get("batch_tokens"), seed=ready.seed)  # fmt: skip
        note(s, artefact, key, ready.model, start, data=data, options=s.given())


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
    from interventions.steering.plans import refusals

    arms = ["baseline", "fixed"]
    if refusals(model).ids:
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
    return [replace(arm, layer=own.layer) if arm.kind == "lowrank" else arm for arm in arms]


def need_tools(
    session: Session, s: Settings, arms: "list[Arm]", steering: "SteeringVectors", record: dict[str, Any]
) -> tuple["Tools", dict[str, str]]:
    """What the arms draw on, and the identities of the artefacts it comes from."""
    from interventions.steering.plans import Tools

    rests_on = {VECTORS: record["id"]}
    probe = lowrank = None
    if any(arm.route == "gated" for arm in arms):
        probe, rests_on[PROBE] = need_probe(session, s)
    if any(arm.kind == "lowrank" for arm in arms):
        lowrank, rests_on[LOWRANK] = need_lowrank(session, s)
    return Tools(steering, probe, lowrank), rests_on


def need_generations(session: Session, s: Settings) -> dict[str, Any]:
    """The record of generations that fit the settings; made if there are none."""
    from data.store.rundir import records

    known = records(s.run)
    record = known.get(GENERATIONS)
    reason, before = "", (record or {}).get("options", {})
    was = before.get("split") or "test"
    split = s.get("split", was)
    if not (s.run / "generations.parquet").exists() or record is None:
        reason = "there are none"
    else:
        newer = [
            name for name in (VECTORS, PROBE, LOWRANK, SWEEP) if _is_newer(known.get(name), record["key"].get(name))
        ]
        reason = f"the {newer[0]} {'are' if newer[0] == VECTORS else 'is'} newer" if newer else contradiction(s, record)
        if not reason and split != was:
            reason = f"split is {split}, was {was}"
        if not reason and (s.get("data") or s.get("limit")):
            from data import for_split

            prompts = for_split(load_prompts(s, limited=False), split)
            prompts = prompts.head(s.get("limit", before.get("limit") or prompts.height))
            reason = "" if fingerprint_of(prompts) == record["key"]["fingerprint"] else "the prompts changed"
    if reason:
        missing(s, "generate", "generations", reason)
        kept = ("layer", "category", "strength", "strength_unit", "scope", "arm", "max_new_tokens")
        same = {name: before.get(name) for name in kept}
        same["data"] = s.get("data") or tuple((record or {}).get("data") or ())
        emit_progress(make_generations(session, s.with_values(**same, split=split)))
        record = records(s.run)[GENERATIONS]
    assert record is not None
    return record


def _is_newer(record: dict[str, Any] | None, used: str | None) -> bool:
    return record is not None and used is not None and record["id"] != used


def single_arm(s: Settings, model: "Model", steering: "SteeringVectors") -> "Arm":
    """The arm of --layer, --category, --strength, --strength-unit, --scope and --seed, and of trace's one --arm."""
    from interventions.steering.arms import DEFAULT_SCOPE, DEFAULT_STRENGTH, DEFAULT_UNIT, Arm, parse_arms

    layer = s.get("layer")
    if layer is not None and layer >= model.n_layers:
        raise UserError(f"layer {layer}: model {model.name!r} has layers 0 to {model.n_layers - 1}")
    if layer is None:
        layer = min(steering.layers, key=lambda at: abs(at - model.default_layer()))
    arm = Arm("fixed", "fixed", layer, s.get("category", "mean"), strength=s.get("strength", DEFAULT_STRENGTH),
              unit=s.get("strength_unit", DEFAULT_UNIT), scope=s.get("scope", DEFAULT_SCOPE),
              seed=s.get("seed", 0))  # fmt: skip
    if s.command == "trace" and s.get("arm"):
        arms = [a for a in parse_arms(s.get("arm"), arm) if a.kind != "baseline"]
        if len(arms) != 1:
            raise UserError("trace shows one steered arm beside the unsteered model: pass one --arm fixed:…")
        arm = arms[0]
    return arm


def trace_table(table: "pl.DataFrame") -> "pl.DataFrame":
    """One line a prompt: divergence and most probable next token, without and with steering."""
    import polars as pl

    def best(column: str) -> list[str]:
        pairs = [(row[0]["token"], row[0]["probability"]) for row in table[column]]
        return ["–" if share is None else f"{token!r} {share:.2f}" for token, share in pairs]

    shown: dict[str, Any] = {"prompt": table["prompt"], "KL": table["kl"].round(4), "next": best("top_unsteered")}
    shown["next, steered"] = best("top_steered")
    if table["text_unsteered"].drop_nulls().len():
        shown |= {"text": table["text_unsteered"], "text, steered": table["text_steered"]}
    return pl.DataFrame(shown)
