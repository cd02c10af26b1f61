"""Hold a run directory against the contract of its files, written down once more and apart from the code that makes them.

`fits_contract(folder)` in a test; or, from the project's root and in its environment, python -m tests.check_contract RUN_DIR,
which prints a line for each thing that does not fit, and what it read, and exits with 1 if anything did not fit.
Only files that are there are looked at; a column more than the contract's is allowed.
"""

import json
import re
import sys
from pathlib import Path

import polars as pl
from safetensors import safe_open

S, F, I, B = pl.String, pl.Float64, pl.Int64, pl.Boolean
TABLES = {
    "traces": {
        "dataset": S,
        "id": S,
        "prompt": S,
        "category": S,
        "layer": I,
        "strength": F,
        "strength_unit": S,
        "scope": S,
        "kl": F,
        "top_unsteered": pl.List,
        "top_steered": pl.List,
        "text_unsteered": S,
        "text_steered": S,
        "projections": pl.List,
    },
    "generations": {
        "dataset": S,
        "id": S,
        "category": S,
        "label": S,
        "prompt": S,
        "arm": S,
        "kind": S,
        "layer": I,
        "strength": F,
        "strength_unit": S,
        "scope": S,
        "operation": S,
        "vector": S,
        "gate": F,
        "control_token": S,
        "refusal_token": S,
        "refusal_probability": F,
        "response": S,
        "new_tokens": I,
        "finish": S,
        "model": S,
        "backend": S,
        "seed": I,
    },
    "scores": {
        "dataset": S,
        "id": S,
        "arm": S,
        "kind": S,
        "category": S,
        "label": S,
        "scorer": S,
        "verdict": S,
        "refused": B,
        "fitted": B,
    },
    "summary": {
        "dataset": S,
        "label": S,
        "arm": S,
        "kind": S,
        "scorer": S,
        "n": I,
        "n_failed": I,
        "n_overlap": I,
        "refused": I,
        "rate": F,
        "low": F,
        "high": F,
        "partial": I,
        "broken": I,
        "answered": I,
        "n_paired": I,
        "delta": F,
        "delta_low": F,
        "delta_high": F,
        "p": F,
        "p_holm": F,
    },
    "sweep": {
        "layer": I,
        "strength": F,
        "strength_unit": S,
        "arm": S,
        "label": S,
        "n": I,
        "refusal_probability": F,
        "refused": F,
        "broken": F,
        "chosen": B,
    },
    "diff": {
        "category": S,
        "layer": I,
        "text": S,
        "cosine": F,
        "low": F,
        "high": F,
        "ceiling": F,
        "floor_low": F,
        "floor_high": F,
        "n": I,
    },
    "effects": {"dataset": S, "arm": S, "measure": S, "value": F, "low": F, "high": F, "n": I},
    "capability": {"task": S, "arm": S, "metric": S, "value": F, "stderr": F, "n": I, "scored_logits_changed": B},
    "logit_lens": {"category": S, "layer": I, "token": S, "logit": F},
}
ALLOWED = {
    ("generations", "finish"): {"stop", "length"},
    ("scores", "verdict"): {"comply", "partial", "refuse", "broken"},
    ("diff", "text"): {"tagged", "untagged"},
}
WORDS = {("generations", "kind"), ("generations", "operation"), ("scores", "scorer")}  # lower-case words, hyphens
TENSORS = {
    "vectors": {
        "format",
        "model",
        "revision",
        "layers",
        "site",
        "method",
        "position",
        "counts",
        "residual_norms",
        "data",
    },
    "activations": {"model", "revision", "layers", "site", "position", "backend"},
}


def fits_contract(folder: Path) -> None:
    """What a run directory holds is what the contract says, and it holds something."""
    faults, read = held_against(folder)
    assert not faults, "\n".join(faults)
    assert read, f"nothing to read in {folder}"


def held_against(run: Path) -> tuple[list[str], list[str]]:
    """What does not fit, and what was read."""
    faults: list[str] = []
    read: list[str] = []
    for name, columns in TABLES.items():
        path = run / f"{name}.parquet"
        if not path.exists():
            continue
        frame = pl.read_parquet(path)
        read.append(f"{name} {frame.height} rows")
        for column, kind in columns.items():
            if column not in frame.columns:
                faults.append(f"{path.name}: no column {column}")
            elif not (isinstance(frame.schema[column], kind) if kind is pl.List else frame.schema[column] == kind):
                faults.append(f"{path.name}: {column} is {frame.schema[column]}, the contract says {kind}")
        for (table, column), values in ALLOWED.items():
            if table == name and column in frame.columns:
                odd = set(frame[column].drop_nulls().unique()) - values
                if odd:
                    faults.append(f"{path.name}: {column} holds {sorted(odd)}")
        for table, column in WORDS:
            if table == name and column in frame.columns:
                odd = [it for it in frame[column].drop_nulls().unique() if not re.fullmatch(r"[a-z][a-z0-9-]*", it)]
                if odd:
                    faults.append(f"{path.name}: {column} holds {sorted(odd)}")
        keys = {"generations": ["dataset", "id", "arm"], "scores": ["dataset", "id", "arm", "scorer"]}.get(name)
        if keys and set(keys) <= set(frame.columns) and frame.select(keys).is_duplicated().any():
            faults.append(f"{path.name}: {' + '.join(keys)} is not unique")
    for path in [run / "vectors.safetensors", *sorted((run / "activations").glob("*.safetensors"))]:
        if not path.exists():
            continue
        wanted = TENSORS["vectors" if path.stem == "vectors" else "activations"]
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
        read.append(f"{path.relative_to(run)} {shapes}")
        for key in sorted(wanted - metadata.keys()):
            faults.append(f"{path.name}: metadata has no {key}")
        layers = len(json.loads(metadata.get("layers", "[]")))
        for key, shape in shapes.items():
            if layers != shape[-2]:
                faults.append(f"{path.name}: {key} has {shape[-2]} layers, metadata names {layers}")
        if path.parent.name == "activations":
            rows = pl.read_parquet(path.with_suffix(".parquet")).height
            if shapes.get("activations", (0,))[0] != rows:
                faults.append(f"{path.name}: {shapes} beside {rows} rows of {path.stem}.parquet")
    if not (run / "run.json").exists():
        faults.append("no run.json")
    else:
        json.loads((run / "run.json").read_text())
    return faults, read


def main() -> int:
    """Look at the folder that the command line names."""
    faults, read = held_against(Path(sys.argv[1]))
    print("\n".join([*faults, "read: " + ("; ".join(read) or "nothing")]))
    return 1 if faults or not read else 0


if __name__ == "__main__":
    sys.exit(main())
