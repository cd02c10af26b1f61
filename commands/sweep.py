"""`sweep`: validation rows to the layer and strength that `generate` then takes."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from commands.framework.app import Session, command
from commands.framework.arms import STEERING, need_tools, readable_arms, single_arm
from commands.framework.output import warn
from commands.framework.prompts import fingerprint_of, load_prompts
from commands.framework.records import SWEEP, model_key, note, unchanged
from commands.framework.settings import Layers, Numbers, Settings
from commands.vectors import need_vectors

if TYPE_CHECKING:
    import polars as pl

    from interventions.model.model import Model

CATEGORY, UNIT, SCOPE = STEERING[1], STEERING[3], STEERING[4]


@command(
    click.option("--layers", type=Layers(), help="Blocks to try.  [default: every second of 10-20 of 32, scaled]"),
    click.option("--strengths", type=Numbers(), help="Strengths to try, such as -0.1,-0.3.  [default: the arm's own "
                 "times 1/3, 2/3, 1, 4/3, 2]"),
    click.option("--benign", multiple=True, help="More prompts, all benign; repeatable.  [default: none]"),
    CATEGORY,
    UNIT,
    SCOPE,
    click.option("--arm", multiple=True, callback=readable_arms, help="What to steer with: fixed, routed, gated, lowrank, "
                 "… with :KEY=VALUE,…; repeatable, one setting is chosen of all.  [default: gated and gated:harmful=0 if there is a probe and the "
                 "model has refusal tokens, else fixed]"),
    click.option("--best", type=click.IntRange(min=1), help="Settings that generate, shortlisted by the first token.  "
                 "[default: 5]"),
    click.option("--max-new-tokens", type=click.IntRange(min=1), help="Tokens an answer.  [default: 32]"),
    click.option("--refusal-loss", type=click.FloatRange(0, 1), help="How much refusal of harmful rows may be lost.  "
                 "[default: 0]"),
)  # fmt: skip
def sweep(session: Session, s: Settings) -> dict[str, Any]:
    """Try layers and strengths on validation rows, and choose one."""
    import polars as pl

    from data import for_split
    from data.store.rundir import now, replacing
    from interventions.steering.sweep import grid, sweep_layers
    from interventions.steering.sweep import sweep as run_sweep
    from reports.scoring.lexical import text_verdict

    start = now()
    prompts = for_split(load_prompts(s, limited=False), s.get("split", "validation"))
    prompts = prompts.filter(pl.col("label").is_not_null()).head(s.get("limit", prompts.height))
    below = s.with_values(layers=None)
    steering, record = need_vectors(session, below)
    model = session.model(s, record)
    words = s.get("arm") or default_arm(s, model)
    default = single_arm(s, model, steering)
    tools, rests_on = need_tools(session, below, grid(words, default, [default.layer], (1.0,), None), steering, record)
    arms = grid(
        words,
        default,
        s.get("layers") or sweep_layers(model.n_layers, steering.layers),
        s.get("strengths"),
        tools.lowrank.layer if tools.lowrank is not None else None,
    )
    options = {"best": s.get("best", 5), "max_new_tokens": s.get("max_new_tokens", 32),
               "refusal_loss": s.get("refusal_loss", 0.0)}  # fmt: skip
    key = model_key(model) | rests_on | {"fingerprint": fingerprint_of(prompts), "arms": [asdict(arm) for arm in arms]}
    key |= options
    path = s.run / "sweep.parquet"
    if unchanged(s, SWEEP, key, path):
        table = pl.read_parquet(path)
    else:
        table = run_sweep(model, prompts, tools, path, arms=arms, verdict=text_verdict(model.name),
                          batch_tokens=s.get("batch_tokens"), **options)  # fmt: skip
        with replacing(s.run / "sweep_prompts.parquet") as unfinished:  # what was chosen on is no evidence
            prompts.write_parquet(unfinished)
        note(s, SWEEP, key, model, start, data=list(s.get("data", ("embedded",))), options=s.given())
    if not table["chosen"].any():
        warn("no setting lowers over-refusal at no less refusal and unbroken text: none is chosen (--refusal-loss allows "
             "some loss; --arm gated or other --strengths may do)")  # fmt: skip
    return {"settings": len(arms), "table": shown_settings(table), "wrote": str(path)}


def default_arm(s: Settings, model: "Model") -> tuple[str, ...]:
    """What is swept if nothing else was said."""
    from interventions.model.control_tokens import refusal_tokens

    return (
        ("gated", "gated:harmful=0")
        if refusal_tokens(model).ids and (s.run / "probe.safetensors").exists()
        else ("fixed",)
    )


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
