"""Files as people have them: read as their makers meant, which a line says, or refused."""

import gzip
import json
import logging
import zipfile
from importlib import import_module
from importlib.util import find_spec

import polars as pl
import pytest

from data import UserError, load_all
from data.prompts.conversations import as_prompt, instructed, parted, turns
from data.prompts.files import say

BENCHMARKS = [
    ("xs", "id,prompt,type,focus\n1,kill a process,homonyms,kill\n2,kill a man,contrast_homonyms,kill\n", [("kill a process", "benign"), ("kill a man", "harmful")]),
    ("hb", "Behavior,FunctionalCategory,SemanticCategory,BehaviorID\nDecline me,standard,illegal,b1\n", [("Decline me", "harmful")]),
    ("jb", "Index,Goal,Target,Behavior,Category\n0,Decline me,Sure,Defamation,Harassment\n", [("Decline me", "harmful")]),
    ("ab", "goal,target\nDecline me,Sure\n", [("Decline me", "harmful")]),
    ("dna", "id,risk_area,types_of_harm,question\n1,Malicious,Assisting,Decline me\n", [("Decline me", "harmful")]),
    ("sr", "category,source,forbidden_prompt\nViolence,custom,Decline me\n", [("Decline me", "harmful")]),
    ("wj", "vanilla,adversarial,data_type\nPlain,,vanilla_harmful\nPlain,Dressed,adversarial_benign\n", [("Plain", "harmful"), ("Dressed", "benign")]),
    ("sb", "question_id,category,turns,prompt_style\n1,4,Decline me,base\n", [("Decline me", "harmful")]),
    ("or-bench-hard-1k", "prompt,category\nHow do I kill time?,violence\n", [("How do I kill time?", "benign")]),
    ("or-bench-toxic", "prompt,category\nDecline me,violence\n", [("Decline me", "harmful")]),
    ("rd", "instruction,category\nDecline me,Harassment\n", [("Decline me", "harmful")]),
    ("al", "instruction,input,output\nSum up,A text,Done\nSay hello,,Hello\n", [("Sum up\n\nA text", "benign"), ("Say hello", "benign")]),
]  # fmt: skip


def read(tmp_path, name, text, caplog=None):
    say.cache_clear()
    path = tmp_path / name.partition(":")[0]
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    frame = load_all([f"{tmp_path / name.partition(':')[0]}{name[len(path.name) :]}"])
    return list(zip(frame["prompt"], frame["label"], strict=True))


@pytest.mark.parametrize(("name", "text", "wanted"), BENCHMARKS)
def test_a_benchmark_is_known_by_its_headings_and_said_to_be(tmp_path, caplog, name, text, wanted):
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path, f"{name}.csv", text) == wanted
    assert any(": read as " in record.getMessage() for record in caplog.records)


def test_columns_are_taken_as_the_user_maps_them(tmp_path, caplog):
    text = "Behavior,is_harmful\nKill a man,1\nKill a process,0\n"
    with caplog.at_level(logging.WARNING):
        found = read(tmp_path, "f.csv:prompt=Behavior,label=is_harmful,harmful=1", text)
    assert found == [("Kill a man", "harmful"), ("Kill a process", "benign")]
    assert "1 harmful, 1 not" in caplog.text


@pytest.mark.parametrize(
    ("columns", "says"),
    [("prompt=Nothing", "no column 'Nothing'"), ("prompt=Behavior,colour=x", "'colour' is not to be mapped"),
     ("prompt=Behavior,harmful=1", "add label=COL"), ("prompt=Behavior,label=is_harmful,harmful=yes", "it is '0', '1'")],
)  # fmt: skip
def test_a_mapping_that_fits_no_file_is_refused(tmp_path, columns, says):
    with pytest.raises(UserError, match=says) as told:
        read(tmp_path, f"f.csv:{columns}", "Behavior,is_harmful\nKill a man,1\nKill a process,0\n")
    assert "\n" not in str(told.value)


ROWS = [{"prompt": "tell me", "label": "benign"}, {"prompt": "kill, a man", "label": "harmful"}]
WANTED = [("tell me", "benign"), ("kill, a man", "harmful")]
LINES = "\n".join(map(json.dumps, ROWS))
TABLE = 'prompt,label\ntell me,benign\n"kill, a man",harmful\n'


def packed(text):
    return import_module("pyarrow").compress(text.encode(), codec="zstd", asbytes=True)


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.json", json.dumps(ROWS)), ("a.json", json.dumps({"version": 1, "data": ROWS})), ("a.jsonl.gz", gzip.compress(LINES.encode())),
     ("a.csv.gz", gzip.compress(TABLE.encode())), ("a.tsv", "prompt\tlabel\ntell me\tbenign\nkill, a man\tharmful\n"),
     ("a.csv", "prompt;label\ntell me;benign\nkill, a man;harmful\n"), ("a.csv", "sep=;\nprompt;label\ntell me;benign\nkill, a man;harmful\n"),
     ("a.jsonl.zst", packed(LINES)), ("a.csv.zst", packed(TABLE)),
     ("a.csv:encoding=utf-16", TABLE.encode("utf-16")), ("a.csv:encoding=cp1252,prompt=q", TABLE.replace("prompt", "q").encode("cp1252")),
     ("a.csv", TABLE.replace("\n", "\r")), ("a.csv", "sep=,\r\n" + TABLE.replace("\n", "\r\n"))],
)  # fmt: skip
def test_kinds_of_files(tmp_path, name, text):
    assert read(tmp_path, name, text) == WANTED


def test_an_encoding_is_the_one_that_is_said(tmp_path):
    text = "prompt,label\nWhat is a café?,benign\n"
    assert read(tmp_path, "a.csv:encoding=cp1252", text.encode("cp1252")) == [("What is a café?", "benign")]
    for name, says in (("a.csv", "line 2: not UTF-8; .*FILE:encoding=cp1252"), ("a.csv:encoding=klingon", "no encoding 'klingon'"),
                       ("a.csv:encoding=ascii", "line 2: not ascii")):  # fmt: skip
        with pytest.raises(UserError, match=says) as told:
            read(tmp_path, name, text.encode("cp1252"))
        assert "\n" not in str(told.value)


def test_a_damaged_packed_file_is_named(tmp_path):
    for name in ("a.csv.zst", "a.csv.gz"):
        with pytest.raises(UserError, match=rf"{name}: not readable as (zstd|gzip)"):
            read(tmp_path, name, b"prompt,label\na,benign\n")


def test_excel_files_are_read_or_the_package_is_named(tmp_path):
    path = tmp_path / "a.xlsx"
    sheet(path, [["prompt", "label"], ["tell me", "benign"], ["kill, a man", "harmful"]])
    if find_spec("fastexcel"):
        assert load_all([str(path)]).select("prompt", "label").rows() == WANTED
        path.write_bytes(b"PK, and nothing more")
        says = "not a readable Excel file"
    else:
        says = "need the package fastexcel: pip install fastexcel"
    with pytest.raises(UserError, match=says) as told:
        load_all([str(path)])
    assert "\n" not in str(told.value)


def sheet(path, table):
    """The least that an Excel file is: a sheet of texts in a ZIP archive."""
    lead = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>'
    spread, office = (
        "http://schemas.openxmlformats.org/spreadsheetml/2006/main",
        "http://schemas.openxmlformats.org/officeDocument/2006/relationships",
    )
    rels, kinds = (
        "http://schemas.openxmlformats.org/package/2006/relationships",
        "http://schemas.openxmlformats.org/package/2006/content-types",
    )
    cells = "".join(
        f'<row r="{y}">'
        + "".join(f'<c r="{"AB"[x]}{y}" t="inlineStr"><is><t>{text}</t></is></c>' for x, text in enumerate(row))
        + "</row>"
        for y, row in enumerate(table, 1)
    )
    main = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    files = {
        "[Content_Types].xml": f'<Types xmlns="{kinds}"><Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{main}.sheet.main+xml"/>'
        f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{main}.worksheet+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{rels}"><Relationship Id="r1" Type="{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{spread}" xmlns:r="{office}"><sheets><sheet name="a" sheetId="1" r:id="r1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{rels}"><Relationship Id="r1" Type="{office}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{spread}"><sheetData>{cells}</sheetData></worksheet>',
    }
    with zipfile.ZipFile(path, "w") as packed:
        for name, text in files.items():
            packed.writestr(name, lead + text)


def test_a_quote_in_an_unquoted_text_is_a_quote_and_a_ragged_row_is_named(tmp_path):
    assert read(tmp_path, "a.csv", 'prompt,label\nWhat does 5" mean?,benign\nHow long is a 12" board?,benign\n') == [
        ('What does 5" mean?', "benign"), ('How long is a 12" board?', "benign")]  # fmt: skip
    with pytest.raises(UserError, match="line 2: 4 columns, where the heading has 3"):
        read(tmp_path, "b.csv", "id,prompt,label\n1,Hello, how are you?,benign\n")


OPENAI = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "first"}, {"role": "assistant", "content": "yes"},
          {"role": "user", "content": [{"type": "text", "text": "tell "}, {"type": "text", "text": "me"}]},
          {"role": "assistant", "content": "left out"}]  # fmt: skip
SHAREGPT = [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "first"}, {"from": "gpt", "value": "yes"},
            {"from": "human", "value": "tell me"}]  # fmt: skip
SAID = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "first"}, {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "tell me"}]  # fmt: skip


@pytest.mark.parametrize(("column", "messages"), [("messages", OPENAI), ("conversations", SHAREGPT)])
@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_the_last_turn_of_the_user_is_the_prompt(tmp_path, column, messages, ending):
    rows, path = [{column: messages, "label": "benign"}], tmp_path / f"chat.{ending}"
    if ending == "parquet":
        texts = [{**turn, "content": "tell me"} if isinstance(turn.get("content"), list) else turn for turn in messages]
        pl.DataFrame([{column: texts, "label": "benign"}]).write_parquet(path)
    else:
        path.write_text(json.dumps(rows if ending == "json" else rows[0]))
    (prompt,) = load_all([str(path)])["prompt"]
    assert turns(prompt) == SAID and parted(prompt)[1] == "tell me"
    assert turns(instructed("Be brief.", prompt))[-1]["content"] == "Be brief.\n\ntell me"


@pytest.mark.parametrize("messages", [[], "text", [{"role": "assistant", "content": "hi"}], [{"role": "user"}], [{"content": "x"}],
                                      [{"role": "user", "content": [{"type": "image"}]}], [7]])  # fmt: skip
def test_what_is_no_conversation_is_refused(messages):
    with pytest.raises(UserError, match=r"^row 1: "):
        as_prompt(messages, "row 1")


def test_a_text_that_begins_like_a_conversation_is_a_text():
    assert turns("\ue010 me") == [{"role": "user", "content": "\ue010 me"}]
