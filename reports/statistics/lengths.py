"""Refusal against answer length: every answer cut at several numbers of tokens, and each cut scored as an answer of its own.

A refusal may come late: an answer of 16 tokens that complies may go on to decline. One long generation has all shorter ones
in it, as greedy decoding goes on from what is there.
"""

from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

import polars as pl

from data.contract import POOLED, SCORERS
from data.store.tables import LENGTHS, Values
from reports.scoring.assemble import Verdicts
from reports.scoring.scores import score
from reports.statistics.summary import newcombe, rates, with_pooled

ANSWER = ("dataset", "id", "arm", "scorer")
GROUP = ("dataset", "label", "arm", "kind", "scorer")


def cut(generations: pl.DataFrame, tokens: int) -> pl.DataFrame:
    """Answers as they were after so many new tokens; shorter ones stay as they are."""
    longer = pl.col("token_ids").list.len() > tokens
    end = pl.col("token_ends").list.get(tokens - 1, null_on_oob=True)
    return generations.with_columns(
        pl.when(longer).then(pl.col("response").str.slice(0, end)).otherwise("response").alias("response"),
        pl.when(longer).then(pl.lit(tokens, pl.Int64)).otherwise("new_tokens").alias("new_tokens"),
        pl.when(longer).then(pl.lit("length")).otherwise("finish").alias("finish"),
    )


def score_at(
    generations: pl.DataFrame,
    whole: pl.DataFrame,
    fitted_prompts: Set[str],
    scorers: Mapping[str, Verdicts],
    lengths: Sequence[int],
) -> dict[int, pl.DataFrame]:
    """Length -> scores of the answers cut there, with a column `cut`: whether an answer would have gone on.

    Only what differs from the next longer cut is scored again. Labels by hand are of whole answers and left out.

    Args:
        generations: The table of `generate`, with `token_ids` and `token_ends`.
        whole: Scores of the answers as they are.
        fitted_prompts: As `score` takes them.
        scorers: As `assemble` gives them.
        lengths: In tokens.
    """
    scorers = {name: verdicts for name, verdicts in scorers.items() if not (name in SCORERS and SCORERS[name].partly)}
    known = whole.filter(pl.col("scorer").is_in(list(scorers))).drop("theme", strict=False)
    known = known.with_columns(pl.lit(None, pl.Boolean).alias("incoherent"))  # which is known of whole answers alone
    found = {}
    for tokens in sorted(lengths, reverse=True):
        mine = cut(generations, tokens)
        again = mine.filter(generations["token_ids"].list.len() > tokens)
        if again.height:
            rest = known.join(again, on=ANSWER[:3], how="anti", maintain_order="left")
            known = pl.concat([rest, score(again, fitted_prompts, scorers)])
        unfinished = mine.select(*ANSWER[:3], (pl.col("finish") == "length").alias("cut"))
        found[tokens] = known.join(unfinished, on=ANSWER[:3], how="left", maintain_order="left")
    return dict(sorted(found.items()))


def by_length(scored: Mapping[int, pl.DataFrame], repeated: pl.DataFrame | None = None) -> pl.DataFrame:
    """Rates at every length, and how far each lies from the one at the length before, in the columns of `LENGTHS`.

    `step` is the paired difference over the same answers, with Newcombe's 95 % score interval.

    Args:
        scored: Of `score_at`.
        repeated: As `summarise` takes it.
    """
    used = (~pl.col("fitted")) & pl.col("verdict").is_not_null()
    parts: list[pl.DataFrame] = []
    before: pl.DataFrame | None = None
    for tokens, scores in sorted(scored.items()):
        rows = with_pooled(scores, repeated)
        unfinished = rows.filter(used).group_by(GROUP).agg(pl.col("cut").sum().cast(pl.Int64).alias("n_cut"))
        table = rates(rows, used).join(unfinished, on=GROUP, how="left", nulls_equal=True, maintain_order="left")
        if before is not None:
            table = table.join(_steps(rows.filter(used), before), on=GROUP, how="left", nulls_equal=True, maintain_order="left")  # fmt: skip
        lacking = [pl.lit(None).alias(name) for name in LENGTHS if name not in (*table.columns, "tokens")]
        table = table.with_columns(pl.lit(tokens).alias("tokens"), pl.col("n_cut").fill_null(0), *lacking)
        parts.append(table.select([pl.col(name).cast(kind) for name, kind in LENGTHS.items()]))
        before = rows.filter(used)
    order = ["scorer", "dataset", "label", "arm", "tokens"]
    return pl.concat(parts).sort(order, nulls_last=True)


def _steps(now: pl.DataFrame, before: pl.DataFrame) -> pl.DataFrame:
    """What refusal changed by since the length before, on the answers that count at both."""
    both = now.join(before.select(*ANSWER, was="refused"), on=ANSWER)
    after, was = pl.col("refused"), pl.col("was")
    cells = both.group_by(GROUP, maintain_order=True).agg(
        (after & was).sum().alias("both"), (after & ~was).sum().alias("now"),
        (~after & was).sum().alias("then"), (~after & ~was).sum().alias("neither"),
    )  # fmt: skip
    rows: list[Values] = []
    for cell in cells.to_dicts():
        counts = [cell.pop(name) for name in ("both", "now", "then", "neither")]
        rows.append(cell | dict(zip(("step", "step_low", "step_high"), newcombe(*counts), strict=True)))
    names = (*GROUP, "step", "step_low", "step_high")
    return pl.DataFrame(rows, {name: LENGTHS[name] for name in names})


class Moving(NamedTuple):
    """A rate that the last tokens still changed by more than its interval: the step's leaves 0 out."""

    label: str | None
    arm: str
    step: float
    low: float
    high: float
    before: int
    last: int


def moving(table: pl.DataFrame, scorer: str) -> list[Moving]:
    """Pooled rates of a scorer that have not come to rest at the longest of the lengths."""
    lengths = sorted(table["tokens"].unique())
    if len(lengths) < 2:
        return []
    last = table.filter(pl.col("tokens") == lengths[-1], pl.col("dataset") == POOLED, pl.col("scorer") == scorer)
    still = last.filter((pl.col("step_low") > 0) | (pl.col("step_high") < 0))
    rows = still.select("label", "arm", "step", "step_low", "step_high").iter_rows()
    return [Moving(label, arm, step, low, high, lengths[-2], lengths[-1]) for label, arm, step, low, high in rows]


def flat_from(table: pl.DataFrame, scorer: str) -> int | None:
    """The shortest of the lengths after which no pooled rate's step leaves 0 out; None if even the last one's does."""
    rows = table.filter(pl.col("dataset") == POOLED, pl.col("scorer") == scorer)
    lengths = sorted(rows["tokens"].unique())
    still = rows.filter((pl.col("step_low") > 0) | (pl.col("step_high") < 0))["tokens"].to_list()
    if not lengths or lengths[-1] in still:
        return None
    return next(tokens for tokens in lengths if all(tokens >= at for at in still))
