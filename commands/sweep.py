"""`sweep`: validation rows to the method, layer and strength that `generate` then takes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from commands.framework import options as o
from commands.framework.app import Session, command
from commands.framework.arms import need_tools, single_arm
from commands.framework.artefacts import COMPARED, FITTED_GATES, PROBE, SWEEP, VECTORS, need
from commands.framework.output import Summary, warn
from commands.framework.prompts import fingerprint_of, prompts_of
from commands.framework.records import model_key, note, unchanged
from commands.framework.settings import Settings
from data.contract import KEPT
from data.errors import UserError

if TYPE_CHECKING:
    import polars as pl

    from interventions.model.model import Model


@command(
    o.LAYERS.but(help="Blocks to try.", shown="every second of 10-20 of 32, scaled"), o.STRENGTHS, o.BENIGN,
    o.CATEGORY, o.UNIT, o.SCOPE,
    o.ARM.but(help="What to steer with: fixed, routed, gated, lowrank, … with :KEY=VALUE,…; repeatable, one setting is chosen "
              "of all.", shown="gated and gated:harmful=0 if there is a probe and the model has refusal tokens, "
              "else fixed"),
    o.BEST, o.NEW_TOKENS, o.REFUSAL_LOSS, o.METHODS, o.KL,
    o.KEEP_REFUSAL.but(help="With --methods: share of the unsteered refusals of harmful prompts that the chosen setting keeps, with 95 % "
                       "confidence.", shown=f"{KEPT:g}"),
    o.VALIDATION,
)  # fmt: skip
def sweep(session: Session, s: Settings) -> Summary:
    """Try layers and strengths, or methods and gates, on validation rows, and choose one."""
    import polars as pl

    prompts = prompts_of(s, s.get("split"))
    prompts = prompts.filter(pl.col("label").is_not_null())[: s.get("limit")]
    return compare_methods(session, s, prompts) if s.get("methods") else try_settings(session, s, prompts)


def try_settings(session: Session, s: Settings, prompts: "pl.DataFrame") -> Summary:
    """Layers and strengths of some arms."""
    from data.store.rundir import now
    from data.store.tables import write_table
    from interventions.steering.sweep import grid, sweep_layers
    from interventions.steering.sweep import sweep as run_sweep
    from reports.scoring.lexical import text_verdict

    start = now()
    below = s.with_values(layers=None)
    steering, record = need(session, below, VECTORS)
    model = session.model(s, record)
    words = s.get("arm") or default_arm(s, model)
    default = single_arm(s, model, steering)
    tools, rests_on = need_tools(session, below, grid(words, default, [default.layer], (1.0,), None), steering, record)
    layers = s.get("layers") or sweep_layers(model.n_layers, steering.layers)
    arms = grid(words, default, layers, s.get("strengths"), tools.lowrank.layer if tools.lowrank is not None else None)
    options = {name: s.get(name) for name in ("best", "max_new_tokens", "refusal_loss")}
    key = model_key(model) | rests_on | {"fingerprint": fingerprint_of(prompts), "arms": [arm.record for arm in arms]}
    key |= options
    path = SWEEP.path(s.run)
    if unchanged(s, SWEEP, key):
        table = SWEEP.load(path)
    else:
        table = run_sweep(model, prompts, tools, path, arms=arms, verdict=text_verdict(model.name),
                          batch_tokens=s.get("batch_tokens"), **options)  # fmt: skip
        write_table(s.run / "sweep_prompts.parquet", prompts)  # what was chosen on is no evidence
        note(s, SWEEP, key, model, start, data=s.get("data"))
    if not table["chosen"].any():
        warn("no setting lowers over-refusal at no less refusal and unbroken text: none is chosen (--refusal-loss allows "
             "some loss; --arm gated or other --strengths may do)")  # fmt: skip
    return {"settings": len(arms), "table": shown_settings(table), "wrote": str(path)}


def compare_methods(session: Session, s: Settings, prompts: "pl.DataFrame") -> Summary:
    """Methods at equal harm with every gate of the run; the one that keeps the promise is chosen."""
    from data.store.rundir import now
    from data.store.tables import write_table
    from interventions.steering.compared.candidates import candidates, wanted
    from interventions.steering.compared.compare import compare, settings_table
    from interventions.steering.compared.promise import needed
    from reports.scoring.lexical import text_verdict

    start, share = now(), s.get("keep_refusal") or KEPT
    odd = [f"--{name.replace('_', '-')}" for name in ("layers", "strengths", "arm", "best", "refusal_loss") if s.given(name)]
    if odd:
        raise UserError(f"sweep --methods finds strengths by --kl and compares whole methods: leave {odd[0]} out")
    below = s.with_values(layers=None)
    steering, record = need(session, below, VECTORS)
    model = session.model(s, record)
    prompts = untaught(prompts, model)
    by_method, rests_on = tools_by_method(session, below, model, wanted(s.get("methods")), steering, record)
    gates, of_gates = gates_of(session, below)
    rests_on |= of_gates
    tried = candidates(model, single_arm(s, model, steering), by_method, Tools(steering, gates=gates))
    options = {name: s.get(name) for name in ("max_new_tokens", "seed")} | {"budgets": s.get("kl"), "share": share}
    key = model_key(model) | rests_on | options | {"fingerprint": fingerprint_of(prompts), "arms": [one.arm.record for one in tried]}
    path = SWEEP.path(s.run)
    if unchanged(s, SWEEP, key):
        table = read_parquet(s.run / SWEEP.beside[0])
    else:
        scores = {name: gate_scores(s, model, prompts, name, gate, steering) for name, gate in gates.items()}
        found = compare(model, prompts, tried, scores, s.run / SWEEP.beside[0], verdict=text_verdict(model.name),
                        batch_tokens=s.get("batch_tokens"), **options)  # fmt: skip
        ...
    return {}
