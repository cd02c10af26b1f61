"""A run directory's lock, and what a command that wrote nothing leaves behind."""

import threading
import time

import pytest

from data.errors import UserError
from data.store import rundir
from data.store.rundir import writing


@pytest.mark.parametrize("words", [["--data", "no-such.csv"], ["--layers", "99"]])
def test_a_command_that_failed_leaves_no_directory(run, tiny_folder, prompts_file, tmp_path, words):
    new = tmp_path / "runs" / "new"
    code, _, err = run("--run", new, "--model", tiny_folder, "--data", prompts_file, "extract", *words)
    assert code == 1 and "error: " in err and not list(tmp_path.iterdir())


def test_a_directory_that_was_there_or_holds_something_stays(tmp_path):
    (tmp_path / "old").mkdir()
    for name in ("old", "new"):
        with pytest.raises(ZeroDivisionError), writing(tmp_path / name):
            if name == "new":
                (tmp_path / name / "activations").mkdir()
                (tmp_path / name / "activations" / ".prompts.journal").write_text("")
            raise ZeroDivisionError
    assert (tmp_path / "old").is_dir() and (tmp_path / "new/activations/.prompts.journal").exists()


def test_who_waited_for_a_directory_that_is_taken_back_holds_the_new_one(tmp_path, monkeypatch):
    monkeypatch.setattr(rundir, "DYING", 10.0)
    folder, inside, outcome = tmp_path / "run", threading.Event(), []

    def wait() -> None:
        with writing(folder):
            outcome.append((folder / ".lock").exists())
            inside.set()
            with pytest.raises(UserError, match="is being written by pid"), monkeypatch.context() as short:
                short.setattr(rundir, "DYING", 0.1)
                with writing(folder):
                    pass
            outcome.append("alone")

    waiting = threading.Thread(target=wait)
    with writing(folder):
        waiting.start()
        time.sleep(0.3)
        assert not inside.is_set()
    waiting.join(30)
    assert outcome == [True, "alone"]


@pytest.mark.parametrize(("name", "words"), [
    ("generations.parquet", ["evaluate"]), ("generations.parquet", ["generate", "--max-new-tokens", 2, "--replace"]),
    ("activations/prompts.parquet", ["extract"]), ("vectors.safetensors", ["trace", "--prompt", "tell me"]),
    ("traces.parquet", ["trace", "--prompt", "tell me"]), ("probe.safetensors", ["probe"]),
])  # fmt: skip
def test_what_nothing_here_made_is_not_replaced(run, tiny_tuned_folder, prompts_file, tmp_path, name, words):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"somebody's answers")
    code, _, err = run("--run", tmp_path, "--model", tiny_tuned_folder, "--data", prompts_file, *words)
    assert code == 1 and f"error: {path} has no record in run.json" in err
    assert path.read_bytes() == b"somebody's answers"


def test_what_a_command_made_that_died_before_its_record_is_made_again(run, tiny_tuned_folder, prompts_file, tmp_path):
    words = ["--run", tmp_path, "--model", tiny_tuned_folder, "--data", prompts_file, "extract", "vectors"]
    assert run(*words)[0] == 0
    (tmp_path / "run.json").unlink()
    assert run(*words)[0] == 0


@pytest.mark.parametrize("damage", [{"data": [[]]}, {"earlier": [7]}, {"earlier": [{"arms": 3}]}, {"prompt_format": {"name": {}}},
                                    {"earlier": [{"arms": [], "data": [[]]}]}], ids=str)  # fmt: skip
def test_a_record_of_odd_parts_is_damaged(tmp_path, damage):
    key = {"a": 1}
    rundir.record(
        tmp_path, "it", {"id": rundir.identity(key), "key": key, "options": {}, "start": rundir.now()} | damage
    )
    with pytest.raises(UserError, match=r"run\.json is damaged: the record of 'it' has"):
        rundir.records(tmp_path)
