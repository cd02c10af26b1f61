"""What is fitted to activations or chosen from a table: vectors, probe, methods, the sweep's choice."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from commands.framework.artefacts import ACTIVATIONS, FITTED_METHODS, PROBE, PROJECTIONS, SWEEP, VECTORS
from commands.framework.settings import Record
from commands.verifying.outcome import (
    FIGURE,
    UNKNOWN,
    Case,
    Outcome,
    frames_apart,
    metadata_apart,
    settled,
    tensors_apart,
)
from data.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import torch

    from interventions.gates.carry_over import GateRows
    from interventions.gates.gate import FittedGate

ALIKE = 0.9  # correlation of two networks' scores out of fold that were trained on the same rows
FITTED = 1e-4  # of the length of what an optimiser found: how far other versions of it may lie


def vectors(case: Case) -> Iterator[Outcome]:
    """Steering vectors from activations, or from their sums."""
    from interventions.methods.fit import fit_vectors
    from interventions.methods.vectors import SteeringVectors

    key = case.records[VECTORS.name]["key"]
    path = activations_of(case, key)
    options = {name: key[name] for name in ("method", "tau", "top_k", "normalize", "split", "seed")}
    there, again = SteeringVectors.load(VECTORS.path(case.run)), fit_vectors(path, **options)
    told = tensors_apart(there.tensors, again.tensors) or metadata_apart(there.metadata, again.metadata)
    yield settled(VECTORS.name, "from activations", told, f"{len(again.tensors)} vectors at {len(again.layers)} layers")


def probe(case: Case) -> Iterator[Outcome]:
    """The probe, its threshold and its tables from activations, or from moments and projections of these."""
    from data.store.tables import read_parquet
    from interventions.gates.fit import fit_probe
    from interventions.gates.gate import FittedGate

    key = case.records[PROBE.name]["key"]
    options = {name: key[name] for name in ("fit", "fpr", "split", "threshold_split", "seed", "layer")}
    report, there = fit_probe(activations_of(case, key), **options), FittedGate.load(PROBE.path(case.run))
    told = gate_apart(there, report.probe)
    source = "from projections" if key.get("source") == PROJECTIONS.name else "from activations"
    yield settled(PROBE.name, source, told, f"weights, and the threshold {float(there.threshold):.4g}")
    keys = {"quality": ["split", "against"], "layers": ["layer"], "roc": ["split", "fpr", "tpr"]}
    for name, table in ((name, getattr(report, name)) for name in keys):
        told = frames_apart(read_parquet(case.run / f"probe_{name}.parquet"), table, keys[name], FITTED)
        yield settled(PROBE.name, f"probe_{name}", told, f"{table.height} rows")


def gate_apart(there: "FittedGate", again: "FittedGate") -> str:
    """How far two gates lie apart."""
    mine, other = _parts(there), _parts(again)
    return tensors_apart(mine, other, FITTED) or metadata_apart({k: v for k, v in there.metadata.items() if k != "format"},
                                                                {k: v for k, v in again.metadata.items() if k != "format"})  # fmt: skip


def is_trained(gate: "FittedGate") -> bool:
    """Whether it, or what it joins, is a network, which another machine trains otherwise."""
    return gate.network is not None or any(map(is_trained, gate.members.values()))


def _parts(gate: "FittedGate") -> "dict[str, torch.Tensor]":
    own = {"": gate} if not gate.members else gate.members
    found = {f"{name}.{part}".lstrip("."): tensor for name, one in own.items() for part, tensor in one.tensors.items()}
    return found | {"threshold": gate.threshold}


def other_network(
    name: str, there: "FittedGate", labelled: "GateRows", score: "np.ndarray", again: "np.ndarray", options: Record
) -> Iterator[Outcome]:
    """A network that was fitted again and is another one, as other machines train others: what its own scores say of it, and how much the
    other one's are like them."""
    import numpy as np

    from interventions.gates.fit_gate import threshold_of

    wanted, _ = threshold_of(score, labelled, options["keep_refusal"], options["fpr"])
    found = float(there.threshold)
    told = "" if abs(wanted - found) <= FIGURE else f"it is {found:.6g}, and its scores give {wanted:.6g}"
    yield settled(name, "its threshold", told, f"threshold {found:.4g}")
    alike = float(np.corrcoef(score, again)[0, 1])
    if alike < ALIKE:
        yield settled(name, "fitted again", f"scores correlate by {alike:.2f} with those of a network fitted again", "")
    else:
        yield Outcome(name, "fitted again", UNKNOWN,
                      f"another machine, or other batches, train another network; scores correlate by {alike:.2f}")  # fmt: skip


def methods(case: Case) -> Iterator[Outcome]:
    """What affine and the others fit; those that rest on what the model declines need it."""
    from commands.vectors import declined_rows
    from interventions.methods.edits.fit import NEEDS_DECLINED, fit_edit
    from interventions.methods.edits.fitted import FittedMethod

    for name, artefact in FITTED_METHODS.items():
        record = case.records.get(artefact.name)
        if record is None:
            continue
        if name in NEEDS_DECLINED and not case.share:
            yield Outcome(
                artefact.name, "from activations", UNKNOWN, "it rests on what the model declines: --share above 0"
            )
            continue
        made, path = case.as_made(record), activations_of(case, record["key"])
        declined = declined_rows(case.session, made, case.records[ACTIVATIONS.name]) if name in NEEDS_DECLINED else None
        again = fit_edit(path, name, split=record["key"]["split"], declined=declined)
        there = FittedMethod.load(artefact.path(case.run))
        told = tensors_apart(there.tensors, again.tensors, FITTED)
        yield settled(artefact.name, "from activations", told, f"{len(again.tensors)} tensors")


def sweep(case: Case) -> Iterator[Outcome]:
    """What settings were tried on, and the one that was chosen, by the rule, from the figures of the table."""
    from data import fingerprint
    from data.store.tables import read_parquet

    table = SWEEP.load(SWEEP.path(case.run))
    compared, tried = case.run / "compared.parquet", read_parquet(case.run / SWEEP.beside[0])
    key = case.records[SWEEP.name]["key"]
    told = "" if fingerprint(tried) == key["fingerprint"] else "not the prompts that its record tells of"
    yield settled(SWEEP.name, "its prompts", told, f"{tried.height} that settings were tried on")
    if "budgets" in key:
        yield from _compared(read_parquet(compared), table, key, tried.height)
        return
    winner = _winner(table, key["refusal_loss"])
    chosen = table.filter("chosen").select("arm", "layer", "strength").unique().rows()
    told = (
        ""
        if chosen == ([winner] if winner else [])
        else f"{chosen or 'none'} is marked, and the rule takes {winner or 'none'}"
    )
    yield settled(
        SWEEP.name,
        "its choice",
        told or _no_counts(table, ("refused",)),
        f"{winner or 'none'}, of {table.height // 2 - 1} settings",
    )


def _winner(table: "pl.DataFrame", refusal_loss: float) -> tuple[str, int | None, float] | None:
    import numpy as np
    import polars as pl

    from interventions.steering.arms import Arm
    from interventions.steering.sweep import Shares, choose

    answered = table.filter(pl.col("refused").is_not_null())
    sides = {label: answered.filter(pl.col("label") == label) for label in ("harmful", "benign")}
    rows = sides["harmful"].to_dicts()
    if not rows or rows[0]["kind"] != "baseline" or sides["benign"].height != len(rows):
        raise UserError("the table has no unsteered row to compare settings with")
    n = {label: side["n"].to_numpy() for label, side in sides.items()}
    broken = sum(side["broken"].to_numpy() * n[label] for label, side in sides.items()) / sum(n.values())
    shares = Shares(sides["harmful"]["refused"].to_numpy(), sides["benign"]["refused"].to_numpy(), np.asarray(broken))
    arms = [Arm(row["arm"], row["kind"], row["layer"] or 0, strength=row["strength"] or 0.0) for row in rows]
    at = choose(shares, arms, refusal_loss)
    return None if at is None else (rows[at]["arm"], rows[at]["layer"], rows[at]["strength"])


def _compared(table: "pl.DataFrame", sweep: "pl.DataFrame", key: Record, prompts: int) -> Iterator[Outcome]:
    """The comparison of methods: who keeps the promise, intervals, the choice, and the table that generate reads."""
    import polars as pl

    from data.intervals import wilson
    from interventions.steering.compared.compare import settings_of

    odd = []
    for row in table.to_dicts():
        for label in ("benign", "harmful"):
            low, high = wilson(round(row[label] * row[f"n_{label}"]), row[f"n_{label}"])
            if abs(low - row[f"{label}_low"]) > 1e-9 or abs(high - row[f"{label}_high"]) > 1e-9:
                odd.append(f"{row['arm']}: the interval of {label}")
        if row["promised"] and row["kept_low"] < key["share"]:
            odd.append(f"{row['arm']} is said to keep the promise, and keeps {row['kept_low']:.3f}")
        if row["promised"] and row["n_benign"] + row["n_harmful"] != prompts:
            odd.append(f"{row['arm']} is said to keep the promise, and did not answer every prompt")
    fine = table.filter(pl.col("promised") & ~pl.col("control")).sort(
        "benign", -pl.col("harmful"), pl.col("strength").abs()
    )
    best = fine.filter(pl.col("harmful_threshold").is_null()).head(1)
    chosen = table.filter("chosen")
    if chosen.height and (best.is_empty() or chosen["benign"][0] > best["benign"][0] + 1e-12):
        odd.append(f"{chosen['arm'][0]} is marked, and {best['arm'].to_list() or 'none'} does better")
    odd += [told] if (told := frames_apart(sweep, settings_of(table), ["arm", "label"])) else []
    odd += (
        [told]
        if (told := _no_counts(table.with_columns(n=pl.col("n_benign"), refused=pl.col("benign")), ("refused",)))
        else []
    )
    yield settled(
        SWEEP.name, "its choice", "; ".join(odd[:3]), f"{chosen['arm'].to_list() or 'none'}, of {table.height} points"
    )


def _no_counts(table: "pl.DataFrame", names: tuple[str, ...]) -> str:
    """A share that no count out of n gives."""
    for row in table.to_dicts():
        for name in names:
            if row[name] is not None and abs(row[name] * row["n"] - round(row[name] * row["n"])) > 1e-6:
                return f"{name} of {row['arm']}: {row[name]:.6g} is no share of {row['n']} prompts"
    return ""


def activations_of(case: Case, key: Record) -> Path:
    """The file that something was fitted to.

    Raises:
        UserError: It is gone.
    """
    path = case.run / f"{key.get('source', ACTIVATIONS.name)}.safetensors"
    if not path.exists():
        raise UserError(f"{path.name}, what it was fitted to, is gone")
    return path
