"""`probe` and `lowrank`: activations to a gate, and to a low-rank combination of the vectors."""

from typing import TYPE_CHECKING, Any

import click

from commands.extract import default_layer, need_activations
from commands.framework.app import Session, command
from commands.framework.output import emit_progress
from commands.framework.records import ACTIVATIONS, PROBE, contradiction, missing, note, unchanged
from commands.framework.settings import LayerOrAuto, Settings

if TYPE_CHECKING:
    import polars as pl

    from interventions.gates.probe import Probe


@command(
    click.option("--layer", type=LayerOrAuto(), help="Block to read; auto: the one with the highest AUC on "
                 "--threshold-split.  [default: round(18/32 · n_layers)]"),
    click.option("--fit", type=click.Choice(["logistic", "mass-mean", "published"]), help="Logistic regression, its penalty "
                 "cross-validated; the difference in means over each dimension's variance, which carries over better to "
                 "other data; or as published: AdamW, 15 epochs.  [default: logistic]"),
    click.option("--fpr", type=click.FloatRange(0, 1), help="Share of benign rows that may pass for harmful.  "
                 "[default: Youden's J]"),
    click.option("--threshold-split", help="Rows to choose the threshold on.  [default: validation]"),
    click.option("--benign", multiple=True, help="More prompts, all benign; repeatable.  [default: none]"),
)  # fmt: skip
def probe(session: Session, s: Settings) -> dict[str, Any]:
    """Fit a probe that tells harmful prompts from benign ones: the gate of steering."""
    return make_probe(session, s, own_data=True)


def make_probe(session: Session, s: Settings, *, own_data: bool) -> dict[str, Any]:
    """Fit the probe to activations, which are made if they are missing."""
    import polars as pl

    from data.store.rundir import now, replacing
    from interventions.gates.fit import fit_probe
    from interventions.gates.probe import Probe

    start = now()
    record = need_activations(session, s, own_data=own_data)
    layer = s.get("layer", default_layer(record))
    options = {
        "layer": None if layer == "auto" else layer,
        "fit": s.get("fit", "logistic"),
        "fpr": s.get("fpr"),
        "split": s.get("split", "train"),
        "threshold_split": s.get("threshold_split", "validation"),
        "seed": s.get("seed", 0),
    }
    key = {"activations": record["id"], **options}
    path = s.run / "probe.safetensors"
    tables = {name: s.run / f"probe_{name}.parquet" for name in ("quality", "layers", "roc")}
    if unchanged(s, PROBE, key, path) and all(table.exists() for table in tables.values()):
        fitted, quality = Probe.load(path), pl.read_parquet(tables["quality"])
    else:
        report = fit_probe(s.run / f"{ACTIVATIONS}.safetensors", **options)
        fitted, quality = report.probe, report.quality
        for name, table in tables.items():
            with replacing(table) as unfinished:
                getattr(report, name).write_parquet(unfinished)
        fitted.save(path)
        note(s, PROBE, key, None, start, like=record, options=s.given())
    shown = quality if s.get("as_json", False) else shown_quality(quality)
    return {"layer": fitted.layer, "threshold": round(float(fitted.threshold), 4), "table": shown, "wrote": str(path)}


def need_probe(session: Session, s: Settings) -> tuple["Probe", str]:
    """The probe, and the identity of its artefact; fitted if there is none."""
    from data.store.rundir import records
    from interventions.gates.probe import Probe

    path = s.run / "probe.safetensors"
    record, below = records(s.run).get(PROBE), records(s.run).get(ACTIVATIONS)
    if not path.exists() or record is None:
        reason = "there is none"
    elif below is not None and record["key"]["activations"] != below["id"]:
        reason = "the activations are newer"
    else:
        reason = contradiction(s, record)
    if reason:
        missing(s, "probe", "a probe", reason)
        options = {
            name: (record or {}).get("options", {}).get(name) for name in ("layer", "fit", "fpr", "threshold_split")
        }
        emit_progress(make_probe(session, s.for_missing(own_data=False).with_values(**options), own_data=False))
        record = records(s.run)[PROBE]
    assert record is not None
    return Probe.load(path), record["id"]


def shown_quality(quality: "pl.DataFrame") -> "pl.DataFrame":
    """The table for a terminal: rates at the threshold with their Wilson 95 % intervals."""
    import polars as pl

    def rate(name: str) -> pl.Expr:
        parts = [pl.col(part).round(3) for part in (name, f"{name}_low", f"{name}_high")]
        return pl.format("{} ({}–{})", *parts).alias(name)

    counts = ("split", "against", "n_harmful", "n_benign")
    return quality.select(*counts, pl.col("auc").round(3), pl.col("tpr_at_1_fpr").round(3), rate("tpr"), rate("fpr"))
