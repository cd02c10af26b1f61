"""Which prompts are siblings: clusters that a bootstrap draws together."""

from pathlib import Path

import polars as pl

from data import catalogue, embedded


def themes(frame: pl.DataFrame, mirror: Path | None = None) -> pl.DataFrame:
    """The cluster of each prompt: `dataset`, `id`, `theme`, a row for each of `frame`'s rows, in its order.

    XSTest's prompt type, CoCoNot's subcategory, the embedded sample's theme, …; null where nothing says which prompts
    belong together (a user's file, AdvBench): such a prompt is a cluster of its own.

    Args:
        frame: Anything with the columns `dataset` and `id`, such as prompts or scores.
        mirror: Folder with hub data sets under their own names, used instead of the hub.

    Raises:
        UserError: A known data set of the frame can't be read again.
    """
    known = {dataset.name: dataset for dataset in catalogue.CATALOGUE}
    keys = frame.select(pl.col("dataset", "id").cast(pl.String))
    found = [pl.DataFrame(schema={"dataset": pl.String, "id": pl.String, "theme": pl.String})]
    for name in keys["dataset"].unique(maintain_order=True):
        if name in embedded.FILES:
            found.append(embedded.read(name).select(pl.lit(name).alias("dataset"), "id", "theme"))
        elif name in known and known[name].has_themes:
            found.append(catalogue.read(known[name], mirror=mirror).select("dataset", "id", "theme"))
    return keys.join(pl.concat(found), on=["dataset", "id"], how="left", maintain_order="left")
