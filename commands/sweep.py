"""`sweep`: validation rows to the layer and strength that `generate` then takes."""

from typing import TYPE_CHECKING

from commands.framework import options as o
from commands.framework.app import Session, command
from commands.framework.arms import need_tools, single_arm
from commands.framework.artefacts import PROBE, SWEEP, VECTORS, need
from commands.framework.output import Summary, warn
from commands.framework.prompts import check_there, fingerprint_of, prompts_of
from commands.framework.records import model_key, note, unchanged
from commands.framework.settings import Settings

if TYPE_CHECKING:
    import polars as pl


@command(
    o.LAYERS.but(help="Blocks to try.", shown="every second of 10-20 of 32, scaled"), o.STRENGTHS, o.BENIGN,
    o.CATEGORY, o.UNIT, o.SCOPE,
    o.ARM.but(help="What to steer with: fixed, routed, gated, lowrank, … with :KEY=VALUE,…; repeatable, one setting is chosen "
              "of all.", shown="gated and gated:harmful=0 if there is a probe, else fixed"),
    o.BEST, o.NEW_TOKENS, o.REFUSAL_LOSS, o.VALIDATION,
)  # fmt: skip
def sweep(session: Session, s: Settings) -> Summary:
    """Try layers and strengths on validation rows, and choose one."""
    import polars as pl

    from data.store.rundir import now
    from data.store.tables import write_table
    from interventions.steering.sweep import grid, sweep_layers
    from interventions.steering.sweep import sweep as run_sweep
    from reports.scoring.lexical import text_verdict

    start = now()
    check_there(s, s.get("split"))
    below = s.with_values(layers=None)
    steering, record = need(session, below, VECTORS)
    prompts = prompts_of(s, s.get("split")).filter(pl.col("label").is_not_null())[: s.get("limit")]
    model = session.model(s, record)
    words = s.get("arm") or default_arm(s)
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


def default_arm(s: Settings) -> tuple[str, ...]:
    """What is swept if nothing else was said."""
    return ("gated", "gated:harmful=0") if PROBE.path(s.run).exists() else ("fixed",)


def shown_settings(table: "pl.DataFrame") -> "pl.DataFrame":
    """One line a setting that was generated with, or every one where none was: rates of harmful and benign rows."""
    import polars as pl

    keys = ["arm", "layer", "strength", "strength_unit"]
    rates = ["refusal_probability", "refused", "broken"]
    sides = [table.filter(label=label).select(*keys, "chosen", *(pl.col(name).alias(f"{name}, {label}") for name in rates))
             for label in ("harmful", "benign")]  # fmt: skip
    both = sides[0].join(sides[1].drop("chosen"), on=keys, nulls_equal=True, maintain_order="left")
    tried = both.filter(pl.col("refused, harmful").is_not_null())
    return tried.select(*keys, *(f"{name}, {label}" for name in rates for label in ("harmful", "benign")), "chosen")
