"""`probe`: activations to a gate."""

from typing import TYPE_CHECKING

from commands.framework.activations import default_layer
from commands.framework.app import Session, command
from commands.framework.artefacts import ACTIVATIONS, PROBE, need
from commands.framework.options import BENIGN, FIT, FPR, PROBE_LAYER, THRESHOLD_SPLIT, TRAIN
from commands.framework.output import Summary
from commands.framework.records import note, unchanged
from commands.framework.settings import Settings

if TYPE_CHECKING:
    import polars as pl


@command(PROBE_LAYER, FIT, FPR, THRESHOLD_SPLIT, BENIGN, TRAIN)
def probe(session: Session, s: Settings) -> Summary:
    """Fit a probe that tells harmful prompts from benign ones: the gate of steering."""

    from data.store.rundir import now, replacing
    from data.store.tables import read_parquet
    from interventions.gates.fit import fit_probe

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
            with replacing(table) as unfinished:
                getattr(report, name).write_parquet(unfinished)
        fitted.save(path)
        note(s, PROBE, key, record, start)
    shown = quality if s.get("as_json") else shown_quality(quality)
    return {"layer": fitted.layer, "threshold": round(float(fitted.threshold), 4), "table": shown, "wrote": str(path)}


def shown_quality(quality: "pl.DataFrame") -> "pl.DataFrame":
    """The table for a terminal: rates at the threshold with their Wilson 95 % intervals."""
    import polars as pl

    def rate(name: str) -> pl.Expr:
        parts = [pl.col(part).round(3) for part in (name, f"{name}_low", f"{name}_high")]
        return pl.format("{} ({}–{})", *parts).alias(name)

    counts = ("split", "against", "n_harmful", "n_benign")
    return quality.select(*counts, pl.col("auc").round(3), pl.col("tpr_at_1_fpr").round(3), rate("tpr"), rate("fpr"))
