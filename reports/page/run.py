"""What a run directory holds, read for a report: tables in the contract's types, vectors, records.

A file that is missing is no fault. One that is there and can't be read is named on the page, and the rest is shown.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from safetensors import SafetensorError, safe_open

from data.contract import nearest_layer
from data.errors import UserError
from data.store.activations import Activations
from data.store.digests import altered, check_files, name_of
from data.store.rundir import Record, read_records
from data.store.tables import GATE_QUALITY, read_parquet, required
from reports.page.names import Arm, named

# Tables that a report reads.
READ = ("traces", "generations", "scores", "summary", "lengths", "sweep", "compared", "diff", "effects", "capability", "logit_lens", "probe_roc",
        "probe_layers", "probe_quality", "category", "category_test", "rubric", "judges", "judges_classes", "judges_rates",
        "judges_disagreements", "parity", "parity_layers")  # fmt: skip
GATES = "gate_quality"  # every `gates/NAME_quality.parquet`, with a column `gate`


@dataclass(frozen=True)
class Vectors:
    """Steering vectors as a report needs them: float64 (layers, d_model) a category, in the file's own order."""

    tensors: dict[str, np.ndarray]
    layers: list[int]
    counts: dict[str, int]
    residual_norms: list[float]
    metadata: dict[str, str]


@dataclass(frozen=True)
class Run:
    """A run directory that was read.

    Attributes:
        folder: Where it is.
        records: `run.json`, artefact by artefact.
        tables: Name -> table; empty tables are left out.
        vectors: Steering vectors, if there are any.
        faults: Files that are there and could not be read, a line each.
        threshold: The probe's, if there is one.
    """

    folder: Path
    records: dict[str, Record]
    tables: dict[str, pl.DataFrame] = field(default_factory=dict)
    vectors: Vectors | None = None
    faults: list[str] = field(default_factory=list)
    threshold: float | None = None

    def table(self, name: str) -> pl.DataFrame | None:
        """A table of the contract, or None where there is none or it is empty."""
        return self.tables.get(name)

    def arms(self) -> list[str]:
        """Arms in the order in which they were asked for, as far as the tables still know it."""
        for name in ("generations", "scores", "summary"):
            table = self.table(name)
            if table is not None:
                return table["arm"].drop_nulls().unique(maintain_order=True).to_list()
        return []

    def named(self) -> dict[str, Arm]:
        """Every arm of any table as people read it; the same arm has one name on the whole page."""
        found = self.arms()
        for name in ("scores", "summary", "effects", "capability"):
            table = self.table(name)
            found += table["arm"].drop_nulls().unique(maintain_order=True).to_list() if table is not None else []
        return named(found)

    def first(self, *fields: str) -> str:
        """The first value that any record holds for one of these fields, as text; empty where none does."""
        for name in fields:
            for entry in self.records.values():
                if entry.get(name) not in (None, "", []):
                    return str(entry[name])
        return ""

    def steered_layer(self) -> int | None:
        """The layer that most arms edit; else of those with vectors the one nearest to the model's default; else None."""
        generations = self.table("generations")
        if generations is not None:
            layers = generations["layer"].drop_nulls()
            if layers.len():
                return int(layers.mode().sort()[0])
        if self.vectors is None:
            return None
        noted = self.records.get("vectors", {}).get("n_layers")
        n_layers = noted if isinstance(noted, int) and noted > 0 else max(self.vectors.layers) + 1
        return nearest_layer(self.vectors.layers, n_layers)


def open_run(folder: Path) -> Run:
    """Read whatever a run directory holds.

    Raises:
        UserError: `run.json` is damaged.
    """
    faults: list[str] = []
    tables, known = {}, _records(folder)
    for name in READ:
        path = folder / f"{name}.parquet"
        if path.exists() and _is_as_recorded(path, folder, known, faults):
            try:
                table = read_table(path)
            except (pl.exceptions.PolarsError, OSError, ValueError) as error:
                faults.append(f"{path.name}: {_first_line(error)}")
            else:
                tables |= {} if table.is_empty() else {name: table}
    gates = gate_tables(folder, known, faults)
    tables |= {} if gates.is_empty() else {GATES: gates}
    vectors = None
    path = folder / "vectors.safetensors"
    if path.exists() and _is_as_recorded(path, folder, known, faults):
        try:
            vectors = read_vectors(path)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            faults.append(f"vectors.safetensors: {_first_line(error)}")
    return Run(folder, known, tables, vectors, faults, _threshold(folder, known, faults))


def _threshold(folder: Path, known: dict[str, Record], faults: list[str]) -> float | None:
    """The threshold in the probe's file; None without one that can be read."""
    path = folder / "probe.safetensors"
    if not path.exists() or not _is_as_recorded(path, folder, known, faults):
        return None
    try:
        with safe_open(path, "np") as file:
            return float(file.get_tensor("threshold").ravel()[0])
    except (SafetensorError, OSError, IndexError, ValueError) as error:
        faults.append(f"probe.safetensors: {_first_line(error)}")
        return None


def _is_as_recorded(path: Path, folder: Path, known: dict[str, Record], faults: list[str]) -> bool:
    """Whether a file is as the record says that has it; else that is a fault. Files that no record has are as they are."""
    name = name_of(path, folder)
    odd = next((odd for record in known.values() if (odd := altered(folder, record, name)) is not None), None)
    if odd is not None:
        faults.append(odd.words)
    return odd is None


def gate_tables(folder: Path, known: dict[str, Record], faults: list[str]) -> pl.DataFrame:
    """How every gate of the run carries over, `words` last; what can't be read becomes a fault."""
    found = []
    for path in sorted(
        (folder / "gates").glob("*_quality.parquet"), key=lambda path: (path.name.startswith("words"), path.name)
    ):
        if not _is_as_recorded(path, folder, known, faults):
            continue
        try:
            frame = read_parquet(path)
            found.append(frame.select(pl.lit(path.name.removesuffix("_quality.parquet")).alias("gate"),
                                      *(pl.col(name).cast(kind) for name, kind in GATE_QUALITY.items())))  # fmt: skip
        except (pl.exceptions.PolarsError, OSError, ValueError) as error:
            faults.append(f"gates/{path.name}: {_first_line(error)}")
    return pl.concat(found) if found else pl.DataFrame(schema={"gate": pl.String, **GATE_QUALITY})


def _records(folder: Path) -> dict[str, Record]:
    """Records that are objects; half of a surrogate pair, which JSON may hold and no file can, becomes a mark."""
    kept = {name: entry for name, entry in read_records(folder).items() if isinstance(entry, dict)}
    return json.loads(json.dumps(kept, ensure_ascii=False).encode("utf-8", "replace"))


def read_table(path: Path) -> pl.DataFrame:
    """A parquet table with the contract's columns in the contract's types; others are kept as they are.

    Raises:
        ValueError: A column is missing.
        PolarsError: The file is damaged, or a column can't be of its type.
    """
    frame = read_parquet(path)
    wanted = required(path.stem)
    missing = [name for name in wanted if name not in frame.columns]
    if missing:
        raise ValueError(f"no column {missing[0]}")
    typed = frame.with_columns([pl.col(name).cast(kind) for name, kind in wanted.items() if not kind.is_nested()])
    # What is no number is nothing: it must neither be drawn nor compared.
    floats = [pl.col(name) for name, kind in wanted.items() if kind == pl.Float64]
    finite = [pl.when(column.is_finite()).then(column) for column in floats]
    return typed.with_columns(finite)


def read_vectors(path: Path) -> Vectors:
    """Steering vectors and what their metadata says.

    Raises:
        ValueError: Tensors and metadata don't fit each other.
    """
    with safe_open(path, "np") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name).astype(np.float64) for name in file.keys()}  # noqa: SIM118  # no mapping
    layers = [int(layer) for layer in json.loads(metadata["layers"])]
    counts = {str(name): int(rows) for name, rows in json.loads(metadata["counts"]).items()}
    norms = [float(norm) for norm in json.loads(metadata["residual_norms"])]
    shapes = {tensor.shape for tensor in tensors.values()}
    if len(shapes) != 1 or set(counts) != set(tensors) or len(next(iter(shapes))) != 2:
        raise ValueError("its tensors are not those that its metadata names")
    if not len(layers) == len(norms) == next(iter(shapes))[0]:
        raise ValueError(f"{len(layers)} layers in its metadata, {next(iter(shapes))[0]} in its tensors")
    return Vectors({name: tensors[name] for name in counts}, layers, counts, norms, metadata)


def read_activations(folder: Path, layer: int, most: int, seed: int = 0) -> tuple[np.ndarray, pl.DataFrame] | None:
    """Activations of at most `most` rows at one layer, float64 (rows, d_model), and their rows; None if there are none.

    Raises:
        UserError: They are there and damaged.
    """
    path = folder / "activations" / "prompts.safetensors"
    if not path.exists() and not path.with_suffix(".parquet").exists():
        return None
    check_files(folder, read_records(folder).get("activations/prompts"))
    file = Activations.open(path)
    lacking = [name for name in ("category", "label") if file.rows.schema.get(name) != pl.String]
    if lacking:
        raise UserError(f"{path.with_suffix('.parquet')}: no column {lacking[0]} of text; run extract again")
    if layer not in file.layers:
        return None
    chosen = np.arange(file.rows.height)
    if file.rows.height > most:
        chosen = np.sort(np.random.default_rng(seed).choice(file.rows.height, most, replace=False))
    values = file.layer(layer, chosen).astype(np.float64)
    if not np.isfinite(values).all():
        raise UserError(f"{path}: values at layer {layer} are no numbers; run extract again")
    return values, file.rows[chosen]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
