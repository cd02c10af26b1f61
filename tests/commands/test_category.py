"""`category` from the command line: equal KL, what is compared, what is refused."""

import json

import polars as pl
import pytest

from data.store.tables import CATEGORY, CATEGORY_TEST, GENERATIONS


def test_every_vector_is_tried_on_every_row_at_equal_kl(run, tiny_tuned_folder, prompts_file, tmp_path):
    rows = pl.read_ndjson(prompts_file).with_columns(
        split=pl.Series([("train", "validation", "test", "test")[at // 4 % 4] for at in range(40)])
    )
    rows.write_ndjson(tmp_path / "mine.jsonl")
    group = ("--run", tmp_path / "r", "--model", tiny_tuned_folder, "--data", tmp_path / "mine.jsonl", "--json")
    code, out, err = run(*group, "category", "--kl", 0.02, "--random", 2, "--strength-unit", "unit")
    assert code == 0, err
    told = json.loads(out.splitlines()[-1])
    table, test = (pl.read_parquet(tmp_path / "r" / f"{name}.parquet") for name in ("category", "category_test"))
    assert table.schema == pl.Schema(CATEGORY) and test.schema == pl.Schema(CATEGORY_TEST)
    steered = table.filter(pl.col("vector") != "(unsteered)")
    categories = set(rows["category"].drop_nulls())
    assert set(steered["vector"]) == {*categories, "mean", "random 1", "random 2", "logit bias"}
    assert ((steered["strength"] > 0) == (steered["side"] == "towards")).all()
    for row in steered.unique(["side", "vector"]).to_dicts():
        assert row["why_not"] or row["kl"] == pytest.approx(0.02, rel=0.05)
        assert not row["why_not"] or row["vector"] in err
    for side, label in (("towards", "harmful"), ("away", "benign")):
        answers = pl.read_parquet(tmp_path / "r" / f"category_{side}.parquet")
        assert answers.schema == pl.Schema(GENERATIONS) and set(answers["label"]) == {label}
        mine = answers.filter(pl.col("arm") == "fixed:category=weapons")
        cell = table.filter(pl.col("side") == side, pl.col("vector") == "weapons", pl.col("rows") == "(all)")
        assert cell["refusal_probability"][0] == pytest.approx(mine["refusal_probability"].mean())
        assert cell["n"][0] == mine.height
    assert told["answer"].endswith(".") and "a KL of 0.02 nats" in told["answer"]
    code, again, _ = run(*group, "category", "--kl", 0.02, "--random", 2, "--strength-unit", "unit")
    assert code == 0 and json.loads(again.splitlines()[-1])["answer"] == told["answer"]


def test_a_model_without_refusal_tokens_is_refused(run, tiny_folder, prompts_file, tmp_path):
    code, _, err = run("--run", tmp_path / "r", "--model", tiny_folder, "--data", prompts_file, "category")
    assert code == 1 and "category compares refusal tokens' probabilities" in err
