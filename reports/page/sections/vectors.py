"""The steering vectors: cosines, norms, largest dimensions, and the words they point at."""

import numpy as np
import polars as pl

from reports.page import charts
from reports.page import wording as say
from reports.page.blocks import Block, Chart, Prose, Row, Section, Table
from reports.page.run import Run, Vectors

LARGEST, WORDS = 8, 10
POSITIONS = {
    "last": "at the prompt's last token",
    "mean": "as the mean over the prompt's tokens",
    "suffix": "at the last token of each suffix",
}


def section(run: Run) -> Section | None:
    """Whatever the vectors and the logit lens hold."""
    blocks: list[Block] = []
    if run.vectors is not None:
        steered = run.steered_layer() or 0
        layer = min(run.vectors.layers, key=lambda at: abs(at - steered))
        blocks += [
            fitted(run.vectors),
            Row([cosines(run.vectors, layer), *norms(run.vectors)]),
            *numbers(run.vectors, layer),
        ]
    blocks += lens(run)
    return Section("vectors", "Steering vectors", blocks) if blocks else None


def fitted(vectors: Vectors) -> Prose:
    """What they were fitted on."""
    parts = ", ".join(f"{say.name(name)} {rows:,}" for name, rows in vectors.counts.items())
    benign = vectors.metadata.get("benign")
    against = f"; against {say.name(benign)} benign rows" if benign and benign != "0" else ""
    how = say.name(vectors.metadata.get("method", "unknown"))
    where = vectors.metadata.get("position", "?")
    return Prose(
        f"Method: {how}; read from the residual stream ({say.name(vectors.metadata.get('site', '?'))}) "
        f"{POSITIONS.get(where, f'at the position {say.name(where)}')}. Rows behind each: {parts}{against}."
    )


def rows_behind(vectors: Vectors) -> str:
    """How many rows of its category each vector rests on."""
    return f"n = {say.count_range(pl.Series(list(vectors.counts.values())))} rows of its category"


def cosines(vectors: Vectors, layer: int) -> Chart:
    """Between categories, at one layer."""
    names = list(vectors.tensors)
    unit = _unit(vectors, layer)
    matrix = unit @ unit.T
    short = list(say.distinct(names, 40).values())
    table = pl.DataFrame(
        [
            {"a": short[i], "b": short[j], "cosine": float(matrix[i, j])}
            for i in range(len(names))
            for j in range(len(names))
        ]
    )
    off = matrix[~np.eye(len(names), dtype=bool)]
    between = f" They range from {say.number(off.min(), 2)} to {say.number(off.max(), 2)}." if off.size else ""
    caption = (
        f"Cosine between the vectors of {say.counted(len(names), 'category', 'categories')} at layer {layer}, each "
        f"fitted on {rows_behind(vectors)}.{between}"
    )
    alone = len(vectors.layers) < 2  # no chart by layer beside it
    return Chart("cosines", charts.matrix(table, short), caption, "Cosines", narrow=alone)


def norms(vectors: Vectors) -> list[Chart]:
    """Length of each vector beside the residual stream's own, by layer; the table has it, where there is one layer."""
    if len(vectors.layers) < 2:
        return []
    called = say.distinct(vectors.tensors, 40)
    rows = [
        {
            "series": called[name],
            "layer": layer,
            "value": float(np.linalg.norm(tensor[at]) / vectors.residual_norms[at]),
            "n": vectors.counts[name],
        }
        for name, tensor in vectors.tensors.items()
        for at, layer in enumerate(vectors.layers)
        if vectors.residual_norms[at] > 0
    ]
    series = list(called.values())
    low, high = min(vectors.residual_norms), max(vectors.residual_norms)
    caption = (
        f"Length of each vector (fitted on {rows_behind(vectors)}) over the mean length of the residual stream at its "
        f"layer, which goes from {say.number(low)} to {say.number(high)}."
    )
    chart = charts.lines(_table(rows), series, y="length, in mean residual lengths", height=260)
    return [Chart("norms", chart, caption, "Norms by layer")]


def numbers(vectors: Vectors, layer: int) -> list[Block]:
    """Norm, concentration and largest dimensions at one layer."""
    at = vectors.layers.index(layer)
    norm = vectors.residual_norms[at]
    rows = []
    for name, tensor in vectors.tensors.items():
        v = tensor[at]
        top = np.argsort(-np.abs(v), kind="stable")[:LARGEST]
        energy = float((v[top] ** 2).sum() / max((v**2).sum(), 1e-300))
        rows.append({"category": name, "rows": vectors.counts[name], "norm": float(np.linalg.norm(v)), "of_residual": float(np.linalg.norm(v)) / norm if norm else None, "top_share": energy,
                     "dimensions": [int(d) for d in top], "values": [float(v[d]) for d in top]})  # fmt: skip
    frame = pl.DataFrame(rows)

    def largest(dimensions: list[int], values: list[float]) -> str:
        return ", ".join(f"{d}\u00a0({say.number(x, 2)})" for d, x in zip(dimensions, values, strict=True))

    shown = say.table_of(
        frame,
        ("category", say.name, "category"),
        ("rows", say.number, "rows"),
        ("norm", say.number, "norm"),
        ("over the residual norm", lambda value: say.fixed(value, 3), "of_residual"),
        (f"share in its {LARGEST} largest", say.percent, "top_share"),
        ("largest dimensions (value)", largest, "dimensions", "values"),
    )
    unit = _unit(vectors, layer)
    matrix = unit @ unit.T
    pairs = pl.DataFrame(
        {"category": list(vectors.tensors)} | {f"cos {name}": matrix[:, i] for i, name in enumerate(vectors.tensors)}
    )
    caption = f"At layer {layer}: norms (mean residual norm {say.number(norm)}) and largest dimensions (shares of the squared norm)"
    text = ("largest dimensions (value)",)
    return [
        Table("vector-dimensions", frame, shown, caption, text),
        Table("vector-cosines", pairs, _rounded(pairs), f"Cosines at layer {layer}", folded=True),
    ]


def lens(run: Run) -> list[Block]:
    """The words that each vector raises most, read through the output matrix."""
    table = run.table("logit_lens")
    if table is None:
        return []
    layers = sorted(table["layer"].drop_nulls().unique().to_list())
    wanted = run.steered_layer()
    layer = min(layers, key=lambda at: abs(at - (wanted if wanted is not None else layers[-1])))
    best = (
        table.filter(pl.col("layer") == layer)
        .sort("logit", descending=True, nulls_last=True)
        .group_by("category", maintain_order=True)
        .head(WORDS)
        .sort("category", maintain_order=True)
    )
    rows = [
        {"category": say.name(name[0]), "tokens, largest first (logit)": ",  ".join(
            f"{say.token(token)}\u00a0({say.fixed(logit, 1)})" for token, logit in part.select("token", "logit").iter_rows())}
        for name, part in best.group_by("category", maintain_order=True)
    ]  # fmt: skip
    caption = (
        f"Logit lens at layer {layer}: what each vector, read through the final norm and the output matrix, raises most"
    )
    return [Table("logit-lens", table, pl.DataFrame(rows), caption, ("tokens, largest first (logit)",))]


def _unit(vectors: Vectors, layer: int) -> np.ndarray:
    stacked = np.stack([tensor[vectors.layers.index(layer)] for tensor in vectors.tensors.values()])
    length = np.linalg.norm(stacked, axis=1, keepdims=True)
    return stacked / np.where(length == 0, 1, length)


def _table(rows: list[dict[str, object]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"series": pl.String, "layer": pl.Int64, "value": pl.Float64, "n": pl.Int64})


def _rounded(frame: pl.DataFrame) -> pl.DataFrame:
    return pl.DataFrame(
        {
            say.name(name): [say.number(v, 2) if isinstance(v, float) else say.name(v) for v in frame[name]]
            for name in frame.columns
        }
    )
