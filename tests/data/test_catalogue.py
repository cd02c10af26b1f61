"""Data sets of the hub: every declaration reads, counts agree with the files, and each failure says what to do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data import PROMPT_COLUMNS, UserError, load, load_all, themes
from data.prompts.catalogue import CATALOGUE, TAXONOMY, table
from data.prompts.sample import FILES, read
from tests import ROOT, SHARED
from tests.faults.hub import serve
from tests.made.mirror import KNOWN, put, put_known

HUB = SHARED / "hub"
needs_hub = pytest.mark.skipif(not HUB.is_dir(), reason="needs the mirror of the hub's data sets")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("known", CATALOGUE, ids=lambda known: known.name)
def test_every_declaration_reads_its_columns(known, tmp_path):
    put_known(tmp_path, known.name)
    for source in (known.name, known.hub + (f":{known.config}" if known.config else "")):
        rows = load(source, tmp_path)
        assert rows.columns == list(PROMPT_COLUMNS) and set(rows.dtypes) == {pl.String}
        assert rows.height == len(known.splits)
        assert rows["label"].is_in(["harmful", "benign"]).all() and set(rows["dataset"]) == {known.name}
        assert rows["split"].to_list() == list(known.splits.values())
        assert rows["prompt"].str.contains("some|request").all()
    assert themes(rows, tmp_path)["theme"].is_null().all() is not known.has_themes


@needs_hub
@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("coconot", "allenai/coconot/original/test"),
        ("coconot:original/test", "allenai/coconot/original/test"),
        ("coconot:contrast/test", "allenai/coconot/contrast/test"),
        ("coconot:pref", "allenai/coconot/pref/train"),
        ("xstest", "walledai/XSTest/default/test"),
        ("walledai/XSTest", "walledai/XSTest/default/test"),
        ("advbench", "walledai/AdvBench/default/train"),
        ("do-not-answer", "LibrAI/do-not-answer/default/train"),
        ("jbb/harmful", "JailbreakBench/JBB-Behaviors/behaviors/harmful"),
        ("JailbreakBench/JBB-Behaviors/benign", "JailbreakBench/JBB-Behaviors/behaviors/benign"),
        ("alpaca", "tatsu-lab/alpaca/default/train"),
        ("gsm8k/test", "openai/gsm8k/main/test"),
    ],
)
def test_a_mirror_gives_the_rows_of_its_files_in_their_order(source, file):
    raw = pl.read_parquet(HUB / f"{file}.parquet")
    column = next(c for c in ("prompt", "question", "Goal", "instruction") if c in raw.columns)
    rows = load(source, HUB)
    assert rows["prompt"].to_list() == raw[column].to_list()


@needs_hub
@pytest.mark.parametrize("name", ["coconot:contrast", "coconot:pref", "xstest", "advbench", "do-not-answer", "jbb"])
def test_the_counts_in_the_table_are_those_of_the_sets(name):
    assert load(name, HUB).height == KNOWN[name].rows


@needs_hub
def test_labels_and_categories_mean_what_the_sets_mean():
    xstest = pl.read_parquet(HUB / "walledai/XSTest/default/test.parquet")
    safe, unsafe = load("xstest/safe", HUB), load("xstest/unsafe", HUB)
    assert safe["prompt"].to_list() == xstest.filter(pl.col("label") == "safe")["prompt"].to_list()
    assert set(safe["label"]) == {"benign"} and set(unsafe["label"]) == {"harmful"} and unsafe.height == 200
    assert load("xstest/benign", HUB).equals(safe)
    for source, label, split in (
        ("original", "harmful", "test"),
        ("contrast", "benign", "test"),
        ("pref", "benign", "train"),
    ):
        raw = pl.read_parquet(HUB / f"allenai/coconot/{source}/{split}.parquet")
        rows = load(f"coconot:{source}", HUB)
        assert rows["category"].to_list() == raw["category"].to_list() and set(rows["category"]) <= set(TAXONOMY)
        assert rows["id"].to_list() == raw["id"].to_list()
        assert set(rows["label"]) == {label} and set(rows["split"]) == {split}
        assert themes(rows, HUB)["theme"].to_list() == raw["subcategory"].to_list()


@needs_hub
def test_sets_stack_and_a_set_given_twice_is_refused():
    rows = load_all(["embedded", "coconot:contrast", "xstest", "jbb", "advbench"], HUB)
    assert rows.height == load("embedded").height + 379 + 450 + 200 + 520
    with pytest.raises(UserError, match="comes from two --data sources"):
        load_all(["xstest", "walledai/XSTest/safe"], HUB)


def test_a_part_has_the_ids_it_has_in_the_whole(tmp_path):
    put_known(tmp_path, "xstest", prompt=["a", "b", "c"], label=["safe", "unsafe", "safe"])
    put_known(tmp_path, "jbb", Index=[0, 1])
    put_known(tmp_path, "gsm8k", question=["p", "q"])
    for name, parts in (("xstest", ("safe", "unsafe")), ("jbb", ("harmful", "benign")), ("gsm8k", ("train", "test"))):
        whole = load(name, tmp_path)
        pieces = pl.concat([load(f"{name}/{part}", tmp_path) for part in parts])
        assert whole.sort("id").equals(pieces.sort("id")) and whole["id"].n_unique() == whole.height
    assert load("gsm8k/test", tmp_path)["id"].to_list() == ["test-0", "test-1"]
    assert load("xstest/unsafe", tmp_path)["id"].to_list() == ["1"]


def test_rows_that_the_papers_leave_out_are_left_out(tmp_path):
    put_known(tmp_path, "wildguard:test", prompt_harm_label=["harmful", None, "unharmful"], subcategory=["x", "y", "z"])
    rows = load("wildguard", tmp_path)
    assert rows.select("id", "label", "category").rows() == [("0", "harmful", "x"), ("2", "benign", None)]
    put_known(tmp_path, "sorry-bench", prompt_style=["slang", "base"], question_id=[1, 2], turns=[["a"], ["b", "c"]])
    assert load("sorry-bench", tmp_path).select("id", "prompt").rows() == [("2", "b")]
    put_known(tmp_path, "alpaca", instruction=["Add.", "Sing.", " "], input=["1, 2", "", ""])
    assert load("alpaca", tmp_path)["prompt"].to_list() == ["Add.\n\n1, 2", "Sing."]


def test_prompts_are_put_together_as_their_authors_do(tmp_path):
    put_known(tmp_path, "harmbench:contextual", context=["A text."], prompt=["Use it."])
    assert load("harmbench:contextual", tmp_path)["prompt"].to_list() == ["A text.\n\n---\n\nUse it."]
    put_known(tmp_path, "mmlu", "test", question=["2 + 2?"], choices=[["1", "2", "3", "4"]])
    assert load("mmlu/test", tmp_path)["prompt"].to_list() == ["2 + 2?\nA. 1\nB. 2\nC. 3\nD. 4"]
    put_known(
        tmp_path, "coconot:contrast", category=[" requests with Safety concerns", "Something else"], id=["a", "b"]
    )
    assert load("coconot:contrast", tmp_path)["category"].to_list() == [
        "Requests with safety concerns",
        "Something else",
    ]


def test_wildjailbreak_reads_from_tsv_as_from_parquet(tmp_path):
    texts, kinds = ['He said "go",\nthen NA', "NA"], ["adversarial_harmful", "adversarial_benign"]
    for kind in ("tsv", "parquet"):
        put_known(tmp_path / kind, "wildjailbreak", kind=kind, adversarial=texts, data_type=kinds)
        rows = load("wildjailbreak", tmp_path / kind)
        assert rows["prompt"].to_list() == texts and rows["label"].to_list() == ["harmful", "benign"]


def test_any_hub_set_with_a_prompt_column_reads(tmp_path):
    put(
        tmp_path,
        "me/mine",
        None,
        {"train": pl.DataFrame({"prompt": ["a", "b"], "label": ["harmful", None], "x": [1, 2]})},
    )
    rows = load("me/mine", tmp_path)
    assert rows.rows() == [("0", "a", None, "harmful", "me/mine", None), ("1", "b", None, None, "me/mine", None)]
    splits = {split: pl.DataFrame({"id": [1], "prompt": [split]}) for split in ("train", "test")}
    put(tmp_path, "me/two", "big", splits)
    with pytest.raises(UserError, match="duplicate id '1'"):
        load("me/two:big", tmp_path)
    assert load("me/two:big/test", tmp_path).rows() == [("1", "test", None, None, "me/two:big", "test")]
    put(tmp_path, "me/plain", None, {s: pl.DataFrame({"prompt": [s]}) for s in ("validation", "extra")})
    assert load("me/plain", tmp_path).select("id", "split").rows() == [
        ("validation-0", "validation"),
        ("extra-0", None),
    ]
    assert load("me/plain/extra", tmp_path)["id"].to_list() == ["extra-0"]


def test_a_label_stored_as_classes_reads_by_name(tmp_path):
    import datasets

    features = datasets.Features(
        {"prompt": datasets.Value("string"), "label": datasets.ClassLabel(names=["benign", "harmful"])}
    )
    folder = tmp_path / "me" / "classes"
    folder.mkdir(parents=True)
    made = datasets.Dataset.from_dict({"prompt": ["a", "b"], "label": [1, 0]}, features=features)
    made.to_parquet(folder / "train.parquet")
    assert load("me/classes", tmp_path)["label"].to_list() == ["harmful", "benign"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("xtest", r"unknown data 'xtest': did you mean xstest"),
        ("harmbensh:standard", "did you mean harmbench:standard"),
        ("quite something else", "pass a name that `datasets` lists"),
        (
            "coconot:contrst",
            "coconot has no config 'contrst'; there is coconot:original, coconot:contrast, coconot:pref",
        ),
        ("coconot:contrast/train", "coconot:contrast has no part 'train'; it has test, harmful, benign"),
        ("advbench/benign", "advbench: no rows in benign"),
        ("gsm8k/train", "gsm8k: no split 'train'; there is test"),
        ("strongreject", r"has no walledai/StrongREJECT: fetch it with `hf download .*`, or leave --data-mirror out"),
        ("me/nothing", "has no me/nothing"),
        ("me/mine", "me/mine: no column 'prompt'; it has 'text'"),
        ("me/mine:big", "me/mine has no config 'big'; it has default"),
        ("me/good/dev", "me/good has no split 'dev'; it has train"),
        ("me/many", "me/many: name a config, me/many:one, two"),
        ("me/chats", r"me/chats: column 'prompt' must be text, not List\(String\)"),
        ("me/torn", "me/torn: not readable as a data set of the hub"),
        ("alpaca", "tatsu-lab/alpaca: no column 'input'; it has 'instruction'"),
        ("xstest", "xstest: 1 rows have a label that this version does not know"),
        ("mmlu", "mmlu: columns of another kind than expected"),
    ],
)
def test_a_wrong_source_says_what_is_wrong_and_what_to_do(source, reason, tmp_path):
    put_known(tmp_path, "coconot:contrast")
    put_known(tmp_path, "advbench")
    put_known(tmp_path, "gsm8k", "test")
    put(tmp_path, "me/mine", None, {"train": pl.DataFrame({"text": ["a"]})})
    put(tmp_path, "me/good", None, {"train": pl.DataFrame({"prompt": ["a"]})})
    put(tmp_path, "me/chats", None, {"train": pl.DataFrame({"prompt": [["a", "b"]]})})
    put(tmp_path, "tatsu-lab/alpaca", None, {"train": pl.DataFrame({"instruction": ["a"]})})
    put_known(tmp_path, "xstest", prompt=["a", "b"], label=["safe", "borderline"])
    put_known(tmp_path, "mmlu", choices=["a, b, c, d"])
    for config in ("one", "two"):
        put(tmp_path, "me/many", config, {"train": pl.DataFrame({"prompt": ["a"]})})
    parts = [f"- config_name: {c}\n  data_files: {c}/train.parquet\n" for c in ("one", "two")]
    (tmp_path / "me/many/README.md").write_text(f"---\nconfigs:\n{''.join(parts)}---\n")
    (tmp_path / "me/torn").mkdir()
    (tmp_path / "me/torn/train.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=reason) as caught:
        load(source, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_mirror_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"--data-mirror .*nowhere: no such folder"):
        load("xstest", tmp_path / "nowhere")
    assert load("embedded/test", tmp_path / "nowhere").height > 0  # not asked for anything


def test_a_folder_here_is_not_taken_for_the_hub(tmp_path, monkeypatch):
    put_known(tmp_path, "xstest")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"also a folder here .* pass --data-mirror \."):
        load("xstest")
    assert load("xstest", Path()).height == 1


def test_loading_draws_no_bars_and_leaves_the_libraries_as_they_were(tmp_path, capfd):
    import datasets

    put_known(tmp_path, "xstest")
    (tmp_path / "me/torn").mkdir(parents=True)
    (tmp_path / "me/torn/train.parquet").write_bytes(b"PAR1 not really")
    datasets.enable_progress_bars()
    level = datasets.logging.get_verbosity()
    load("xstest", tmp_path)
    with pytest.raises(UserError):
        load("me/torn", tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled() and datasets.logging.get_verbosity() == level


HUB_SCRIPT = """
import json, sys, time
time.sleep = lambda seconds: None  # the hub's client waits between its tries
from data import UserError, load
answers = {}
for source in sys.argv[1:]:
    try:
        rows = load(source)
        answers[source] = rows["prompt"].to_list()
    except UserError as error:
        answers[source] = str(error)
print(json.dumps(answers))
"""


def ask_hub(endpoint: str, home: Path, *sources: str, **environment: str) -> dict[str, Any]:
    """Load sources in a fresh process that takes `endpoint` for the hub; the address is read once, at import."""
    known = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", HUB_SCRIPT, *sources], capture_output=True, text=True, timeout=120,
        cwd=ROOT, env={**os.environ, **known, **environment},
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return json.loads(done.stdout)


def test_the_hub_is_asked_for_the_pinned_commit_and_its_refusals_are_told_apart(tmp_path):
    put_known(tmp_path / "hub", "coconot:contrast")
    put_known(tmp_path / "hub", "wildjailbreak", kind="tsv")
    put(tmp_path / "hub", "me/mine", None, {"train": pl.DataFrame({"prompt": ["a"]})})
    refused = {
        "walledai/XSTest": (401, "GatedRepo"),
        "walledai/AdvBench": (403, "GatedRepo"),
        "tatsu-lab/alpaca": (404, "RevisionNotFound"),
        "walledai/StrongREJECT": (500, ""),
    }
    sources = ["coconot:contrast", "wildjailbreak", "me/mine", "me/mine:big", "xstest", "advbench", "alpaca", "gsm8k",
               "strongreject", "me/nothing"]  # fmt: skip
    with serve(tmp_path / "hub", refused) as (endpoint, asked):
        answers = ask_hub(endpoint, tmp_path / "home", *sources)
        assert answers["coconot:contrast"] == ["some prompt"] and answers["me/mine"] == ["a"]
        assert answers["wildjailbreak"] == ["some adversarial"]
        revision = KNOWN["coconot:contrast"].revision
        assert f"datasets/allenai/coconot/resolve/{revision}/contrast/test.parquet" in asked
        assert not any("/coconot/resolve/main" in path for path in asked)
        for name, hub in (("xstest", "walledai/XSTest"), ("advbench", "walledai/AdvBench")):
            assert answers[name].startswith(
                f"{hub} is gated: accept its terms at https://huggingface.co/datasets/{hub}"
            )
            assert "hf auth login" in answers[name] and "--data-mirror" in answers[name]
        assert "revision is gone" in answers["alpaca"]
        assert "no data set 'openai/gsm8k' on the hub" in answers["gsm8k"] and "private" in answers["gsm8k"]
        assert "no data set 'me/nothing' on the hub" in answers["me/nothing"]
        assert answers["me/mine:big"] == "me/mine has no config 'big'; it has default"
        assert "StrongREJECT" in answers["strongreject"] and "\n" not in answers["strongreject"]
    without = ask_hub(endpoint, tmp_path / "other", "coconot:contrast")
    switched_off = ask_hub(endpoint, tmp_path / "other", "coconot:contrast", HF_HUB_OFFLINE="1")
    for answer in (without, switched_off):
        assert "out of reach (offline?); pass --data-mirror DIR" in answer["coconot:contrast"]
    kept = ask_hub(endpoint, tmp_path / "home", "coconot:contrast", HF_HUB_OFFLINE="1")
    assert kept["coconot:contrast"] == ["some prompt"]  # the library's own cache still has it


def test_the_table_describes_every_set():
    rows = table()
    assert rows["name"].n_unique() == rows.height == len(CATALOGUE) + len(FILES)
    assert set(rows["name"]) == {*FILES, *KNOWN}
    assert rows.select("rows", "licence", "gated", "origin").null_count().row(0) == (0, 0, 0, 0)
    assert rows.filter(name="embedded")["rows"].item() == load("embedded").height
    assert rows["revision"].drop_nulls().str.contains("^[0-9a-f]{40}$").all()
    assert rows.filter(pl.col("hub").is_not_null())["origin"].str.starts_with("https://").all()
    published = {"coconot:contrast": 379, "xstest": 450, "or-bench:hard-1k": 1319, "or-bench:toxic": 655,
                 "wildguard:test": 945 + 754, "wildjailbreak": 210 + 2000, "sorry-bench": 440, "advbench": 520,
                 "harmfulqa": 1960, "do-not-answer": 939}  # fmt: skip
    assert {name: KNOWN[name].rows for name in published} == published


def test_themes_follow_the_frame_and_a_stranger_has_none(tmp_path):
    own = load("embedded/test").head(3)
    scores = pl.concat([own, own, own.head(1).with_columns(pl.lit("mine").alias("dataset"))]).select("dataset", "id")
    found = themes(scores)
    raw = dict(read("embedded").select("id", "theme").rows())
    assert found["theme"].to_list() == [*[raw[i] for i in own["id"]] * 2, None]
    assert found.select("dataset", "id").equals(scores)
