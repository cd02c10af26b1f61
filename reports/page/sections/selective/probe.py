"""The harmful/benign probe: its ROC on rows it was not fitted on, the threshold that was taken, and other layers."""

import numpy as np
import polars as pl

from reports.page import charts
from reports.page import wording as say
from reports.page.blocks import Block, Chart, Row, Section, Table
from reports.page.run import Run

AGAINST = {"all": "all benign", "near-miss": "benign near-misses"}


def section(run: Run) -> Section | None:
    """The curves, the layers and the rates at the threshold, or None where there are no curves."""
    table = run.table("probe_roc")
    if table is None:
        return None
    panels = [curves(run, table), *layers(run)]
    blocks: list[Block] = [Row(panels), *quality(run)]
    areas = table.group_by("split", maintain_order=True)
    shown = pl.DataFrame(
        {"split": [say.name(split) for (split,), _ in areas], "area": [say.fixed(area(part), 4) for _, part in areas]}
    )
    blocks.append(Table("probe-roc", table, shown, "Areas under the curves", folded=True))
    return Section("probe", "Probe of harmful and benign prompts", blocks)


def curves(run: Run, table: pl.DataFrame) -> Chart:
    """The receiver operating characteristic, a curve a split; rows that the probe was fitted on come last."""
    there = table["split"].drop_nulls().unique().to_list()
    splits = sorted(there, key=lambda split: (split == "train", split == "test"))
    threshold, told_of = run.threshold, sizes(run)
    names = {
        split: f"{say.name(split)} (AUC {say.fixed(area(table.filter(pl.col('split') == split)), 3)})"
        for split in splits
    }
    drawn = table.drop_nulls(["fpr", "tpr", "split"]).sort("fpr", "tpr", maintain_order=True)
    drawn = drawn.with_columns(
        pl.col("split").replace_strict(names).alias("series"), pl.int_range(pl.len()).alias("order")
    )
    chooser = next((split for split in splits if split != "test"), splits[0] if splits else None)
    mark = point(table.filter(pl.col("split") == chooser), threshold) if threshold is not None else table.head(0)
    said = (
        f" At the threshold {say.fixed(threshold, 3)} (ring): {say.percent(mark['tpr'][0])} of harmful and "
        f"{say.percent(mark['fpr'][0])} of benign {say.name(chooser)} prompts are called harmful."
        if mark.height
        else ""
    )
    caption = "; ".join(names[split] + told_of.get(split, "") for split in splits) + "." + said
    caption += " A curve on training rows flatters." if "train" in splits else ""
    chart = charts.roc(drawn.select("fpr", "tpr", "threshold", "series", "order"),
                       mark.select("fpr", "tpr", "threshold"), list(names.values()))  # fmt: skip
    return Chart("probe-roc", chart, caption, "Receiver operating characteristic")


def layers(run: Run) -> list[Chart]:
    """How well a probe at each layer tells the prompts apart."""
    table = run.table("probe_layers")
    if table is None or table.height < 2:
        return []
    kinds = {"auc": "AUC", "tpr_at_1_fpr": "harmful found at 1 % false alarms"}
    drawn = table.unpivot(list(kinds), index="layer", variable_name="series").drop_nulls()
    drawn = drawn.with_columns(pl.col("series").replace_strict(kinds))
    chosen = table.filter(pl.col("chosen").fill_null(False))["layer"].to_list()
    took = f" The probe reads layer {say.listed(chosen)}." if chosen else ""
    n = next(iter(sizes(run).values()), "")
    caption = f"Probes of every layer, fitted alike, on the rows that the threshold was chosen on{n}.{took}"
    chart = charts.lines(drawn, list(kinds.values()), y="AUC, or share found", zero=False, height=300)
    return [Chart("probe-layers", chart, caption, "Other layers")]


def quality(run: Run) -> list[Table]:
    """Rates at the threshold, with intervals, against all benign prompts and against near-misses."""
    table = run.table("probe_quality")
    if table is None:
        return []
    shown = say.table_of(
        table,
        ("rows", say.name, "split"),
        ("against", lambda against: AGAINST.get(against, say.name(against)), "against"),
        ("n harmful", say.number, "n_harmful"),
        ("n benign", say.number, "n_benign"),
        ("AUC", lambda auc: say.fixed(auc, 3), "auc"),
        ("harmful found at 1 % false alarms", say.percent, "tpr_at_1_fpr"),
        ("harmful called harmful", say.percent, "tpr"),
        ("95 % interval", say.span, "tpr_low", "tpr_high"),
        ("benign called harmful", say.percent, "fpr"),
        ("95 % interval of it", say.span, "fpr_low", "fpr_high"),
    )
    caption = "At the threshold; near-misses are benign prompts that resemble a category"
    return [Table("probe-quality", table, shown, caption)]


def sizes(run: Run) -> dict[str, str]:
    """Split -> how many prompts its curve rests on, as far as the probe's table says so."""
    table = run.table("probe_quality")
    if table is None:
        return {}
    rows = table.filter(pl.col("against") == "all").select("split", "n_harmful", "n_benign").drop_nulls()
    return {split: f", n = {harmful:,} harmful and {benign:,} benign" for split, harmful, benign in rows.iter_rows()}


def area(curve: pl.DataFrame) -> float:
    """Area under a curve, by trapezoids."""
    ordered = curve.drop_nulls(["fpr", "tpr"]).sort("fpr", "tpr")
    return float(np.trapezoid(ordered["tpr"].to_numpy(), ordered["fpr"].to_numpy()))


def point(curve: pl.DataFrame, threshold: float) -> pl.DataFrame:
    """The curve's point at a threshold: the last whose own threshold is not below it."""
    rows = curve.drop_nulls(["fpr", "tpr", "threshold"]).filter(pl.col("threshold") >= threshold - 1e-7)
    return rows.sort("threshold").head(1).select("fpr", "tpr", "threshold")
