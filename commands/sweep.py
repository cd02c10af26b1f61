"""`sweep`: validation rows to the method, layer and strength that `generate` then takes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from commands.framework import options as o
from commands.framework.activations import needs_pairs
from commands.framework.app import Session, command, perform
from commands.framework.arms import need_tools, single_arm
from commands.framework.artefacts import ACTIVATIONS, GATE_FOLDER, PAIRS, PROBE, SWEEP, VECTORS, gate_artefact, need
from commands.framework.output import Summary, emit_progress, warn
from commands.framework.prompts import check_there, fingerprint_of, prompts_of
from commands.framework.records import Key, answering_key, note, unchanged
from commands.framework.settings import Record, Settings
from data.contract import COMPARED_TOKENS, KEPT, LABELS, METHODS, TUNED_MODEL
from data.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from interventions.methods.vectors import SteeringVectors
    from interventions.model.model import Model
    from interventions.steering.arms import Arm
    from interventions.steering.plans import Tools


@command(
    o.LAYERS.but(help="Blocks to try.", shown="every second of 10-20 of 32, scaled"), o.STRENGTHS, o.BENIGN,
    o.CATEGORY, o.UNIT, o.SCOPE,
    o.ARM.but(help="What to steer with: fixed, routed, gated, lowrank, … with :KEY=VALUE,…; repeatable, one setting is chosen "
              "of all.", shown="gated and gated:harmful=0 if there is a probe, else fixed"),
    o.BEST,
    o.NEW_TOKENS.but(help=f"Tokens an answer; with --methods {COMPARED_TOKENS}, if nothing is said, as its first words tell a refusal."),
    o.FOLLOW, o.REFUSAL_LOSS, o.METHODS, o.KL,
    o.KEEP_REFUSAL.but(help="With --methods: share of the unsteered refusals of harmful prompts that the chosen setting keeps, with 95 % "
                       "confidence.", shown=f"{KEPT:g}"),
    o.VALIDATION,
)  # fmt: skip
def sweep(session: Session, s: Settings) -> Summary:
    """Try layers and strengths, or methods and gates, on validation rows, and choose one.

    With --methods and more than 128 rows every method answers 80 of them, and the three that do best there answer the
    rest as well: what is chosen answered every row.
    """
    check_there(s, s.get("split"))
    return compare_methods(session, s) if s.get("methods") else try_settings(session, s)


def labelled_prompts(s: Settings) -> "pl.DataFrame":
    """What settings are tried on."""
    import polars as pl

    return prompts_of(s, s.get("split")).filter(pl.col("label").is_not_null())[: s.get("limit")]


def try_settings(session: Session, s: Settings) -> Summary:
    """Layers and strengths of some arms."""
    from data.store.rundir import now
    from data.store.tables import write_table
    from interventions.steering.sweep import grid, sweep_layers
    from interventions.steering.sweep import sweep as run_sweep
    from reports.scoring.lexical import text_verdicts

    odd = [f"--{name.replace('_', '-')}" for name in ("kl", "keep_refusal") if s.given(name)]
    if odd:
        raise UserError(
            f"{odd[0]} is for sweep --methods, which compares methods by it: pass --methods all, or leave it out"
        )
    start = now()
    below = s.with_values(layers=None)
    steering, record = need(session, below, VECTORS)
    prompts, model = labelled_prompts(s), session.model(s, record)
    words = s.get("arm") or default_arm(s)
    default = single_arm(s, model, steering)
    tools, rests_on = need_tools(session, below, grid(words, default, [default.layer], (1.0,), None), steering, record)
    layers = s.get("layers") or sweep_layers(model.n_layers, steering.layers)
    arms = grid(words, default, layers, s.get("strengths"), tools.lowrank.layer if tools.lowrank is not None else None)
    options = {name: s.get(name) for name in ("best", "max_new_tokens", "refusal_loss")}
    key = (
        answering_key(model) | rests_on | {"fingerprint": fingerprint_of(prompts), "arms": [arm.record for arm in arms]}
    )
    key |= options
    path = SWEEP.path(s.run)
    if unchanged(s, SWEEP, key):
        table = SWEEP.read(s.run)
    else:
        table = run_sweep(model, prompts, tools, path, arms=arms, verdicts=text_verdicts(model.name),
                          batch_tokens=s.get("batch_tokens"), **options)  # fmt: skip
        write_table(s.run / "sweep_prompts.parquet", prompts)  # what was chosen on is no evidence
        note(s, SWEEP, key, model, start, data=s.get("data"))
    if not table["chosen"].any():
        warn("no setting lowers over-refusal at no less refusal and unbroken text: none is chosen (--refusal-loss allows "
             "some loss; --arm gated or other --strengths may do)")  # fmt: skip
    return {"settings": len(arms), "table": shown_settings(table), "wrote": str(path)}


def compare_methods(session: Session, s: Settings) -> Summary:
    """Methods at equal harm with every gate of the run; the one that keeps the promise, on all rows, is chosen."""
    from data.store.rundir import now
    from data.store.tables import read_parquet, write_table
    from interventions.steering.compared.candidates import candidates, wanted
    from interventions.steering.compared.compare import compare, settings_of
    from reports.scoring.lexical import text_verdicts

    start, share = now(), s.get("keep_refusal") or KEPT
    odd = [
        f"--{name.replace('_', '-')}"
        for name in ("layers", "strengths", "arm", "best", "refusal_loss")
        if s.given(name)
    ]
    if odd:
        raise UserError(f"sweep --methods finds strengths by --kl and compares whole methods: leave {odd[0]} out")
    below, methods = s.with_values(layers=None), wanted(s.get("methods"))
    steering, record = need(session, below, VECTORS)
    model = session.model(s, record)
    prompts, default = untaught(labelled_prompts(s), model.name), single_arm(s, model, steering)
    tools, rests_on = tools_of_run(session, below, methods, default, steering, record)
    vectors, sources = fitted_vectors(session, below, methods, steering, record)
    by_method = {name: replace(tools, vectors=vectors.get(name, steering)) for name in methods}
    tried = candidates(model, default, by_method, tools)
    options = {
        "max_new_tokens": s.given("max_new_tokens") or COMPARED_TOKENS,
        "seed": s.get("seed"),
        "budgets": list(s.get("kl")),
        "share": share,
    }
    key = answering_key(model) | rests_on | options | {"fingerprint": fingerprint_of(prompts), "sources": sources,
                                                   "arms": [one.arm.record for one in tried]}  # fmt: skip
    path, compared = SWEEP.path(s.run), s.run / "compared.parquet"
    if compared.exists() and unchanged(s, SWEEP, key):
        table = read_parquet(compared)
    else:
        scores = scores_out_of_fold(s, model, prompts, tools, default)
        table = compare(model, prompts, tried, scores, compared, verdicts=text_verdicts(model.name),
                        batch_tokens=s.get("batch_tokens"), **options)  # fmt: skip
        take_vectors(session, below, table, key)
        write_table(path, settings_of(table))
        write_table(s.run / "sweep_prompts.parquet", prompts)  # what was chosen on is no evidence
        note(s, SWEEP, key, model, start, data=s.get("data"))
    if left := left_behind(table):
        warn(left)
    if not table["chosen"].any():
        warn(none_chosen(table, share))
    return {"settings": table.filter("promised").height, "table": shown_comparison(table), "wrote": str(compared)}


def untaught(prompts: "pl.DataFrame", model: str) -> "pl.DataFrame":
    """Without the rows that the model was taught, as far as that is known: what it learnt by heart tells nothing of others."""
    import polars as pl

    from data.prompts.sample import TAUGHT

    kept = prompts.filter(~pl.col("dataset").is_in(TAUGHT)) if model == TUNED_MODEL else prompts
    if kept["label"].n_unique() < 2:
        if kept.height < prompts.height:
            warn(f"{model} was taught these prompts, and a setting chosen on them flatters it: sweep --data embedded:traffic, "
                 "or your own, is sounder")  # fmt: skip
        kept = prompts
    elif kept.height < prompts.height:
        warn(f"{prompts.height - kept.height} prompts that {model} was taught are left out")
    for label in LABELS:
        if not (kept["label"] == label).any():
            raise UserError(
                f"no {label} row to compare methods on: pass --split or other --data, or --benign NAME_OR_FILE"
            )
    return kept


def tools_of_run(
    session: Session, s: Settings, methods: Sequence[str], default: "Arm", steering: "SteeringVectors", record: Record
) -> "tuple[Tools, dict[str, str]]":
    """What kinds with tensors of their own draw on, and every gate that the run has."""
    from interventions.steering.arms import parse_arms
    from interventions.steering.compared.candidates import KINDS

    there = [PROBE.name] if PROBE.path(s.run).exists() else []
    there += sorted(path.stem for path in (s.run / GATE_FOLDER).glob("*.safetensors"))
    words = [*(name for name in methods if name in KINDS), *(f"gated:gate={name}" for name in there)]
    return need_tools(session, s.for_missing(), parse_arms(words, default), steering, record)


def fitted_vectors(
    session: Session, s: Settings, methods: Sequence[str], steering: "SteeringVectors", own: Record
) -> "tuple[dict[str, SteeringVectors], dict[str, str]]":
    """Each method's vectors, those of the run as they are, and the activations that each was fitted to."""
    from interventions.methods.fit import fit_vectors

    found, sources = {}, {}
    for name in (name for name in methods if name in METHODS):
        if steering.metadata["method"] == name:
            found[name], sources[name] = steering, own["key"]["activations"]
            continue
        mine = s.for_missing().for_command("vectors").with_values(method=name)
        activations, record = need(session, mine, PAIRS if needs_pairs(session, mine) else ACTIVATIONS)
        sources[name] = record["id"]
        found[name] = fit_vectors(activations, name, seed=s.get("seed"))
    return found, sources


def scores_out_of_fold(
    s: Settings, model: "Model", prompts: "pl.DataFrame", tools: "Tools", default: "Arm"
) -> "dict[str, np.ndarray]":
    """Each gate's score of every prompt: of prompts that it was fitted on the one it had when it was fitted without them."""
    import polars as pl

    from data.store.tables import read_parquet
    from interventions.steering.compared.scores import gate_scores

    found = gate_scores(model, prompts, tools, default.layer, s.get("batch_tokens"))
    if PROBE.name in found and (own := prompts["prompt"].is_in(probe_rows(s)).sum()):
        warn(f"the gate probe is left out: it was fitted on {own} of these prompts; --split takes others")
        del found[PROBE.name]
    for name in found.keys() - {PROBE.name}:
        fitted = read_parquet(s.run / gate_artefact(name).beside[1]).unique("prompt", keep="first")
        own = prompts.join(fitted.select("prompt", "score"), on="prompt", how="left", maintain_order="left")["score"]
        found[name] = own.cast(pl.Float32).fill_null(pl.Series(found[name])).to_numpy()
    return found


def probe_rows(s: Settings) -> list[str]:
    """Texts of the prompts that the run's probe was fitted on."""
    from data import for_split
    from data.store.rundir import records
    from data.store.tables import read_parquet

    table = read_parquet(ACTIVATIONS.path(s.run).with_suffix(".parquet"))
    return for_split(table, records(s.run)[PROBE.name]["key"]["split"])["prompt"].to_list()


def take_vectors(session: Session, s: Settings, table: "pl.DataFrame", key: Key) -> None:
    """Make the chosen method's vectors those of the run, and let the key hold them."""
    from data.store.rundir import records

    for method in table.filter("chosen")["method"]:
        if method in METHODS and VECTORS.read(s.run).metadata["method"] != method:
            warn(f"the chosen setting is of --method {method}: running vectors")
            emit_progress(perform(session, s.for_missing().with_values(method=method), "vectors"))
            key[VECTORS.name] = records(s.run)[VECTORS.name]["id"]


def left_behind(table: "pl.DataFrame") -> str:
    """How many methods did not answer every row, and why; empty where all did."""
    import polars as pl

    from data.store.tables import ANSWERED, answered_most, answered_some
    from interventions.steering.compared.first_round import GO_ON

    left, gone, every = answered_some(table)
    if left.is_empty():
        return ""
    went_on = answered_most(table)
    few, all_rows = (frame.select(ANSWERED).item(0, 0) for frame in (left, went_on))
    beside = (
        went_on.filter(~pl.col("method").is_in(went_on.filter(~pl.col("control"))["method"].to_list()))["method"]
        .unique()
        .sort()
    )
    controls = f"; of controls only {', '.join(beside)} went on" if len(beside) else "; no control went on"
    return (f"{gone} of {every} methods and controls answered {few} of {all_rows} rows, and were left there: {GO_ON} others did better"
            f"{controls}")  # fmt: skip


def none_chosen(table: "pl.DataFrame", share: float) -> str:
    """Why nothing was chosen, and what would help."""
    from data.store.tables import answered_most
    from interventions.steering.compared.promise import needed

    unsteered = answered_most(table).filter(gate="").sort("threshold").row(0, named=True)
    declined = round(unsteered["harmful"] * unsteered["n_harmful"])
    more = (f"{declined} harmful prompts are declined unsteered, and it takes {needed(share)} at least, none of them lost: add prompts"
            if declined < needed(share) else "fit a gate (probe --gate ridge --data …)")  # fmt: skip
    return (f"no setting lowers over-refusal and keeps {share:.0%} of the refusals with 95 % confidence: nothing is chosen; "
            f"{more}, or ask --keep-refusal for less")  # fmt: skip


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


def shown_comparison(table: "pl.DataFrame") -> "pl.DataFrame":
    """The best settings that keep the promise, controls among them, and a line for the unsteered model: all of every row."""
    import polars as pl

    from data.store.tables import answered_most

    rates = [pl.format("{} ({}–{})", *(pl.col(part).mul(100).round(1) for part in (label, f"{label}_low", f"{label}_high")))
             .alias(f"{label} refused, %") for label in ("benign", "harmful")]  # fmt: skip
    unsteered = answered_most(table).filter(gate="").sort("threshold").head(1)
    unsteered = unsteered.with_columns(method=pl.lit("unsteered"), strength=pl.lit(None, pl.Float64), kl=pl.lit(0.0))
    kept = table.filter("promised").sort("benign", "control")
    best = pl.concat([unsteered, kept.filter(~pl.col("control")).head(8), kept.filter("control").head(4)])
    return best.select(
        "method", "gate", pl.col("strength", "kl").round(3), *rates, pl.col("kept_low").round(3), "control", "chosen"
    )
