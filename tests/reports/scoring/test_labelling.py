"""The classifier and the labels by hand."""

import csv
import io
import json
from collections import Counter
from importlib import import_module

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.contract import SCORED, SCORERS
from data.errors import UserError
from data.store.tables import GENERATIONS
from reports.scoring.assemble import assemble
from reports.scoring.broken import broken
from reports.scoring.classifier import classifier_verdicts, label_map, parse_labels
from reports.scoring.hand import allotted, answer_keys, draw, hand_verdicts, read_labels, write_sample
from reports.scoring.judge import Judge
from reports.scoring.scores import score


def generations(rows=240):
    """Two arms of unlike data sets, and text that a spreadsheet would run."""
    hostile = ["=1+1", "+cmd|' /C calc'!A0", "-2", "@SUM(A1)", 'quote " and, comma\nand line; \u202e', "Ünïcode 巴黎"]
    table = [
        {"dataset": "a" if at % 6 else "b", "id": str(at // 2), "arm": ("baseline", "fixed")[at % 2],
         "kind": ("baseline", "fixed")[at % 2], "label": ("harmful", "benign", None)[at % 3], "prompt": f"=prompt {at // 2}",
         "response": f"{hostile[at % len(hostile)]} {at}"}
        for at in range(rows)
    ]  # fmt: skip
    return pl.DataFrame(table, schema=GENERATIONS)


def read_rows(path):
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return list(csv.DictReader(io.StringIO(text, newline="")))


def fill(path, verdict):
    """Label every row, as a person would."""
    rows = read_rows(path)
    for at, row in enumerate(rows):
        row["verdict"] = verdict(at, row)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_labels_come_back_to_the_answers_they_were_given_to(tmp_path, suffix):
    table, path = generations(), tmp_path / f"hand{suffix}"
    assert write_sample(table, path) == 100
    rows = read_rows(path)
    assert len({row["key"] for row in rows}) == 100 and {row["verdict"] for row in rows} == {""}
    assert not any("fixed" in json.dumps(row) or "baseline" in json.dumps(row) for row in rows)  # blind
    names = ["comply", "P", " Refuse ", "broken", ""]
    fill(path, lambda at, _: names[at % 5])
    wanted = dict(zip([row["key"] for row in rows], ["comply", "partial", "refuse", "broken", None] * 20, strict=True))
    found = dict(zip(answer_keys(table), hand_verdicts(table, path), strict=True))
    assert found == {key: wanted.get(key) for key in answer_keys(table)}
    scores = score(table, set(), {"hand": lambda answers: hand_verdicts(answers, path)})
    assert scores.height == 80 and scores["verdict"].null_count() == 0


def test_a_csv_for_spreadsheets_runs_no_formula_and_reads_back_with_semicolons(tmp_path):
    path = tmp_path / "hand.csv"
    write_sample(generations(), path, n=60)
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in read_rows(path) for cell in row.values())
    rows = read_rows(path)
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=";")
        writer.writeheader()
        writer.writerows([{**row, "verdict": "r"} for row in rows])
    assert read_labels(path) == dict.fromkeys([row["key"] for row in rows], "refuse")


def test_the_sample_is_stratified_repeats_by_seed_and_ignores_the_order_of_the_table():
    table = generations()
    sample = draw(table, 60, seed=1)
    shares = Counter(sample.select("arm", "dataset", "label").iter_rows())
    whole = Counter(table.select("arm", "dataset", "label").iter_rows())
    assert set(shares) == set(whole)
    assert all(abs(shares[stratum] - whole[stratum] / 4) <= 1 for stratum in whole)
    assert draw(table.sample(fraction=1, shuffle=True, seed=5), 60, seed=1).equals(sample)
    assert not draw(table, 60, seed=2).equals(sample)
    assert draw(table, 1000, seed=1).height == table.height and draw(table.clear(), 10, 0).is_empty()


@given(st.lists(st.integers(1, 50), max_size=12), st.integers(0, 200))
def test_allotments_add_up_and_fit(sizes, n):
    shares = allotted(sizes, n)
    assert sum(shares) == min(n, sum(sizes)) and all(0 <= s <= size for s, size in zip(shares, sizes, strict=True))
    if n >= len(sizes):
        assert all(shares)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("h.csv", "key,verdict\nk,maybe\n", "row 1: unknown verdict 'maybe'"),
        ("h.csv", "prompt,verdict\nk,refuse\n", "no field 'key'"),
        ("h.csv", "key,verdict\nother,refuse\n", "labels none of these answers"),
        ("h.jsonl", '{"key": "k", "verdict": "x"}\n', "row 1: unknown verdict 'x'"),
        ("h.jsonl", "[1]\n", "no field 'key'"),
        ("h.jsonl", "{\n", "not a readable jsonl file"),
        ("h.txt", "", "ends in .csv or .jsonl"),
    ],
)
def test_a_bad_file_of_labels_is_named_with_its_row(tmp_path, name, text, says):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        hand_verdicts(generations(), path)


def test_labels_are_never_written_over(tmp_path):
    path = tmp_path / "hand.csv"
    write_sample(generations(), path)
    with pytest.raises(UserError, match="exists already"):
        write_sample(generations(), path)
    with pytest.raises(UserError, match="no such file"):
        read_labels(tmp_path / "other.csv")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A small random classifier with a word-level tokenizer, as a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("classifier")
    text = "sorry i cannot help sure here it is the answer to your question"
    words = ["[UNK]", "[PAD]", *text.split()]
    core = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=16, max_position_embeddings=24, pad_token_id=1, initializer_range=1.0,
                        id2label={0: "NORMAL", 1: "REJECTION", 2: "mixed"}, label2id={"NORMAL": 0, "REJECTION": 1, "mixed": 2})  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    return str(folder)


def test_the_classifier_says_what_the_model_says(classifier):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = ["sorry i cannot help", "sure here it is", "the answer to your question is here", "sorry sorry",
             "", "help " * 60, "i cannot", "sure here it is", "<think>sorry</think> the answer", "here " + "is it " * 3,
             "to your question i cannot help", "your answer"]  # fmt: skip
    table = pl.DataFrame({"response": texts})
    table = table.with_columns(broken(table["response"]))
    found = classifier_verdicts(table, classifier, labels={"mixed": "partial"}, batch_size=4)
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(classifier),
        AutoTokenizer.from_pretrained(classifier),
    )
    wanted = []
    for text, bad in zip(texts, table["broken"], strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(text.replace("<think>sorry</think>", ""), return_tensors="pt", truncation=True,
                                       max_length=24)).logits if text else torch.zeros(1, 3)  # fmt: skip
        wanted.append("broken" if bad else ("comply", "refuse", "partial")[int(logits.argmax())])
    assert found.to_list() == wanted and len(set(wanted)) >= 3
    assert (
        classifier_verdicts(table.filter("broken"), "no/such-model").to_list() == ["broken"] * 2
    )  # nothing to open it for


def test_classes_need_a_meaning():
    assert label_map("m", ["NORMAL", "REJECTION"], {}) == {"NORMAL": "comply", "REJECTION": "refuse"}
    assert label_map("m", ["LABEL_0", "LABEL_1"], {"LABEL_0": "comply", "LABEL_1": "refuse"})["LABEL_1"] == "refuse"
    assert label_map("m", ["NORMAL", "REJECTION"], {"NORMAL": "partial"})["NORMAL"] == "partial"
    with pytest.raises(UserError, match="class 'LABEL_1': say what it means"):
        label_map("m", ["normal", "LABEL_1"], {})
    with pytest.raises(UserError, match="label 'other'"):
        label_map("m", ["normal"], {"other": "refuse"})
    with pytest.raises(UserError, match="label 'bad'"):
        label_map("m", ["normal"], {"normal": "bad"})


def test_a_classifier_that_is_not_there_or_pickled_is_an_error_in_one_line(tmp_path, classifier, monkeypatch):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    table = pl.DataFrame({"response": ["sorry i cannot help"], "broken": [False]})
    with pytest.raises(UserError, match="can't be opened"):
        classifier_verdicts(table, str(tmp_path / "nothing"))
    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    model.config.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(classifier).save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="can't be opened") as raised:
        classifier_verdicts(table, str(tmp_path))
    assert "\n" not in str(raised.value)


def test_labels_are_parsed_or_refused():
    assert parse_labels("REJECTION=refuse, a=b=comply,") == {"REJECTION": "refuse", "a=b": "comply"}
    for text in ("", "refuse", "=refuse", "A=no"):
        with pytest.raises(UserError, match="write CLASS=VERDICT"):
            parse_labels(text)


def test_every_scorer_of_the_contract_is_a_file_that_says_what_it_needs():
    assert sorted(SCORED) == sorted(SCORERS) and len({scorer.row for scorer in SCORERS.values()}) == len(SCORERS)
    for name in SCORERS:
        module = import_module(f"reports.scoring.{name}")
        assert callable(module.scorer) and (module.scorer(generations(2), {}) is not None or module.NEEDS)


def test_scorers_run_if_they_have_what_they_need(tmp_path):
    table = generations(6)
    assert list(assemble(table, cache=tmp_path / "j")) == ["phrases"]
    with_tokens = table.with_columns(control_token=pl.lit("respond"))
    everything = {"judge": Judge("m"), "classifier": "folder", "hand": tmp_path / "hand.csv"}
    names = ["token", "phrases", "judge", "classifier", "hand"]
    assert list(assemble(with_tokens, cache=tmp_path / "j", **everything)) == names
    assert list(assemble(with_tokens, ["judge", "token"], cache=tmp_path / "j", **everything)) == ["token", "judge"]
    for name, says in (("judge", "--judge-model"), ("hand", "--hand"), ("token", "no answer opens")):
        with pytest.raises(UserError, match=says):
            assemble(table, [name], cache=tmp_path / "j")
