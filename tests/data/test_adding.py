"""Tables of prompts × arms that add up, held to plain Python."""

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from data.store.adding import in_runs, joined, missing, runs_of

cells = st.sets(st.tuples(st.integers(0, 7), st.sampled_from("abc")))


def prompts_of(numbers):
    columns = {"dataset": ["d"] * len(numbers), "id": [str(n) for n in numbers], "prompt": [f"text {n}" for n in numbers],
               "category": [None] * len(numbers), "label": ["benign"] * len(numbers)}  # fmt: skip
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))


def table_of(pairs, word):
    rows = prompts_of([n for n, _ in pairs])
    return rows.with_columns(arm=pl.Series([arm for _, arm in pairs], dtype=pl.String), word=pl.lit(word, pl.String))


@given(cells, st.lists(st.integers(0, 9), unique=True, min_size=1))
def test_what_is_missing_is_what_is_not_there(there, numbers):
    table, prompts = table_of(sorted(there), "old"), prompts_of(numbers)
    found = {(numbers[row], "abc"[arm]) for part in missing(table, list("abc"), prompts, [False] * 3) for arm in part.arms
             for row in part.rows}  # fmt: skip
    assert found == {(n, arm) for n in numbers for arm in "abc"} - there
    (whole,) = missing(None, list("abc"), prompts, [False] * 3)
    assert whole.rows == list(range(len(numbers))) and whole.arms == [0, 1, 2]


@given(cells, cells)
def test_new_rows_join_the_old_ones_and_replace_their_like(there, new):
    both = joined(table_of(sorted(there), "old"), table_of(sorted(new), "new"), list("abc"))
    assert {(int(n), arm, word) for n, arm, word in both.select("id", "arm", "word").rows()} == {
        (*pair, "new" if pair in new else "old") for pair in there | new
    }
    assert both["arm"].to_list() == sorted(both["arm"])


@given(cells, st.lists(st.integers(0, 9), unique=True, min_size=1))
def test_the_prompts_asked_for_are_found_again(there, numbers):
    table = table_of(sorted(there), "old")
    found = in_runs(table, runs_of(table, prompts_of(numbers)))
    assert set(found["id"]) == {str(n) for n, _ in there if n in numbers} and found.height == len(
        [n for n, _ in there if n in numbers]
    )
