"""`probe`: activations to a gate."""

from typing import TYPE_CHECKING

from commands.framework.activations import default_layer, need_to_fit_probe, say_rows
from commands.framework.app import Session, command
from commands.framework.artefacts import CARRIED, PROBE, PROJECTIONS, VECTORS, activations_artefact, gate_artefact
from commands.framework.options import BENIGN, FIT, FPR, GATE, KEEP_REFUSAL, PROBE_LAYER, THRESHOLD_SPLIT, TRAIN
from commands.framework.output import Summary, warn
from commands.framework.prompts import fingerprint_of, held_out, load_prompts, with_known_splits
from commands.framework.records import identity, model_key, note, unchanged
from commands.framework.seen import asked_themes
from commands.framework.settings import Record, Settings
from data.contract import GATE_DATA, GATE_KEPT, TUNED_MODEL, UNQUANTISED
from data.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import polars as pl

    from data.store.activations import Activations
    from interventions.gates.carry_over import GateRows
    from interventions.gates.features import Features
    from interventions.gates.gate import FittedGate
    from interventions.model.model import Model
    from interventions.steering.first_token import FirstPositions


@command(GATE, KEEP_REFUSAL, PROBE_LAYER, FIT, FPR, THRESHOLD_SPLIT, BENIGN, TRAIN)
def probe(session: Session, s: Settings) -> Summary:
    """Fit a gate that tells harmful prompts from benign ones, so that each is steered as it should be.

    Every --gate but probe is fitted on --data, rows of the split test left out, and arms name it:
    `generate --arm gated:gate=ridge`. Without --data that is embedded:traffic, embedded:contrasts and embedded:kinds, with a
    --keep-refusal of 0.98; the embedded model's network on these comes with this tool. Several are joined by +, the mean of their calibrated
    scores, or by -and- and -or-: `--gate ridge+control`, `--arm gated:gate=ridge+control`.
    On a server and without activations in the run directory, --fit mass-mean takes means, variances and projections from there.
    """
    if s.get("gate") != PROBE.name:
        return fit_other_gate(session, s)
    return fit_probe_of_activations(session, s)


def fit_probe_of_activations(session: Session, s: Settings) -> Summary:
    """The linear probe on one layer of this run's activations."""
    from data.store.rundir import now
    from data.store.tables import read_parquet, write_table
    from interventions.gates.fit import fit_probe

    if s.get("keep_refusal") is not None:
        raise UserError("--keep-refusal is for the other gates, which are fitted out of fold; a probe takes --fpr")
    start = now()
    activations, record = need_to_fit_probe(session, s)
    layer = default_layer(record) if s.get("layer") is None else s.get("layer")
    options = {name: s.get(name) for name in ("fit", "fpr", "split", "threshold_split", "seed")}
    options["layer"] = None if layer == "auto" else layer
    source = {"source": PROJECTIONS.name} if activations == PROJECTIONS.path(s.run) else {}
    key = {"activations": record["id"], **source, **options}
    path, carry_path = PROBE.path(s.run), s.run / PROBE.beside[-1]
    tables = {name: s.run / f"probe_{name}.parquet" for name in ("quality", "layers", "roc")}
    if unchanged(s, PROBE, key):
        fitted, quality, carried = PROBE.read(s.run), read_parquet(tables["quality"]), read_parquet(carry_path)
    else:
        report = fit_probe(activations, **options)
        fitted, quality = report.probe, report.quality
        carried = probe_carried_over(session, s, activations, record, fitted)
        for name, table in tables.items():
            write_table(table, getattr(report, name))
        carry_path.parent.mkdir(exist_ok=True)
        write_table(carry_path, carried)
        fitted.save(path)
        note(s, PROBE, key, record, start)
    told = {"table": quality} if s.get("as_json") else {"table": shown_quality(quality)}
    carried_over = {} if carried.is_empty() else {"other themes": told_over(carried)}
    return {
        "layer": fitted.layer,
        "threshold": round(float(fitted.threshold), 4),
        **carried_over,
        **told,
        "wrote": str(path),
    }


def probe_carried_over(
    session: Session, s: Settings, path: "Path", record: Record, fitted: "FittedGate", carried: "Path | None" = None
) -> "pl.DataFrame":
    """How a probe carries over to other themes and data sets of its activations, rows of the split test left out.

    A probe of projections takes others, of fits without these themes and sets: those in the file `carried`, or such as are read now.
    """
    import numpy as np
    import polars as pl

    from data import PROMPT_COLUMNS
    from data.store.projections import AtLayer, Projections
    from data.store.tables import GATE_QUALITY
    from interventions.gates.carry_over import carried_over
    from interventions.gates.features import Features
    from interventions.gates.fit import PROJECTED, fit_again, read_of

    file = read_of(path)
    rows = known_rows(file.rows.with_row_index("place"))
    model, prompts = session.model(s, record), rows.select(PROMPT_COLUMNS)
    labelled, _ = gate_rows(session, s, model, prompts)
    texts, position = prompts["prompt"].to_list(), file.metadata["position"]
    try:
        if isinstance(file, Projections):
            other = Projections.open(carried or read_carried(s, model, labelled, fitted, record))
            features = Features(texts, model.n_layers, {PROJECTED: AtLayer(other, fitted.layer)})
            return carried_over(labelled, features, fit_again(fitted, other))
        places = rows["place"].to_numpy().astype(np.int64)
        return carried_over(labelled, Features(texts, model.n_layers, {position: file}, places), fit_again(fitted))
    except UserError as error:
        warn(f"how the probe carries over is not known: {error}")
        return pl.DataFrame(schema=GATE_QUALITY)


def read_carried(s: Settings, model: "Model", rows: "GateRows", fitted: "FittedGate", record: Record) -> "Path":
    """Projections at a probe's layer on its fits without some themes, and without each data set; read before or now."""
    import hashlib

    import numpy as np

    from data.store.rundir import now
    from interventions.fitting.moments import mass_mean, together
    from interventions.gates.carry_over import trained_on
    from interventions.gates.fit import among
    from interventions.reading.projections import extract_projections

    start, height = now(), rows.frame.height
    fits = among(trained_on(rows), height, np.arange(height))
    key = model_key(model) | {
        "fingerprint": fingerprint_of(rows.frame),
        "layers": [fitted.layer],
        "position": fitted.metadata["position"],
        "suffixes": [],
        "fits": hashlib.sha256(fits.members.tobytes()).hexdigest(),
    }
    path = CARRIED.path(s.run)
    if not unchanged(s, CARRIED, key):
        extract_projections(model, rows.frame, path.parent, lambda _: fits, together, mass_mean, name=path.stem,
                            layers=key["layers"], position=key["position"], batch_tokens=s.get("batch_tokens"))  # fmt: skip
        note(s, CARRIED, key, model, start, data=record.get("data"))
    return path


def fit_other_gate(session: Session, s: Settings) -> Summary:
    """A gate on prompts of its own, which may be other ones than the vectors'."""
    import polars as pl

    from data.store.rundir import now, records
    from data.store.shipped import take
    from data.store.tables import read_parquet, write_table
    from interventions.gates.fit_gate import fit_gate, kind_of

    start, artefact = now(), gate_artefact(s.get("gate"))
    model = session.model(s, records(s.run).get(VECTORS.name))
    named, keep = s, s.get("keep_refusal")
    if s.given("data") is None:
        named, keep = s.with_values(data=GATE_DATA), GATE_KEPT if keep is None and s.get("fpr") is None else keep
    prompts = known_rows(held_out(named, with_known_splits(s, load_prompts(named, limited=True))))
    key = model_key(model) | {"fingerprint": fingerprint_of(prompts), "gate": s.get("gate"), "seed": s.get("seed"),
                              "keep_refusal": keep, "fpr": s.get("fpr")}  # fmt: skip
    quality_path, prompts_path = (s.run / name for name in artefact.beside)
    if unchanged(s, artefact, key):
        gate, quality = artefact.read(s.run), read_parquet(quality_path)
    elif take(artefact.name, identity(key), s.run):
        warn(f"{s.get('gate')} comes with this tool, fitted to these very prompts: nothing is computed")
        gate, quality = artefact.load(artefact.path(s.run)), read_parquet(quality_path)
        note(s, artefact, key, model, start, data=named.get("data"))
    else:
        journal = artefact.path(s.run).with_name(f".{s.get('gate')}-first.journal")
        rows, first = gate_rows(session, named, model, prompts, journal)
        features = gate_features(named, model, prompts, kind_of(s.get("gate")).reads(model), first)
        report = fit_gate(s.get("gate"), model, rows, features, keep=keep, fpr=s.get("fpr"))
        gate, quality = report.gate, report.quality
        write_table(quality_path, quality)
        write_table(prompts_path, prompts.with_columns(score=pl.Series(report.score)))
        gate.save(artefact.path(s.run))
        note(s, artefact, key, model, start, data=named.get("data"))
        journal.unlink(missing_ok=True)
    kept = (
        {"keeps": f"{float(gate.metadata['kept_low']):.3f} of the refusals or more"}
        if "kept_low" in gate.metadata
        else {}
    )
    return {"gate": s.get("gate"), "rows": prompts.height, "threshold": round(float(gate.threshold), 4), **kept,
            "table": quality, "wrote": str(artefact.path(s.run))}  # fmt: skip


def known_rows(rows: "pl.DataFrame") -> "pl.DataFrame":
    """Labelled rows that are not the split test's."""
    import polars as pl

    return rows.filter(pl.col("label").is_not_null() & (pl.col("split").is_null() | (pl.col("split") != "test")))


def gate_rows(
    session: Session, s: Settings, model: "Model", prompts: "pl.DataFrame", journal: "Path | None" = None
) -> "tuple[GateRows, FirstPositions | None]":
    """The prompts with what a gate's fit has to know of them, and how their answers begin if the model has refusal tokens."""
    import numpy as np
    import polars as pl

    from data.prompts.sample import TAUGHT
    from interventions.gates.carry_over import GateRows
    from interventions.model.control_tokens import refusal_tokens

    themes, _ = asked_themes(s, prompts.select("dataset", "id", "prompt"))
    alone = pl.format("{} {}", "dataset", "id")
    names = set(refusal_tokens(model).names)
    first = session.first_positions(model, prompts, journal) if names else None
    taught = prompts["dataset"].is_in(TAUGHT).to_numpy() & (model.name == TUNED_MODEL)
    declined = None if first is None else np.array([token in names for token in first.most_probable])
    groups = themes.select(pl.col("theme").fill_null(alone)).to_series().to_list()
    return GateRows(prompts, groups, declined, taught), first


def gate_features(
    s: Settings,
    model: "Model",
    prompts: "pl.DataFrame",
    reads: "Sequence[tuple[int, str]]",
    first: "FirstPositions | None",
) -> "Features":
    """What a gate reads of prompts: of the residual stream in one pass, into a file that other gates then use too."""
    from data.store.activations import Position
    from interventions.gates.features import Features
    from interventions.reading.extract import JOIN

    layers = {position: sorted(layer for layer, where in reads if where == position) for _, position in reads}
    files = {}
    if layers:
        file = read_positions(s, model, prompts, list(layers), sorted({layer for layer, _ in reads}))
        there = file.metadata["position"].split(JOIN)
        files = {name: Position(file, there.index(name), len(there), own) for name, own in layers.items()}
    names, shares = ([], None) if first is None else (first.names, first.log_probabilities)
    return Features(prompts["prompt"].to_list(), model.n_layers, files, tokens=names, log_probabilities=shares,
                    categories=prompts["category"].to_list())  # fmt: skip


def read_positions(
    s: Settings, model: "Model", prompts: "pl.DataFrame", positions: "Sequence[str]", layers: "Sequence[int]"
) -> "Activations":
    """Activations of prompts at some layers and positions, read before or now."""
    from data.store.activations import Activations
    from data.store.rundir import now
    from interventions.reading.extract import JOIN, extract

    start, artefact = now(), activations_artefact("gate")
    path = artefact.path(s.run)
    if path.exists():
        artefact.check(s.run)
        file = Activations.open(path)
        there = file.metadata["position"].split(JOIN)
        same = {"model": model.name, "revision": model.revision, "dtype": model.dtype, "template": model.template_hash}
        if (set(layers) <= set(file.layers) and set(positions) <= set(there) and same.items() <= file.metadata.items()
                and file.metadata.get("quantize", UNQUANTISED) == model.quantized and file.rows[:: len(there)].select(prompts.columns).equals(prompts)):  # fmt: skip
            return file
    position = JOIN.join(positions)
    say_rows(s, "a gate is fitted to them, and its threshold chosen by their scores")
    extract(
        model,
        prompts,
        path.parent,
        layers=layers,
        position=position,
        name=path.stem,
        batch_tokens=s.get("batch_tokens"),
    )
    key = model_key(model) | {"fingerprint": fingerprint_of(prompts), "layers": list(layers), "position": position}
    note(s, artefact, key, model, start, data=s.get("data"))
    return Activations.open(path)


def told_over(carried: "pl.DataFrame") -> str:
    """How a gate does on other themes, in a line."""
    row = carried.row(0, named=True)
    parts = [f"AUC {row['auc']:.3f}"]
    parts += [f"{row['auc_declined']:.3f} among declined"] if row["auc_declined"] is not None else []
    if row["over_refusal_kept"] is not None:
        parts.append(f"over-refusal {row['over_refusal']:.1%} to {row['over_refusal_kept']:.1%} at unchanged refusal")
    return ", ".join(parts)


def shown_quality(quality: "pl.DataFrame") -> "pl.DataFrame":
    """The table for a terminal: rates at the threshold with their Wilson 95 % intervals."""
    import polars as pl

    def rate(name: str) -> pl.Expr:
        parts = [pl.col(part).round(3) for part in (name, f"{name}_low", f"{name}_high")]
        return pl.format("{} ({}–{})", *parts).alias(name)

    counts = ("split", "against", "n_harmful", "n_benign")
    return quality.select(*counts, pl.col("auc").round(3), pl.col("tpr_at_1_fpr").round(3), rate("tpr"), rate("fpr"))
