"""Which prompts a command runs on."""

from typing import TYPE_CHECKING

from commands.framework.output import warn
from commands.framework.settings import Settings
from data.errors import UserError

if TYPE_CHECKING:
    import polars as pl

TRACED_AT_MOST = 20


def load_prompts(s: Settings, *, limited: bool) -> "pl.DataFrame":
    """The prompts of --data, with those of --benign."""
    import polars as pl

    from data import load_all

    prompts = load_all(s.get("data", ("embedded",)), s.get("data_mirror"))
    if limited:
        prompts = prompts.head(s.get("limit", prompts.height))
    if s.get("benign"):
        more = load_all(s.get("benign"), s.get("data_mirror")).filter(pl.col("label").fill_null("benign") == "benign")
        more = more.with_columns(pl.lit("benign").alias("label"))
        both = more.join(prompts.select("dataset", "id", other="prompt"), on=["dataset", "id"])
        for row in both.filter(pl.col("prompt") != pl.col("other")).head(1).to_dicts():
            raise UserError(f"{row['dataset']}: --benign and --data have another prompt each with id {row['id']!r}; give "
                            "the files names that differ")  # fmt: skip
        prompts = pl.concat([prompts, more.join(both, on=["dataset", "id"], how="anti")])
    return prompts


def traced_prompts(s: Settings) -> "pl.DataFrame":
    """The prompts of --prompt, else of --data, else embedded examples: two a category, one of them a near-miss."""
    import polars as pl

    from data import PROMPT_COLUMNS, for_split, load_all

    texts = s.get("prompt", ())
    if texts:
        if any(not text.strip() for text in texts):
            raise UserError("--prompt is empty; pass a text")
        rows = [{"id": str(at), "prompt": text, "dataset": "prompt"} for at, text in enumerate(texts)]
        return pl.DataFrame(rows, schema=dict.fromkeys(PROMPT_COLUMNS, pl.String))
    if not s.get("data"):
        examples = for_split(load_all(["embedded"]), s.get("split", "test"))
        return (
            examples.group_by("category", "label", maintain_order=True)
            .head(1)
            .sort("category", "label", nulls_last=True)
            .select(PROMPT_COLUMNS)
            .head(s.get("limit", TRACED_AT_MOST))
        )
    prompts = for_split(load_prompts(s, limited=False), s.get("split", "test"))
    if prompts.is_empty():
        raise UserError(f"no prompt in split {s.get('split', 'test')!r}: pass --split or other --data")
    if prompts.height > TRACED_AT_MOST and s.get("limit") is None:
        warn(f"tracing the first {TRACED_AT_MOST} of {prompts.height} prompts; --limit N traces more")
    return prompts.head(s.get("limit", TRACED_AT_MOST))


def fingerprint_of(prompts: "pl.DataFrame") -> str:
    """Data fingerprint of prompts."""
    from data import fingerprint

    return fingerprint(prompts)


def spread(prompts: "pl.DataFrame", most: int | None) -> "pl.DataFrame":
    """At most so many prompts, evenly spread: sets are often sorted by kind, and the first of them are of one kind."""
    if most is None or most >= prompts.height:
        return prompts
    return prompts[[at * prompts.height // most for at in range(most)]]
