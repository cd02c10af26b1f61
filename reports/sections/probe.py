"""The harmful/benign probe: its ROC on training and validation rows, and the threshold that was taken."""

import numpy as np
import polars as pl
from safetensors import SafetensorError, safe_open

from reports import charts
from reports import wording as say
from reports.artefacts import Run
from reports.blocks import Chart, Section, Table


def section(run: Run) -> Section | None:
    """The curves, or None where there is no table of them."""
    table = run.table("probe_roc")
    if table is None:
        return None
    splits = sorted(table["split"].drop_nulls().unique().to_list(), key=lambda split: split == "train")
    threshold = chosen_threshold(run)
    areas = {split: area(table.filter(pl.col("split") == split)) for split in splits}
    names = {split: f"{say.name(split)} (AUC {areas[split]:.3f})" for split in splits}
    curves = table.drop_nulls(["fpr", "tpr", "split"]).sort("fpr", "tpr", maintain_order=True)
    curves = curves.with_columns(
        pl.col("split").replace_strict(names).alias("series"), pl.int_range(pl.len()).alias("order")
    )
    mark = point(table.filter(pl.col("split") == splits[0]), threshold) if splits and threshold is not None else None
    said = (
        f" At the threshold {threshold:.3f} (dot): {say.percent(mark['tpr'][0])} of harmful and "
        f"{say.percent(mark['fpr'][0])} of benign {say.name(splits[0])} rows are called harmful."
        if mark is not None and mark.height and threshold is not None
        else ""
    )
    marks = mark if mark is not None else table.head(0).select("fpr", "tpr", "threshold")
    caption = (
        f"Receiver operating characteristic: {say.listed(names.values())}.{said} A curve on training rows flatters."
    )
    shown = pl.DataFrame({"split": list(names), "area under the curve": [f"{value:.4f}" for value in areas.values()]})
    chart = charts.roc(curves.select("fpr", "tpr", "threshold", "series", "order"), marks, list(names.values()))
    return Section(
        "probe",
        "Probe",
        [Chart("probe-roc", chart, caption, narrow=True), Table("probe-roc", table, shown, "Areas", folded=True)],
    )


def area(curve: pl.DataFrame) -> float:
    """Area under a curve, by trapezoids."""
    ordered = curve.drop_nulls(["fpr", "tpr"]).sort("fpr", "tpr")
    return float(np.trapezoid(ordered["tpr"].to_numpy(), ordered["fpr"].to_numpy()))


def point(curve: pl.DataFrame, threshold: float) -> pl.DataFrame:
    """The curve's point at a threshold: the last whose own threshold is not below it."""
    rows = curve.drop_nulls(["fpr", "tpr", "threshold"]).filter(pl.col("threshold") >= threshold - 1e-7)
    return rows.sort("threshold").head(1).select("fpr", "tpr", "threshold")


def chosen_threshold(run: Run) -> float | None:
    """The threshold in the probe's file."""
    try:
        with safe_open(run.folder / "probe.safetensors", "np") as file:
            return float(file.get_tensor("threshold").ravel()[0])
    except (SafetensorError, OSError, IndexError, ValueError):
        return None
