"""Every answer, packed for the page's search and its side-by-side reading."""

from typing import Any

import polars as pl

from reports.page.blocks import Samples, Section
from reports.page.run import Run
from reports.page.sections.answer import leading_arm
from reports.scoring.leading import trust

LONGEST = 20_000  # characters of one text
BUDGET = 60_000_000  # characters of all texts
KEY = ["dataset", "id"]


def section(run: Run) -> Section | None:
    """The answers, if there are any."""
    generations = run.table("generations")
    if generations is None:
        return None
    packed = pack(generations, run.table("scores"), run.arms(), leading_arm(run, run.arms()))
    named = run.named()
    return Section("samples", "Answers", [Samples(packed | {"names": [named[arm].short for arm in run.arms()]})])


def pack(generations: pl.DataFrame, scores: pl.DataFrame | None, arms: list[str], first: str | None) -> dict[str, Any]:
    """Answers as `samples.js` reads them.

    `sets`, `categories`, `labels`, `arms`, `scorers`, `verdicts` are lists; a row of `rows` is [set, id, prompt,
    category, label, fitted, answers], the names as numbers into the lists; `answers` has one entry an arm: null, or
    [response, tokens, cut, control token, vector, verdict by scorer…]. Texts over the limit are cut, and `limit` says
    where. `first` is the arm to begin with; a list `names` may say what arms are called on the page.
    """
    generations = generations.unique([*KEY, "arm"], keep="first", maintain_order=True)
    scorers = [] if scores is None else scores["scorer"].drop_nulls().unique().to_list()
    scorers.sort(key=lambda scorer: (trust(scorer), scorer))
    table = _with_verdicts(generations, scores, scorers)
    lists: dict[str, dict[Any, int]] = {name: {} for name in ("sets", "categories", "labels", "verdicts")}

    def number(name: str, value: Any) -> int:
        return -1 if value is None else lists[name].setdefault(value, len(lists[name]))

    limit = text_limit(generations)
    place = {arm: at for at, arm in enumerate(arms)}
    rows: dict[tuple[str, str], list[Any]] = {}
    for row in table.iter_rows(named=True):
        key = (row["dataset"], row["id"])
        if key not in rows:
            rows[key] = [number("sets", row["dataset"]), row["id"], _cut(row["prompt"], limit),
                         number("categories", row["category"]), number("labels", row["label"]), bool(row["fitted"]),
                         [None] * len(arms)]  # fmt: skip
        if row["arm"] in place:
            verdicts = [number("verdicts", row[f"verdict {scorer}"]) for scorer in scorers]
            answer = [_cut(row["response"], limit), row["new_tokens"], row["finish"] == "length"]
            rows[key][6][place[row["arm"]]] = [*answer, row["control_token"], row["vector"], *verdicts]
    longest = generations.select(pl.max_horizontal(pl.col("prompt", "response").str.len_chars().max())).item() or 0
    return {
        **{name: list(values) for name, values in lists.items()},
        "arms": arms,
        "scorers": scorers,
        "rows": list(rows.values()),
        "first": arms.index(first) if first in arms else 0,
        "limit": limit if longest > limit else None,
    }


def text_limit(generations: pl.DataFrame) -> int:
    """Characters that each text may keep, so that all together stay under the budget."""
    texts = pl.concat([generations["response"], generations.unique(KEY)["prompt"]])
    lengths = texts.str.len_chars().fill_null(0)
    limit = LONGEST
    while limit > 500 and int(lengths.clip(upper_bound=limit).sum()) > BUDGET:
        limit //= 2
    return limit


def _with_verdicts(generations: pl.DataFrame, scores: pl.DataFrame | None, scorers: list[str]) -> pl.DataFrame:
    table = generations.select(
        *KEY, "prompt", "category", "label", "arm", "response", "new_tokens", "finish", "control_token", "vector"
    )
    if scores is None:
        return table.with_columns(pl.lit(False).alias("fitted"))
    keys = [*KEY, "arm"]
    fitted = scores.group_by(keys).agg(pl.col("fitted").any())
    table = table.join(fitted, on=keys, how="left", maintain_order="left")
    for scorer in scorers:
        own = scores.filter(scorer=scorer).unique(keys).select(*keys, pl.col("verdict").alias(f"verdict {scorer}"))
        table = table.join(own, on=keys, how="left", maintain_order="left")
    return table


def _cut(text: str | None, limit: int) -> str | None:
    return text if text is None or len(text) <= limit else text[:limit]
