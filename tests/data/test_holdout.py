"""Rows without a split: each gets one, siblings the same, every label its share, whatever else is in the file."""

from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import PROMPT_COLUMNS
from data.contract import SPLITS
from data.prompts.holdout import with_splits

row = st.tuples(st.sampled_from(["harmful", "benign", None]), st.sampled_from(["a", "b", None]), st.sampled_from([*SPLITS, *[None] * 6]),
                st.sampled_from([None, "one", "two", "three"]), st.integers(0, 30))  # fmt: skip


def framed(rows):
    made = [{"id": str(at), "prompt": f"text {text}", "category": category, "label": label, "dataset": "d", "split": split}
            for at, (label, category, split, _, text) in enumerate(rows)]  # fmt: skip
    themes = [{"dataset": "d", "id": str(at), "theme": theme} for at, (*_, theme, _) in enumerate(rows)]
    schema = dict.fromkeys(PROMPT_COLUMNS, pl.String)
    return pl.DataFrame(made, schema), pl.DataFrame(themes, dict.fromkeys(("dataset", "id", "theme"), pl.String))


@given(st.lists(row, min_size=1, max_size=60), st.floats(0.05, 0.95), st.integers(0, 5))
def test_every_row_gets_a_split_and_siblings_the_same(rows, holdout, seed):
    frame, themes = framed(rows)
    drawn = with_splits(frame, holdout, seed, themes)
    assert drawn.drop("split").equals(frame.drop("split")) and set(drawn["split"]) <= set(SPLITS)
    own = frame["split"].is_not_null()
    assert drawn.filter(own).equals(frame.filter(own))
    groups = {}
    for (*_, split, theme, text), name in zip(rows, drawn["split"], strict=True):
        if split is None:
            groups.setdefault(theme or text, set()).add(name)
    assert all(len(names) == 1 for names in groups.values())


@given(st.integers(3, 80), st.integers(3, 80), st.floats(0.05, 0.95))
def test_every_label_gets_its_share_of_every_split(harmful, benign, holdout):
    rows = [("harmful", None, None, None, at) for at in range(harmful)]
    rows += [("benign", None, None, None, 1000 + at) for at in range(benign)]
    drawn = with_splits(framed(rows)[0], holdout, 0)
    for label, many in (("harmful", harmful), ("benign", benign)):
        found = Counter(drawn.filter(label=label)["split"])
        assert all(found[split] >= 1 for split in SPLITS)
        assert abs(found["train"] - many * (1 - holdout)) <= 2.5


def test_a_seed_draws_the_same_rows_in_any_order():
    rows = [("harmful" if at % 2 else "benign", None, None, None, at) for at in range(40)]
    frame, _ = framed(rows)
    drawn = with_splits(frame, 0.5, 3)
    back = with_splits(frame.reverse(), 0.5, 3).reverse()
    assert drawn.equals(back) and not drawn.equals(with_splits(frame, 0.5, 4))


@pytest.mark.parametrize("heading", ["theme", "Theme"])
def test_a_theme_of_the_users_own_keeps_its_rows_together(run, tiny_folder, tmp_path, heading):
    """In splits, and in what the bootstrap draws, where scores say which cluster a row is of."""
    kinds = [("kill a person", "harmful"), ("write a poem", "benign")]
    rows = [
        f"{text} {theme} {turn},{label},theme {theme}" for text, label in kinds for theme in "abcdef" for turn in "xyz"
    ]
    file, folder = tmp_path / "mine.csv", tmp_path / "run"
    file.write_text(f"prompt,label,{heading}\n" + "\n".join(rows) + "\n")
    words = ["--run", folder, "--model", tiny_folder, "--data", file]
    assert run(*words, "generate", "--arm", "baseline", "--arm", "fixed", "--max-new-tokens", 2, "evaluate")[0] == 0
    split = pl.read_parquet(folder / "activations" / "prompts.parquet")
    split = split.with_columns(theme=pl.col("prompt").str.extract(r"(\w) \w$"))
    assert split.group_by("theme").agg(pl.col("split").n_unique())["split"].to_list() == [1] * 6
    scores = pl.read_parquet(folder / "scores.parquet").join(split.select("id", "prompt"), on="id")
    assert (scores["theme"] == "theme " + scores["prompt"].str.extract(r"(\w) \w$")).all() and scores.height
    rates = pl.read_parquet(folder / "summary.parquet").filter(
        dataset="mine", arm="fixed", scorer="phrases", label="benign"
    )
    assert rates["n_clusters"].item() * 3 == rates["n"].item()
    file.write_text(file.read_text().replace(",theme ", ",topic "))  # themes alone changed: evaluated again
    code, _, err = run("--run", folder, "evaluate")
    assert code == 0 and "made again: themes changed" in err
