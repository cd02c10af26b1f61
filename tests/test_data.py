"""Prompts in: the embedded sample is what it says, and a bad file is refused with file, row and reason."""

from collections import Counter

import polars as pl
import pytest

from data import PROMPT_COLUMNS, UserError, fingerprint, for_split, load_all
from data.prompts import EMBEDDED

TAXONOMY = {
    "Humanizing requests",
    "Incomplete requests",
    "Indeterminate requests",
    "Requests with safety concerns",
    "Unsupported requests",
}


def test_embedded_sample_has_its_categories_benign_rows_and_near_misses():
    rows = load_all(["embedded"])
    harmful, benign = rows.filter(pl.col("label") == "harmful"), rows.filter(pl.col("label") == "benign")
    counts = Counter(harmful["category"].to_list())
    assert set(counts) == TAXONOMY and min(counts.values()) >= 60
    assert benign.height >= 200
    assert set(benign["category"].drop_nulls()) == TAXONOMY
    assert set(rows["split"]) == {"train", "validation", "test"}
    assert rows.columns == list(PROMPT_COLUMNS) and set(rows.dtypes) == {pl.String}


def test_no_theme_straddles_a_split_and_no_prompt_stands_twice():
    rows = pl.read_ndjson(EMBEDDED)
    assert rows.group_by("theme").agg(pl.col("split").n_unique())["split"].max() == 1
    assert rows["prompt"].str.to_lowercase().n_unique() == rows.height


def test_no_two_embedded_prompts_are_near_duplicates():
    texts = [set(text.lower().split()) for text in load_all(["embedded"])["prompt"]]
    where: dict[str, list[int]] = {}
    for at, words in enumerate(texts):
        for word in words:
            where.setdefault(word, []).append(at)
    for at, words in enumerate(texts):
        rare = sorted(words, key=lambda word: len(where[word]))[: len(words) // 3 + 1]
        for other in {o for word in rare for o in where[word] if o > at}:
            shared = len(words & texts[other]) / len(words | texts[other])
            assert shared < 0.85, (words, texts[other])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b'{"text": "x"}\n', "line 1: no field 'prompt'"),
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": "  "}\n', "row 2: empty prompt"),
        ("a.jsonl", b'{"prompt": "x", "label": "bad"}\n', "row 1: unknown label 'bad'"),
        ("a.jsonl", b'{"prompt": "x", "id": "1"}\n{"prompt": "y", "id": 1}\n', "row 2: duplicate id '1'"),
        ("a.jsonl", b'{"prompt": "x"}\nnope\n', "line 2: not JSON"),
        ("a.jsonl", b'["x"]\n', "line 1: expected a JSON object"),
        ("a.jsonl", b'{"prompt": ["x"]}\n', "line 1: field 'prompt' must be text"),
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": "\xff"}\n', "line 2: not UTF-8"),
        ("a.jsonl", b"", "no rows"),
        ("a.csv", b"text,label\nx,benign\n", "no column 'prompt'"),
        ("a.csv", b"prompt,label\n,benign\n", "row 1: empty prompt"),
        ("a.csv", b"prompt\n", "no rows"),
        ("a.csv", b"", "no rows"),
        ("a.csv", b"prompt\n\xe9t\xe9\n", "line 2: not UTF-8"),
        ("a.parquet", b"PAR1 not really", "not a readable parquet file"),
        ("a.txt", b"x", "unknown data"),
    ],
)
def test_a_bad_file_is_refused_with_file_row_and_reason(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_all([str(path)])
    assert reason in str(caught.value) and str(path) in str(caught.value)


def test_the_three_formats_read_alike(tmp_path):
    frame = pl.DataFrame({"prompt": ["a, b", 'q"x'], "category": ["c", None], "label": [None, "benign"]})
    frame.write_csv(tmp_path / "p.csv")
    frame.write_parquet(tmp_path / "p.parquet")
    frame.write_ndjson(tmp_path / "p.jsonl")
    read = [load_all([str(tmp_path / f"p.{kind}")]) for kind in ("csv", "parquet", "jsonl")]
    assert read[0].equals(read[1]) and read[0].equals(read[2])
    assert read[0]["label"].to_list() == ["harmful", "benign"] and read[0]["id"].to_list() == ["0", "1"]
    assert len({fingerprint(frame) for frame in read}) == 1


def test_rows_without_a_split_serve_every_split():
    rows = pl.DataFrame({"split": ["train", "test", None]})
    assert for_split(rows, "test")["split"].to_list() == ["test", None]
