"""Which prompts a command runs on."""

from functools import cache
from typing import TYPE_CHECKING

from commands.framework.output import warn
from commands.framework.settings import Settings
from data.contract import ALL_SERVE
from data.errors import UserError

if TYPE_CHECKING:
    import polars as pl


def load_prompts(s: Settings, *, limited: bool) -> "pl.DataFrame":
    """The prompts of --data, with those of --benign."""
    import polars as pl

    from data import load_all

    prompts = load_all(s.get("data"), s.get("data_mirror"))
    if limited:
        prompts = prompts[: s.get("limit")]
    if s.given("benign"):
        more = load_all(s.given("benign"), s.get("data_mirror"), benign=True)
        both = more.join(prompts.select("dataset", "id", other="prompt"), on=["dataset", "id"])
        for row in both.filter(pl.col("prompt") != pl.col("other")).head(1).to_dicts():
            raise UserError(f"{row['dataset']}: --benign and --data have another prompt each with id {row['id']!r}; give "
                            "the files names that differ")  # fmt: skip
        prompts = pl.concat([prompts, more.join(both, on=["dataset", "id"], how="anti")])
    return prompts


def fitting_prompts(s: Settings) -> "pl.DataFrame":
    """The prompts to read and fit on, each in a split: rows without one are put into one, unless --holdout none."""
    return held_out(s, load_prompts(s, limited=True))


def sources_of(s: Settings) -> list[str]:
    """Where a run's prompts come from: what --data and --benign say, and what its records do."""
    from data.store.rundir import records

    known = [source for record in records(s.run).values() for source in record.get("data") or []]
    return list(dict.fromkeys([*(s.get("data") or ()), *(s.given("benign") or ()), *known]))


def held_out(s: Settings, prompts: "pl.DataFrame") -> "pl.DataFrame":
    """The prompts, each in a split, which is said."""
    import polars as pl

    from data import known_themes
    from data.prompts.holdout import counts, with_splits

    bare = prompts.filter(pl.col("split").is_null())
    if bare.is_empty() or s.get("holdout") == ALL_SERVE:
        return prompts
    found = known_themes(bare.select("dataset", "id", "prompt"), s.get("data_mirror"), sources_of(s)).table
    split = with_splits(prompts, s.get("holdout"), s.get("seed"), found)
    many = counts(split.filter(prompts["split"].is_null()))
    _say(f"{', '.join(bare['dataset'].unique(maintain_order=True))}: {bare.height} rows have no split: {many['train']} are fitted "
         f"on (train), {many['validation']} chosen on (validation), {many['test']} left to answer (test); --holdout SHARE holds "
         "out more or less, --holdout none lets every row serve all")  # fmt: skip
    return split


@cache
def _say(words: str) -> None:
    """A line, once."""
    warn(words)


def prompts_of(s: Settings, split: str) -> "pl.DataFrame":
    """Of the prompts, those of a split: their own, or the one that this run put them into when it fitted on them."""
    from data import for_split

    return for_split(with_known_splits(s, load_prompts(s, limited=False)), split)


def check_there(s: Settings, split: str) -> None:
    """Is there anything of a split? Asked before anything is made for it.

    Raises:
        UserError: There is not.
    """
    from data import for_split
    from data.contract import SPLITS

    prompts = load_prompts(s, limited=False)
    if for_split(prompts, split).is_empty():
        there = [name for name in SPLITS if name in set(prompts["split"])]
        raise UserError(f"no prompt in split {split!r}: these have {', '.join(there)}; pass --split or other --data")


def with_known_splits(s: Settings, prompts: "pl.DataFrame") -> "pl.DataFrame":
    """The prompts; those without a split that this run's activations were read of, in the split they have there.

    Prompts of sets that nothing was fitted to keep none and serve all.
    """
    import polars as pl

    from commands.framework.artefacts import ACTIVATIONS, PAIRS, PROJECTIONS, SUMS
    from data.store.rundir import records
    from data.store.tables import read_parquet

    known = records(s.run)
    read = (one for one in (ACTIVATIONS, PROJECTIONS, PAIRS, SUMS) if one.name in known)
    files = {one: one.path(s.run).with_suffix(".parquet") for one in read}
    source = next((one for one, path in files.items() if path.exists()), None)
    if source is None or not prompts["split"].has_nulls():
        return prompts
    source.check(s.run)
    key = ["dataset", "id", "prompt"]
    there = read_parquet(files[source], [*key, "split"]).unique(key, keep="first").rename({"split": "there"})
    found = prompts.join(there, on=key, how="left", maintain_order="left")["there"]
    if known[source.name]["key"]["suffixes"]:  # it holds the rows of one split alone
        was = known[source.name]
        rest = held_out(s.with_values(holdout=was["options"].get("holdout"), seed=was["seed"]), prompts)["split"]
        fitted = prompts["dataset"].is_in(there["dataset"].unique().to_list())
        found = pl.select(pl.when(fitted).then(pl.coalesce(found, rest))).to_series()
    return prompts.with_columns(pl.coalesce("split", found).alias("split"))


def fingerprint_of(prompts: "pl.DataFrame") -> str:
    """Data fingerprint of prompts."""
    from data import fingerprint

    return fingerprint(prompts)


def spread(prompts: "pl.DataFrame", most: int | None) -> "pl.DataFrame":
    """At most so many prompts, evenly spread: sets are often sorted by kind, and the first of them are of one kind."""
    if most is None or most >= prompts.height:
        return prompts
    return prompts[[at * prompts.height // most for at in range(most)]]


def spread_in_kinds(prompts: "pl.DataFrame", most: int | None) -> "pl.DataFrame":
    """At most so many prompts of each label and category in each split of a data set, evenly spread over them, in their order."""
    import polars as pl

    kinds = ["dataset", "split", "label", "category"]
    if most is None:
        return prompts
    groups = prompts.with_row_index("at").partition_by(kinds)
    return pl.concat([spread(group, most) for group in groups]).sort("at").drop("at")
