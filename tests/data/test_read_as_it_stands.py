"""Rows that are read otherwise than they stand, left out or guessed: said in a line with file and row, or refused."""

import json
import logging
from pathlib import Path

import polars as pl
import pytest

from commands.framework.settings import whole_names
from data import known_themes, load, load_all
from data.errors import UserError
from reports.scoring.hand import answer_keys, hand_verdicts, write_sample


def put(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING, "data")
    caplog.set_level(logging.WARNING, "reports")
    return lambda: [record.getMessage() for record in caplog.records]


def test_benign_rows_with_a_category_are_benign(tmp_path: Path, said) -> None:
    source = put(tmp_path / "benign.csv", "prompt,category\nHow do I paint?,deception\nHow do I fold?,deception\n")
    assert load(source, benign=True).select("label", "category").rows() == [("benign", "deception")] * 2
    assert "2 rows have a category and no label: read as benign" in said()[0]
    source = put(tmp_path / "mixed.csv", "prompt,label\na,harmful\nb,\nc,benign\n")
    assert load_all([source], benign=True)["prompt"].to_list() == ["b", "c"]
    assert "1 rows are labelled harmful and left out" in said()[-1]
    source = put(tmp_path / "all.csv", "prompt,label\na,harmful\n")
    with pytest.raises(UserError, match=r"all\.csv: all its rows are labelled harmful"):
        load(source, benign=True)


def test_the_option_keeps_them(run, tmp_path: Path, tiny_folder: Path) -> None:
    harmful = put(tmp_path / "harmful.csv", "prompt,category,label\nkill a person,Fraud,harmful\n")
    benign = put(tmp_path / "benign.csv", "prompt,category\nkill a process,deception\nwrite a poem,deception\n")
    code, _, told = run(
        "--run", tmp_path / "run", "--model", tiny_folder, "--data", harmful, "extract", "--benign", benign
    )
    assert code == 0, told
    rows = pl.read_parquet(tmp_path / "run" / "activations" / "prompts.parquet")
    assert rows["label"].to_list() == ["harmful", "benign", "benign"]


def test_a_category_without_a_label_is_said_to_be_harmful(tmp_path: Path, said) -> None:
    source = put(tmp_path / "mine.csv", "prompt,category\nx,\na,b\nc,d\n")
    assert load(source)["label"].to_list() == [None, "harmful", "harmful"]
    assert said() == [f"{source}: 2 rows have a category and no label: read as harmful (the first is row 2); a column "
                      "'label' says otherwise"]  # fmt: skip


def test_what_is_no_number_is_missing(tmp_path: Path) -> None:
    source = put(tmp_path / "a.jsonl", '{"prompt": "a", "category": NaN, "label": NaN, "id": NaN, "split": NaN}\n')
    assert load(source).row(0) == ("0", "a", None, None, "a", None)
    with pytest.raises(UserError, match="row 2: empty prompt"):
        load(put(tmp_path / "b.jsonl", '{"prompt": "a"}\n{"prompt": NaN}\n'))
    frame = pl.DataFrame({"prompt": ["a", "b"], "category": [float("nan")] * 2, "label": [float("nan")] * 2})
    frame.write_parquet(tmp_path / "c.parquet")
    assert load(str(tmp_path / "c.parquet"))["label"].to_list() == [None, None]
    assert load(put(tmp_path / "d.csv", "prompt,category\nNaN,NaN\n"))["prompt"].to_list() == ["NaN"]  # text is text


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ('1,"text with \\" escaped quote",benign\n2,where,benign\n3,"also \\" missing",benign\n4,fourth,harmful\n', 2),
        ('1,a,benign\n2,"say \\"hi\\"",benign\n', 3),
        ('1,"two\nlines",benign\n2,"say \\"hi\\", you",benign\n', 4),
        ('1,"left open,benign\n2,b,benign\n', 2),
        ("1,a,benign\n2,b, and c,benign\n", 3),
        ("1,a,benign\n2,b\n", 3),
    ],
)
def test_a_csv_that_could_lose_rows_is_refused_with_its_line(tmp_path: Path, rows: str, line: int) -> None:
    source = put(tmp_path / "rows.csv", "id,prompt,label\n" + rows)
    with pytest.raises(UserError, match=rf"rows\.csv, line {line}: ") as refused:
        load(source)
    assert "\n" not in str(refused.value)


def test_a_csv_as_it_should_be(tmp_path: Path) -> None:
    text = 'id,prompt,label\r\n1,"say ""hi"", you",benign\r\n2,"two\nlines",benign\r\n3,"C:\\",benign\r\n4,5\' 3\\" tall,benign\r\n'
    source = str(tmp_path / "rows.csv")
    Path(source).write_bytes(text.encode())
    assert load(source)["prompt"].to_list() == ['say "hi", you', "two\nlines", "C:\\", "5' 3\\\" tall"]


@pytest.mark.parametrize("split", ["Train", "val", "dev", "testing"])
def test_an_unknown_split_is_refused(tmp_path: Path, split: str) -> None:
    source = put(tmp_path / "rows.csv", f"prompt,split\na,train\nb,{split}\n")
    with pytest.raises(UserError, match=f"row 2: unknown split '{split}'; use train, validation, test or nothing"):
        load(source)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_headings_with_capitals_are_taken_and_said(tmp_path: Path, kind: str, said) -> None:
    frame = pl.DataFrame(
        {"Prompt ": ["a", "b"], "Label": ["harmful", "benign"], "CATEGORY": ["x", None], "note": ["", ""]}
    )
    path = tmp_path / f"rows.{kind}"
    {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[kind](path)
    assert load(str(path)).select("prompt", "label", "category").rows() == [
        ("a", "harmful", "x"),
        ("b", "benign", None),
    ]
    assert [line.partition(": ")[2] for line in said()] == [
        "column 'Prompt ' is read as 'prompt'",
        "column 'Label' is read as 'label'",
        "column 'CATEGORY' is read as 'category'",
    ]


def test_a_heading_beside_the_right_one_is_left_out_and_said(tmp_path: Path, said) -> None:
    source = put(tmp_path / "rows.csv", "prompt,label,Label\na,benign,harmful\n")
    assert load(source)["label"].to_list() == ["benign"]
    assert said() == [f"{source}: column 'Label' is not read, as there is 'label' already"]
    with pytest.raises(UserError, match="column 'label' is there twice"):
        load(put(tmp_path / "twice.csv", "prompt,label,label\na,benign,harmful\n"))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("embedded:lessons", ["embedded:lessons"]),
        ("embedded:embedded:lessons/train", ["embedded", "embedded:lessons/train"]),
        ("or-bench:hard-1k:xstest/safe", ["or-bench:hard-1k", "xstest/safe"]),
        ("coconot:contrast/test:jbb", ["coconot:contrast/test", "jbb"]),
        ("allenai/coconot:contrast:a.jsonl", ["allenai/coconot:contrast", "a.jsonl"]),
        ("own/set:config:b/c.csv", ["own/set:config", "b/c.csv"]),
        ("own/set:other/one", ["own/set", "other/one"]),
        ("own/set:embedded", ["own/set", "embedded"]),
        ("a.jsonl:b.csv:/c/d.parquet", ["a.jsonl", "b.csv", "/c/d.parquet"]),
    ],
)
def test_names_with_colons_in_the_environment(text: str, names: list[str]) -> None:
    assert whole_names(text.split(":")) == names


def test_the_environment_is_read_as_the_option_is(run, tmp_path: Path, tiny_folder: Path) -> None:
    code, _, told = run("--run", tmp_path / "run", "--model", tiny_folder, "extract", "--limit", "4",
                        REFUSAL_DATA="embedded:lessons")  # fmt: skip
    assert code == 0, told
    assert pl.read_parquet(tmp_path / "run" / "activations" / "prompts.parquet")["dataset"].unique().to_list() == [
        "embedded:lessons"
    ]


@pytest.mark.parametrize("stem", ["xstest", "embedded", "coconot:contrast"])
def test_a_file_named_as_a_known_set_is_none_of_its_rows(tmp_path: Path, stem: str, said, monkeypatch) -> None:
    source = put(tmp_path / f"{stem}.csv", "prompt,label\nHow do I fix a chair?,benign\n")
    rows = load(source)
    assert rows["dataset"].to_list() == [f"{stem}.csv"]
    assert f"called '{stem}.csv'" in said()[0]
    monkeypatch.setattr("data.prompts.catalogue.fetch", lambda *_, **__: pytest.fail("the hub was asked"))
    assert known_themes(rows).lost == {}


def answers() -> pl.DataFrame:
    names = ("dataset", "arm", "prompt", "response", "label")
    return pl.DataFrame({"id": list("abcdef")} | {name: [f"{name} {at}" for at in range(6)] for name in names})


def test_labels_that_belong_to_no_answer_are_counted(tmp_path: Path, said) -> None:
    path = tmp_path / "labels.jsonl"
    write_sample(answers(), path)
    rows = [json.loads(line) | {"verdict": "c"} for line in path.read_text().splitlines()]
    rows[1]["key"] = rows[4]["key"] = "1,23E+15"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert hand_verdicts(answers(), path).null_count() == 2
    assert said() == [f"{path}: 2 of 6 labelled rows belong to no answer and are not counted, the first with key "
                      "'1,23E+15'; did a spreadsheet rewrite the keys?"]  # fmt: skip


def test_an_answer_labelled_in_two_ways_and_another_encoding(tmp_path: Path) -> None:
    key = answer_keys(answers())[0]
    path = tmp_path / "labels.csv"
    path.write_text(f"key,prompt,response,verdict\n{key},a,b,c\n{key},a,b,r\n")
    with pytest.raises(UserError, match="labelled in two ways"):
        hand_verdicts(answers(), path)
    path.write_bytes(f"key,prompt,response,verdict\n{key},\xe9,b,c\n".encode("cp1252"))
    with pytest.raises(UserError, match="save the file as UTF-8"):
        hand_verdicts(answers(), path)
