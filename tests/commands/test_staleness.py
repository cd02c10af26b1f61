"""Nothing is taken for what it is not: other weights under a known name, prompts extracted anew, other splits' answers."""

import fcntl
import json
import shutil
import threading
import time

import polars as pl
import pytest
from safetensors.torch import load_file, save_file

from data.store.rundir import DYING, writing
from interventions.model.control_tokens import control_tokens
from interventions.model.revision import folder_revision
from tests.made.models import CONTROL, make_tiny


@pytest.fixture
def split_file(prompts_file, tmp_path):
    """The forty prompts: the first twenty to fit on, ten to choose with, ten to answer."""
    rows = [json.loads(line) for line in prompts_file.read_text().splitlines()]
    split = ["train"] * 20 + ["validation"] * 10 + ["test"] * 10
    path = tmp_path / "split.jsonl"
    path.write_text("\n".join(json.dumps(row | {"split": own}) for row, own in zip(rows, split, strict=True)) + "\n")
    return path


def test_other_weights_under_the_same_name_are_another_model(run, split_file, tmp_path):
    folder, where = make_tiny(tmp_path / "model", CONTROL), tmp_path / "run"
    words = ("--run", where, "--model", folder, "--data", split_file, "--layer", 2)
    chain = ("extract", "vectors", "generate", "--max-new-tokens", 4)
    assert run(*words[:6], *chain)[0] == 0
    old = pl.read_parquet(where / "generations.parquet")
    assert run(*words[:6], *chain)[2] == ""  # nothing is made twice
    shutil.rmtree(folder)
    make_tiny(folder, CONTROL, seed=5)
    code, _, err = run("--run", where, "--model", folder, "--data", split_file, "generate", "--max-new-tokens", 4)
    assert code == 0 and "holds other weights now" in err
    fresh = tmp_path / "fresh"
    assert run("--run", fresh, "--model", folder, "--data", split_file, *chain)[0] == 0
    new, wanted = (pl.read_parquet(path / "generations.parquet") for path in (where, fresh))
    assert new.equals(wanted) and not new.equals(old)


def test_what_is_made_on_the_way_says_how_much_and_what_it_replaces(run, tiny_tuned_folder, prompts_file, tmp_path):
    words = ("--run", tmp_path, "--model", tiny_tuned_folder, "--data", prompts_file)
    code, _, err = run(*words, "trace", "--limit", 2)
    assert code == 0 and "running extract over 40 rows\n" in err
    code, _, err = run(*words, "vectors", "--limit", 24)
    assert code == 0 and "running extract over 24 rows, in place of 40\n" in err


def test_a_folders_revision_is_its_content(tmp_path):
    folder = make_tiny(tmp_path / "one")
    copy = shutil.copytree(folder, tmp_path / "two")
    assert folder_revision(folder) == folder_revision(copy)
    file = copy / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "layers.2.mlp" in name)
    tensors[name] = tensors[name] + 1e-3
    save_file(tensors, file, {"format": "pt"})
    assert folder_revision(folder) != folder_revision(copy)
    settings = shutil.copytree(folder, tmp_path / "three") / "config.json"
    settings.write_text(settings.read_text().replace('"rms_norm_eps": ', '"rms_norm_eps": 1'))
    assert folder_revision(folder) != folder_revision(settings.parent)


def test_answers_to_another_split_are_kept(run, split_file, tiny_tuned_folder, tmp_path):
    words = ("--run", tmp_path / "run", "--model", tiny_tuned_folder, "--data", split_file)
    chain = ("generate", "--split", "validation", "--max-new-tokens", 3, "--arm", "baseline")
    assert run(*words, *chain)[0] == 0
    code, _, err = run(*words, "evaluate")
    assert code == 0 and "the prompts changed" not in err
    assert pl.read_parquet(tmp_path / "run" / "generations.parquet").height == 10
    code, _, err = run(*words, "evaluate", "--split", "train")
    assert code == 0 and "split is train, was validation" in err
    assert pl.read_parquet(tmp_path / "run" / "generations.parquet").height == 30  # those of before stay
    assert pl.read_parquet(tmp_path / "run" / "scores.parquet")["id"].n_unique() == 20


def test_rows_that_a_map_was_chosen_on_are_no_test_rows(run, split_file, tiny_tuned_folder, tmp_path):
    words = ("--run", tmp_path / "run", "--model", tiny_tuned_folder, "--data", split_file)
    assert run(*words, "lowrank", "--epochs", 1)[0] == 0
    chain = ("generate", "--split", "validation", "--max-new-tokens", 3, "--arm", "baseline", "--arm", "lowrank")
    assert run(*words, *chain, "evaluate")[0] == 0
    assert pl.read_parquet(tmp_path / "run" / "scores.parquet")["fitted"].all()


def test_prompts_extracted_anew_are_not_taken_for_those_that_were_fitted(run, split_file, tiny_tuned_folder, tmp_path):
    words = ("--run", tmp_path / "run", "--model", tiny_tuned_folder)
    assert run(*words, "--data", split_file, "extract", "vectors", "generate", "--max-new-tokens", 3)[0] == 0
    other = tmp_path / "other.jsonl"
    other.write_text(split_file.read_text().replace("p1", "q1"))
    assert run(*words, "extract", "--data", other)[0] == 0
    code, _, err = run(*words, "evaluate")
    assert code == 1 and err.count("\n") == 1 and "run vectors and generate again" in err
    shutil.rmtree(tmp_path / "run" / "activations")
    code, _, err = run(*words, "evaluate", "--seed", 1)
    assert code == 1 and "newer or gone" in err


def test_tokens_in_brackets_of_other_use_are_no_refusal_tokens(tmp_path):
    from transformers import AutoTokenizer

    others = ("[PAD]", "[INST]", "[TOOL_CALLS]", "[control_8]")
    plain = AutoTokenizer.from_pretrained(make_tiny(tmp_path / "plain", others))
    assert control_tokens(plain) == {}
    tuned = AutoTokenizer.from_pretrained(make_tiny(tmp_path / "tuned", (*CONTROL, "[control_8]", "[INST]", "[PAD]")))
    tuned.chat_template = "[INST]" + tuned.chat_template
    tuned.pad_token = "[PAD]"
    assert set(control_tokens(tuned)) == {name.strip("[]") for name in CONTROL}


def test_a_lock_that_is_about_to_be_let_go_is_waited_for(tmp_path):
    with (tmp_path / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Timer(DYING / 4, lambda: fcntl.flock(lock, fcntl.LOCK_UN)).start()
        start = time.monotonic()
        with writing(tmp_path):
            assert time.monotonic() - start < DYING


def test_what_is_read_again_is_read_as_it_was(run, split_file, tiny_tuned_folder, tmp_path):
    words = ("--run", tmp_path / "run", "--model", tiny_tuned_folder, "--data", split_file)
    assert run(*words, "extract", "--position", "mean", "--layers", "1-2")[0] == 0
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps({"prompt": "tell me of a cat", "label": "benign", "split": "train"}) + "\n")
    code, _, err = run(*words, "vectors", "--benign", more)
    assert code == 0 and "the prompts changed" in err
    key = json.loads((tmp_path / "run" / "run.json").read_text())["artefacts"]["activations/prompts"]["key"]
    assert (key["layers"], key["position"]) == ([1, 2], "mean")


def test_harmless_prompts_to_measure_on_are_not_fitted_to(run, split_file, tiny_tuned_folder, tmp_path):
    more = tmp_path / "harmless.jsonl"
    more.write_text(json.dumps({"prompt": "tell me of a cat", "label": "benign"}) + "\n")
    words = ("--run", tmp_path / "run", "--model", tiny_tuned_folder, "--data", split_file)
    assert run(*words, "effects", "--benign", more, "--max-new-tokens", 2)[0] == 0
    read = pl.read_parquet(tmp_path / "run" / "activations" / "prompts.parquet")
    assert "harmless" not in set(read["dataset"])


def test_two_files_of_one_name_are_told_apart_or_refused(run, tiny_tuned_folder, tmp_path):
    for name, label, many in (("p", "harmful", 2), ("q", "benign", 3)):
        (tmp_path / name).mkdir()
        lines = [
            json.dumps({"prompt": f"{name} tell {at}", "label": label, "category": "weapons"}) for at in range(many)
        ]
        (tmp_path / name / "prompts.jsonl").write_text("\n".join(lines))
    where = ("--run", tmp_path / "run", "--model", tiny_tuned_folder, "--data", tmp_path / "p" / "prompts.jsonl")
    code, _, err = run(*where, "extract", "--benign", tmp_path / "q" / "prompts.jsonl")
    assert code == 1 and "names that differ" in err
