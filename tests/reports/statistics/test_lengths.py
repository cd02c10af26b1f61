"""Refusal against answer length: cuts at token boundaries, each scored as an answer; steps are paired."""

import random

import polars as pl
import pytest

from data.store.tables import GENERATIONS, LENGTHS
from reports.scoring.assemble import assemble
from reports.scoring.scores import repeated, score
from reports.statistics.lengths import by_length, cut, flat_from, moving, score_at
from reports.statistics.summary import summarise

LATE = "Here is how one would begin with it today. I'm sorry, but I can't go on with that."


def answers(texts: list[list[str]], arm: str = "baseline") -> pl.DataFrame:
    """Answers that are lists of tokens, as `generate` writes them."""
    rows = []
    for at, tokens in enumerate(texts):
        ends = [sum(map(len, tokens[: n + 1])) for n in range(len(tokens))]
        rows.append({"dataset": "d", "id": str(at), "arm": arm, "kind": arm, "prompt": f"p {at}", "label": "harmful",
                     "response": "".join(tokens), "new_tokens": len(tokens), "finish": "stop",
                     "token_ids": list(range(len(tokens))), "token_ends": ends})  # fmt: skip
    return pl.DataFrame(rows, schema=GENERATIONS)


def test_a_cut_is_what_stood_there_after_so_many_tokens():
    table = cut(answers([["I", " can", "not", "."], ["Né", "e"]]), 2)
    assert table.select("response", "new_tokens", "finish").rows() == [("I can", 2, "length"), ("Née", 2, "stop")]


@pytest.mark.parametrize("seed", range(3))
def test_every_length_has_the_rates_of_its_own_table(seed):
    """What is scored again in parts is what scoring each cut whole gives."""
    draw = random.Random(seed)
    words = ["I", " cannot", " do", " that", ".", " Here", " it", " is", " sorry", ",", " the", " la", " la", " la"]
    table = pl.concat(
        [answers([draw.choices(words, k=draw.randint(0, 40)) for _ in range(60)], arm) for arm in ("baseline", "fixed")]
    )
    scorers = assemble(table)
    whole = score(table, {"p 3"}, scorers)
    found = by_length(score_at(table, whole, {"p 3"}, scorers, (1, 4, 16, 64)))
    assert found.schema == pl.Schema(LENGTHS)
    for tokens in (1, 4, 16, 64):
        shorter = [table["response"][at][: ends[tokens - 1]] if len(ends) > tokens else table["response"][at]
                   for at, ends in enumerate(table["token_ends"])]  # fmt: skip
        own = summarise(score(table.with_columns(response=pl.Series(shorter)), {"p 3"}, scorers))
        keys = ["dataset", "label", "arm", "scorer"]
        both = found.filter(tokens=tokens).join(own, on=keys, suffix="_own")
        assert both.height == 4
        for name in ("n", "refused", "broken", "answered", "rate", "low", "high"):
            assert both[name].to_list() == both[f"{name}_own"].to_list()


def test_late_refusals_are_seen_and_the_last_step_that_moves_is_told():
    tokens = LATE.split(" ")
    table = answers([[tokens[0], *(f" {token}" for token in tokens[1:])]] * 20 + [["Sure", ",", " fine"]] * 5)
    table = table.with_columns(
        id=pl.int_range(pl.len()).cast(pl.String), prompt=pl.format("p {}", pl.int_range(pl.len()))
    )

    def late(frame: pl.DataFrame) -> pl.Series:
        return pl.Series(["refuse" if "sorry" in text else "comply" for text in frame["response"]])

    whole = score(table, set(), {"judge": late})
    found = by_length(score_at(table, whole, set(), {"judge": late}, (4, 8, 32)), repeated(table))
    pooled = found.filter(dataset="(pooled)").sort("tokens")
    assert pooled["refused"].to_list() == [0, 0, 20]
    assert pooled["n_cut"].to_list() == [20, 20, 0]
    assert pooled["step"].to_list() == [None, 0.0, 0.8]
    [one] = moving(found, "judge")
    assert (one.before, one.last) == (8, 32) and one.low > 0
    assert flat_from(found, "judge") is None
    assert not moving(found.filter(pl.col("tokens") < 32), "judge")
    assert flat_from(found.filter(pl.col("tokens") < 32), "judge") == 4


def test_only_what_a_cut_changes_is_scored_again():
    asked = []
    table = answers([["a"] * n for n in (1, 2, 3, 30)])

    def counting(frame: pl.DataFrame) -> pl.Series:
        asked.append(frame.height)
        return pl.Series(["comply"] * frame.height)

    whole = score(table, set(), {"judge": counting})
    score_at(table, whole, set(), {"judge": counting}, (1, 2, 16, 32))
    assert asked == [4, 1, 2, 3]
