"""Which prompts are siblings: clusters that a bootstrap draws together."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from data.errors import OutOfReachError, UserError
from data.prompts import catalogue, reading
from data.prompts import sample as embedded

KEY = ["dataset", "id"]


@dataclass(frozen=True)
class Siblings:
    """What is known of the prompts' clusters.

    Attributes:
        table: `dataset`, `id`, `theme`; a row for each prompt asked for, in their order.
        lost: Data sets that would say which of their prompts belong together and can't be read again, each with why.
    """

    table: pl.DataFrame
    lost: dict[str, str]


def known_themes(frame: pl.DataFrame, mirror: Path | None = None, sources: Iterable[str] = ()) -> Siblings:
    """The cluster of each prompt: XSTest's prompt type, CoCoNot's subcategory, the embedded sample's theme, a file's column `theme`.

    A theme is null where nothing says which prompts belong together (a file without such a column, AdvBench), where the
    data set can't be read again, and where it no longer has that prompt: such a prompt is a cluster of its own.

    Args:
        frame: Anything with the columns `dataset` and `id`, such as scores. With a column `prompt`, a theme is taken
            only where the text is the same: a set may have changed, or a user's file have a set's name.
        mirror: Folder with hub data sets under their own names, used instead of the hub.
        sources: Where the prompts come from, as `load` takes them; of these the files are read again.
    """
    key = [*KEY, "prompt"] if "prompt" in frame.columns else KEY
    wanted = frame.select(pl.col(key).cast(pl.String))
    known = {known.name: known for known in catalogue.CATALOGUE if known.has_themes}
    found = [pl.DataFrame(schema=dict.fromkeys([*key, "theme"], pl.String))]
    lost: dict[str, str] = {}
    for source in dict.fromkeys(sources):
        if reading.is_file(source):
            try:
                found.append(reading.own_themes(source).select(*key, "theme"))
            except UserError as error:
                if reading.name_of(source) in wanted["dataset"]:
                    lost[source] = str(error)
    away = ""  # a hub that is out of reach is asked once: each answer takes half a minute
    for name in wanted["dataset"].unique(maintain_order=True):
        try:
            if name in embedded.FILES:
                own = embedded.read(name).with_columns(pl.lit(name).alias("dataset"))
                found.append(own.select(*key, "theme"))
            elif name in known and away:
                lost[name] = away
            elif name in known:
                found.append(catalogue.read(known[name], mirror=mirror, partly=True).select(*key, "theme"))
        except UserError as error:
            lost[name] = str(error)
            away = str(error) if isinstance(error, OutOfReachError) else ""
    themes = pl.concat(found).unique(key, keep="first")
    return Siblings(wanted.join(themes, on=key, how="left", maintain_order="left").select(*KEY, "theme"), lost)


def themes(frame: pl.DataFrame, mirror: Path | None = None) -> pl.DataFrame:
    """The table of `known_themes`.

    Raises:
        UserError: A known data set of the frame can't be read again.
    """
    found = known_themes(frame, mirror)
    if found.lost:
        raise UserError(next(iter(found.lost.values())))
    return found.table
