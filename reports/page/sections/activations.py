"""A map of the activations: do categories lie apart, and by how much?"""

from typing import Any

import numpy as np
import polars as pl

from data.errors import UserError
from data.store.tables import parquet_rows
from reports.page import charts
from reports.page import wording as say
from reports.page.blocks import Chart, Prose, Section, Table
from reports.page.run import Run, read_activations

MOST_POINTS = 1500
EVERY = "(all)"


def section(run: Run, how: str = "pca") -> Section | None:
    """Activations at the steered layer in two dimensions, with silhouette scores."""
    layer = run.steered_layer()
    try:
        found = read_activations(run.folder, layer, MOST_POINTS) if layer is not None else None
    except UserError as error:  # the rest is shown
        run.faults.append(str(error))
        return None
    if found is None:
        return None
    values, rows = found
    if len(values) < 3:
        return None
    groups = group_names(rows)
    placed, titles = project(values, how)
    names = sorted(set(groups), key=lambda name: (name != "benign", name))
    table = pl.DataFrame({"x": placed[:, 0], "y": placed[:, 1], "group": groups})
    told = silhouettes(values, placed, groups, names)
    caption = (
        f"Activations of {say.counted(len(values), 'prompt')} in {say.counted(len(names), 'group')} at layer {layer}, "
        f"{titles[2]}. {overall(told)}"
    )
    chart = Chart("activation-map", charts.scatter(table, names, (titles[0], titles[1])), caption, narrow=True)
    total = parquet_rows(run.folder / "activations" / "prompts.parquet")
    some = f"Drawn: {len(values):,} of {total:,} prompts, picked at random (seed 0)."
    drawn = [Prose(some, "note")] if total > len(values) else []
    shown = say.table_of(
        told,
        ("group", say.name, "group"),
        ("n", say.number, "n"),
        (f"in all {values.shape[1]:,} dimensions", say.fixed, "silhouette"),
        ("on this map", say.fixed, "silhouette_map"),
    )
    scored = Table("silhouettes", told, shown, "Mean silhouette by group", folded=True)
    return Section("activations", "Activations by category", [chart, *drawn, scored])


def group_names(rows: pl.DataFrame) -> list[str]:
    """Each row's category, or benign: near-misses of a category are benign too."""
    called = say.distinct(rows["category"].drop_nulls(), 40)
    return [
        "benign" if label == "benign" else called[category] if category is not None else "no category"
        for label, category in rows.select("label", "category").iter_rows()
    ]


def project(values: np.ndarray, how: str) -> tuple[np.ndarray, tuple[str, str, str]]:
    """Two dimensions of (rows, d_model), and what its axes and itself are called."""
    from sklearn.decomposition import PCA

    if how == "tsne":
        from sklearn.manifold import TSNE

        reduced = PCA(min(50, *values.shape), random_state=0).fit_transform(values)
        placed = TSNE(2, perplexity=min(30, (len(values) - 1) / 3), init="pca", random_state=0).fit_transform(reduced)
        return placed, ("t-SNE 1", "t-SNE 2", "t-SNE after PCA to 50 dimensions (distances between groups mean little)")
    pca: Any = PCA(2, random_state=0)
    placed = pca.fit_transform(values)
    first, second = pca.explained_variance_ratio_
    return placed, (f"PC 1 ({first:.0%} of variance)", f"PC 2 ({second:.0%})", "first two principal components")


def silhouettes(values: np.ndarray, placed: np.ndarray, groups: list[str], names: list[str]) -> pl.DataFrame:
    """Mean silhouette (Rousseeuw 1987) of each group and of all, in the whole space and on the map.

    Null where it does not exist: with one group only, or nothing but groups of one.
    """
    from sklearn.metrics import silhouette_samples

    possible = 2 <= len(set(groups)) < len(groups)
    each = [np.asarray(silhouette_samples(space, groups)) if possible else None for space in (values, placed)]
    of_group = np.asarray(groups)
    rows = []
    for name in (EVERY, *names):
        member = np.ones(len(groups), bool) if name == EVERY else of_group == name
        means = [float(scores[member].mean()) if scores is not None else None for scores in each]
        rows.append((name, int(member.sum()), *means))
    schema = {"group": pl.String, "n": pl.Int64, "silhouette": pl.Float64, "silhouette_map": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def overall(told: pl.DataFrame) -> str:
    """The silhouettes of all rows, in words."""
    whole, seen = told.row(0)[2:]
    if whole is None:
        return "One group only: nothing to tell apart."
    return (
        f"Mean silhouette {say.fixed(whole)} in the whole space, {say.fixed(seen)} on this map (1: groups far apart; "
        "0: they overlap; below: mixed)."
    )
