"""`probe`: activations to a gate."""

from typing import TYPE_CHECKING

from commands.framework.activations import default_layer
from commands.framework.app import Session, command
from commands.framework.artefacts import ACTIVATIONS, FITTED_GATES, PROBE, VECTORS, need
from commands.framework.options import BENIGN, FIT, FPR, GATE, KEEP_REFUSAL, PROBE_LAYER, THRESHOLD_SPLIT, TRAIN
from commands.framework.output import Summary
from commands.framework.prompts import fingerprint_of, held_out, load_prompts, with_known_splits
from commands.framework.records import model_key, note, unchanged
from commands.framework.seen import asked_themes
from commands.framework.settings import Settings
from data.contract import TUNED_MODEL
from data.errors import UserError

if TYPE_CHECKING:
    import polars as pl

    from data.store.activations import Activations
    from interventions.gates.fit_gate import GateRows
    from interventions.model.model import Model


@command(GATE, KEEP_REFUSAL, PROBE_LAYER, FIT, FPR, THRESHOLD_SPLIT, BENIGN, TRAIN)
def probe(session: Session, s: Settings) -> Summary:
    """Fit a gate that tells harmful prompts from benign ones, so that each is steered as it should be.

    --gate ridge and words are fitted on --data (embedded:traffic, if there is none), rows of the split test left out, and
    arms name them: `generate --arm gated:gate=ridge`.
    """
    if s.get("gate") != PROBE.name:
        return fit_gate(session, s)
    return fit_probe_of_activations(session, s)


def fit_probe_of_activations(session: Session, s: Settings) -> Summary:
    """The linear probe on one layer of this run's activations."""
    from data.store.rundir import now
    from data.store.tables import read_parquet, write_table
    from interventions.gates.fit import fit_probe

    if s.get("keep_refusal") is not None:
        raise UserError(
            "--keep-refusal is for --gate ridge and words, which are fitted out of fold; a probe takes --fpr"
        )
    start = now()
    activations, record = need(session, s, ACTIVATIONS)
    layer = default_layer(record) if s.get("layer") is None else s.get("layer")
    options = {name: s.get(name) for name in ("fit", "fpr", "split", "threshold_split", "seed")}
    options["layer"] = None if layer == "auto" else layer
    key = {"activations": record["id"], **options}
    path = PROBE.path(s.run)
    tables = {name: s.run / f"probe_{name}.parquet" for name in ("quality", "layers", "roc")}
    if unchanged(s, PROBE, key):
        fitted, quality = PROBE.load(path), read_parquet(tables["quality"])
    else:
        report = fit_probe(activations, **options)
        fitted, quality = report.probe, report.quality
        for name, table in tables.items():
            write_table(table, getattr(report, name))
        fitted.save(path)
        note(s, PROBE, key, record, start)
    shown = quality if s.get("as_json") else shown_quality(quality)
    return {"layer": fitted.layer, "threshold": round(float(fitted.threshold), 4), "table": shown, "wrote": str(path)}


def fit_gate(session: Session, s: Settings) -> Summary:
    """A gate on prompts of its own, which may be other ones than the vectors'."""
    import numpy as np
    import polars as pl

    from data.store.rundir import now, records
    from data.store.tables import read_parquet, write_table
    from interventions.gates.fit_gate import fit_ridge, fit_words, residual_features
    from interventions.gates.ridge import reads_of

    start, artefact = now(), FITTED_GATES[s.get("gate")]
    model = session.model(s, records(s.run).get(VECTORS.name))
    named = s.with_values(data=s.given("data") or ("embedded:traffic",))
    prompts = held_out(named, with_known_splits(s, load_prompts(named, limited=True))).filter(
        pl.col("label").is_not_null() & (pl.col("split").is_null() | (pl.col("split") != "test"))
    )
    key = model_key(model) | {"fingerprint": fingerprint_of(prompts), "gate": s.get("gate"), "seed": s.get("seed"),
                              "keep_refusal": s.get("keep_refusal"), "fpr": s.get("fpr")}  # fmt: skip
    quality_path, prompts_path = (s.run / name for name in artefact.beside)
    if unchanged(s, artefact, key):
        gate, quality = artefact.load(artefact.path(s.run)), read_parquet(quality_path)
    else:
        rows, chosen = gate_rows(named, model, prompts), {"keep": s.get("keep_refusal"), "fpr": s.get("fpr")}
        if s.get("gate") == "words":
            report = fit_words(model, rows, **chosen)
        else:
            reads = reads_of(model.n_layers)
            files = gate_activations(named, model, prompts, reads)
            x = residual_features(files, reads, np.arange(prompts.height))
            report = fit_ridge(model, rows, x, reads, **chosen)
        gate, quality = report.gate, report.quality
        write_table(quality_path, quality)
        write_table(prompts_path, prompts)
        gate.save(artefact.path(s.run))
        note(s, artefact, key, model, start, data=named.get("data"))
    kept = (
        {"keeps": f"{float(gate.metadata['kept_low']):.3f} of the refusals or more"}
        if "kept_low" in gate.metadata
        else {}
    )
    return {"gate": s.get("gate"), "rows": prompts.height, "threshold": round(float(gate.threshold), 4), **kept,
            "table": quality, "wrote": str(artefact.path(s.run))}  # fmt: skip


def gate_rows(s: Settings, model: "Model", prompts: "pl.DataFrame") -> "GateRows":
    """The prompts with what a gate's fit has to know of them."""
    import numpy as np
    import polars as pl

    from data.prompts.sample import TAUGHT
    from interventions.gates.fit_gate import GateRows
    from interventions.model.control_tokens import refusal_tokens
    from interventions.steering.first_token import first_tokens

    themes, _ = asked_themes(s, prompts.select("dataset", "id", "prompt"))
    alone = pl.format("{} {}", "dataset", "id")
    names = set(refusal_tokens(model).names)
    first = first_tokens(model, prompts["prompt"].to_list()) if names else None
    taught = prompts["dataset"].is_in(TAUGHT).to_numpy() & (model.name == TUNED_MODEL)
    declined = None if first is None else np.array([token in names for token in first])
    return GateRows(prompts, themes.select(pl.col("theme").fill_null(alone)).to_series().to_list(), declined, taught)


def gate_activations(
    s: Settings, model: "Model", prompts: "pl.DataFrame", reads: "list[tuple[int, str]]"
) -> "dict[str, Activations]":
    """What a gate reads of prompts, a file a position."""
    from data.store.activations import Activations
    from interventions.reading.extract import extract

    files = {}
    for position in dict.fromkeys(position for _, position in reads):
        layers = [layer for layer, where in reads if where == position]
        path = extract(model, prompts, s.run / "activations", layers=layers, position=position, name=f"gate-{position}",
                       batch_tokens=s.get("batch_tokens"))  # fmt: skip
        files[position] = Activations.open(path)
    return files


def shown_quality(quality: "pl.DataFrame") -> "pl.DataFrame":
    """The table for a terminal: rates at the threshold with their Wilson 95 % intervals."""
    import polars as pl

    def rate(name: str) -> pl.Expr:
        parts = [pl.col(part).round(3) for part in (name, f"{name}_low", f"{name}_high")]
        return pl.format("{} ({}–{})", *parts).alias(name)

    counts = ("split", "against", "n_harmful", "n_benign")
    return quality.select(*counts, pl.col("auc").round(3), pl.col("tpr_at_1_fpr").round(3), rate("tpr"), rate("fpr"))
