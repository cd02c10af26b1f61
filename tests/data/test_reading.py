"""Prompts in: the embedded sample is what it says, and a bad file is refused with file, row and reason."""

import re
from collections import Counter
from collections.abc import Iterator

import polars as pl
import pytest

from data import PROMPT_COLUMNS, UserError, fingerprint, for_split, load_all
from data.prompts.sample import FILES, TAUGHT, read
from tests import SHARED

TAXONOMY = {
    "Humanizing requests",
    "Incomplete requests",
    "Indeterminate requests",
    "Requests with safety concerns",
    "Unsupported requests",
}
HUB = SHARED / "hub"


def near_duplicates(texts: list[str], others: list[str] | None = None) -> Iterator[tuple[str, str]]:
    """Pairs whose sets of words overlap by a Jaccard index of 0.85 or more, within `texts` or against `others`.

    At that overlap a pair shares a word among the rarest third of the first text, so only those are compared.
    """
    targets = [set(text.lower().split()) for text in (texts if others is None else others)]
    where: dict[str, list[int]] = {}
    for at, words in enumerate(targets):
        for word in words:
            where.setdefault(word, []).append(at)
    for at, text in enumerate(texts):
        words = set(text.lower().split())
        rare = sorted(words, key=lambda word: len(where.get(word, ())))[: len(words) // 3 + 1]
        for other in {o for word in rare for o in where.get(word, ()) if others is not None or o > at}:
            if len(words & targets[other]) >= 0.85 * len(words | targets[other]):
                yield text, (texts if others is None else others)[other]


def normalised(text: str) -> str:
    """What is left of a text when case, spacing, stops and contractions are evened out."""
    text = text.lower().replace("\u2019", "'")
    for short, long in (("what's", "what is"), ("n't", " not"), ("'m", " am"), ("'re", " are"), ("'s ", " is ")):
        text = text.replace(short, long)
    return " ".join(re.findall(r"\w+", text))


def test_embedded_sample_has_its_categories_benign_rows_and_near_misses():
    rows = load_all(["embedded"])
    harmful, benign = rows.filter(pl.col("label") == "harmful"), rows.filter(pl.col("label") == "benign")
    near_misses = benign.filter(pl.col("category").is_not_null())
    counts = Counter(harmful["category"].to_list())
    assert set(counts) == TAXONOMY and min(counts.values()) >= 150
    assert benign.height - near_misses.height >= 300
    assert near_misses.height >= 450 and near_misses.filter(pl.col("split") == "test").height >= 150
    assert set(near_misses["category"]) == TAXONOMY
    assert set(rows["split"]) == {"train", "validation", "test"}
    assert rows.columns == list(PROMPT_COLUMNS) and set(rows.dtypes) == {pl.String}


@pytest.mark.parametrize("name", TAUGHT)
def test_every_taught_row_has_a_response(name):
    assert all(text and text.strip() for text in read(name)["response"])


def test_lessons_teach_alone_and_have_themes_of_their_own():
    rows, sample = read("embedded:lessons"), read("embedded")
    assert rows.columns == sample.columns and set(rows["split"]) == {"train"}
    assert not set(rows["theme"]) & set(sample["theme"]) and not set(rows["id"]) & set(sample["id"])
    kinds = Counter(rows.select("category", "label").rows())
    assert set(kinds) == {(name, label) for name in TAXONOMY for label in ("harmful", "benign")} | {(None, "benign")}
    assert min(kinds.values()) >= 100
    assert load_all(["embedded:lessons"])["dataset"].unique().to_list() == ["embedded:lessons"]


def test_every_category_is_split_by_theme_in_the_same_way():
    kinds = read("embedded").filter(pl.col("category").is_not_null())
    shape = kinds.group_by("category", "split", "label").agg(pl.len(), pl.col("theme").n_unique())
    for split, themes in (("train", 24), ("validation", 6), ("test", 10)):
        for label, each in (("harmful", 5), ("benign", 3)):
            part = shape.filter(split=split, label=label)
            assert part.height == len(TAXONOMY)
            assert set(part["theme"]) == {themes} and set(part["len"]) == {themes * each}


def test_no_theme_straddles_a_split_and_no_prompt_stands_twice():
    rows = pl.concat(read(name).select("prompt", "theme", "split") for name in FILES)
    assert rows.group_by("theme").agg(pl.col("split").n_unique())["split"].max() == 1
    assert len({normalised(text) for text in rows["prompt"]}) == rows.height


def test_no_two_own_prompts_are_near_duplicates():
    paired = pl.concat(
        read(name).select("prompt", "pair")
        for name in ("embedded:traffic", "embedded:held-out", "embedded:contrasts", "embedded:kinds")
    )
    pairs = dict(paired.iter_rows())  # made to differ in one thing
    found = near_duplicates(load_all(FILES)["prompt"].to_list())
    assert [two for two in found if pairs.get(two[0]) is None or pairs.get(two[0]) != pairs.get(two[1])] == []


@pytest.mark.skipif(not HUB.is_dir(), reason="needs the mirror of the hub's data sets")
@pytest.mark.parametrize("name", ["coconot", "XSTest", "AdvBench", "do-not-answer", "JBB-Behaviors", "alpaca"])
def test_no_own_prompt_is_taken_from_a_public_set(name):
    theirs: list[str] = []
    for path in HUB.glob(f"*/{name}/*/*.parquet"):
        column = {"do-not-answer": "question", "JBB-Behaviors": "Goal", "alpaca": "instruction"}.get(name, "prompt")
        theirs += pl.read_parquet(path, columns=[column])[column].to_list()
    ours = load_all(FILES)["prompt"].to_list()
    assert theirs and not {normalised(text) for text in ours} & {normalised(text) for text in theirs}
    assert list(near_duplicates(ours, theirs)) == []


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b'{"text": "x"}\n', "no column 'prompt'; it has 'text'"),
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": "  "}\n', "row 2: empty prompt"),
        ("a.jsonl", b'{"prompt": "x", "label": "bad"}\n', "row 1: unknown label 'bad'"),
        ("a.jsonl", b'{"prompt": "x", "id": "1"}\n{"prompt": "y", "id": 1}\n', "row 2: duplicate id '1'"),
        ("a.jsonl", b'{"prompt": "x"}\nnope\n', "line 2: not JSON"),
        ("a.jsonl", b'["x"]\n', "line 1: expected a JSON object"),
        ("a.jsonl", b'{"prompt": ["x"]}\n', "line 1: field 'prompt' must be text"),
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": "\xff"}\n', "line 2: not UTF-8"),
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": "y \\ud800"}\n', "line 2: field 'prompt' holds half a character"),
        ("a.jsonl", b"", "no rows"),
        ("a.csv", b"text,label\nx,benign\n", "no column 'prompt'"),
        ("a.csv", b"prompt,label\n,benign\n", "row 1: empty prompt"),
        ("a.csv", b"prompt\nx\n\ny\n", "row 2: empty prompt"),
        ("a.csv", b"prompt\n", "no rows"),
        ("a.csv", b"", "no rows"),
        ("a.csv", b"prompt\n\xe9t\xe9\n", "line 2: not UTF-8"),
        ("a.parquet", b"PAR1 not really", "not a readable parquet file"),
        ("a.doc", b"x", "unknown data"),
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


def test_blank_lines_at_the_end_and_capital_suffixes_are_no_fault(tmp_path):
    (tmp_path / "MY.CSV").write_bytes(b"prompt\r\nHow?\r\n\r\n  \n\n")
    (tmp_path / "my.JsonL").write_text('{"prompt": "\\ud83d\\ude00 How?"}\n\n')
    assert load_all([str(tmp_path / "MY.CSV")])["prompt"].to_list() == ["How?"]
    assert load_all([str(tmp_path / "my.JsonL")])["prompt"].to_list() == ["😀 How?"]


def test_rows_without_a_split_serve_every_split():
    rows = pl.DataFrame({"split": ["train", "test", None]})
    assert for_split(rows, "test")["split"].to_list() == ["test", None]
