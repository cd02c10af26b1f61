"""Which prompts a command runs on."""

from typing import TYPE_CHECKING

from commands.framework.settings import Settings
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


def prompts_of(s: Settings, split: str) -> "pl.DataFrame":
    """Of the prompts, those of a split."""
    from data import for_split

    return for_split(load_prompts(s, limited=False), split)


def fingerprint_of(prompts: "pl.DataFrame") -> str:
    """Data fingerprint of prompts."""
    from data import fingerprint

    return fingerprint(prompts)


def spread(prompts: "pl.DataFrame", most: int | None) -> "pl.DataFrame":
    """At most so many prompts, evenly spread: sets are often sorted by kind, and the first of them are of one kind."""
    if most is None or most >= prompts.height:
        return prompts
    return prompts[[at * prompts.height // most for at in range(most)]]
