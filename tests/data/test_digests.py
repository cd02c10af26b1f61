"""Files that are not as they were recorded: said and not used; hashed again only where size, time or inode are others."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import polars as pl
import pytest

from data.errors import UserError
from data.store import digests
from data.store.digests import altered, check_files, verify
from data.store.rundir import identity, record, records, writing
from data.store.tables import write_table


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run directory with one table, made and recorded as commands do."""
    folder = tmp_path / "run"
    with writing(folder):
        make(folder, 1)
    return folder


def make(folder: Path, value: int, *, recorded: bool = True) -> None:
    path = folder / "inner" / "table.parquet"
    write_table(path, pl.DataFrame({"a": [value]}))
    if recorded:
        entry = {"key": {}, "id": identity({}), "options": {}, "start": "2026-01-01T00:00:00+00:00"}
        record(folder, "table", entry | {"sha256": digests.digests(folder, [path, folder / "none"])})


def test_a_record_has_each_files_sha256(folder: Path) -> None:
    told = records(folder)["table"]["sha256"]
    assert told == {"inner/table.parquet": sha256(folder / "inner" / "table.parquet")}
    assert list(verify(folder)) == [("table", "inner/table.parquet", True)]
    assert altered(folder, records(folder)["table"]) is None


def test_what_was_swapped_is_named_with_what_to_do(folder: Path) -> None:
    path = folder / "inner" / "table.parquet"
    pl.DataFrame({"a": [2]}).write_parquet(path)
    with pytest.raises(UserError, match=r"inner/table\.parquet is not the file that was made here.*delete this one"):
        check_files(folder, records(folder)["table"])
    assert list(verify(folder)) == [("table", "inner/table.parquet", False)]
    path.unlink()  # it is made again where it is needed
    check_files(folder, records(folder)["table"])
    assert list(verify(folder)) == [("table", "inner/table.parquet", None)]


def test_a_file_is_hashed_again_only_where_it_may_be_another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, hashed, real = folder / "inner" / "table.parquet", [], digests.sha256_of
    monkeypatch.setattr(digests, "sha256_of", lambda file: hashed.append(file) or real(file))
    told = records(folder)["table"]
    check_files(folder, told)
    assert not hashed
    os.utime(path, (1, 1))
    for _ in range(2):
        with writing(folder):
            check_files(folder, told)
    assert hashed == [path]
    copy = shutil.copytree(folder, folder.parent / "copy")
    check_files(copy, told)
    assert hashed == [path, copy / "inner" / "table.parquet"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"inner/table.parquet": 3}', "[" * 100_000])
def test_a_damaged_ledger_is_none(folder: Path, text: str) -> None:
    (folder / digests.LEDGER).write_text(text)
    check_files(folder, records(folder)["table"])


def test_what_a_command_made_that_ended_before_its_record_is_known(folder: Path) -> None:
    with writing(folder):
        make(folder, 3, recorded=False)
    odd = altered(folder, records(folder)["table"])
    assert odd is not None
    assert odd.is_own
    assert "ended before it was recorded" in odd.words
    shutil.copy(folder / "inner" / "table.parquet", folder / "copy")
    (folder / "copy").replace(folder / "inner" / "table.parquet")  # the same bytes are the same file
    odd = altered(folder, records(folder)["table"])
    assert odd is not None
    assert odd.is_own


def test_a_device_is_not_read_to_its_end(folder: Path) -> None:
    path = folder / "inner" / "table.parquet"
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="is not the file"):
        check_files(folder, records(folder)["table"])


def test_nothing_is_noted_beside_files_that_are_not_a_runs(tmp_path: Path) -> None:
    write_table(tmp_path / "table.parquet", pl.DataFrame({"a": [1]}))
    assert [path.name for path in tmp_path.iterdir()] == ["table.parquet"]


def test_commands_refuse_what_was_swapped_and_make_again_what_is_gone(
    run, tmp_path: Path, tiny_folder: Path, prompts_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = ("--run", tmp_path / "run", "--model", tiny_folder, "--data", prompts_file)
    assert run(*own, "extract", "vectors")[0] == 0
    for name, file in (("activations/prompts", "prompts.parquet"), ("vectors", "vectors.safetensors")):
        told = records(tmp_path / "run")[name]["sha256"]
        assert all(sha256(tmp_path / "run" / part) == digest for part, digest in told.items())
        assert any(part.endswith(file) for part in told)
    other = ("--run", tmp_path / "other", "--model", tiny_folder, "--data", prompts_file)
    assert run(*other, "vectors", "--method", "shuffled")[0] == 0
    whole = (tmp_path / "run" / "vectors.safetensors").read_bytes()
    shutil.copy(tmp_path / "other" / "vectors.safetensors", tmp_path / "run" / "vectors.safetensors")
    for command in ("vectors", "generate", "export", "trace"):
        code, out, told = run(*own, command)
        assert (code, out) == (1, "")
        assert "vectors.safetensors is not the file that was made here" in told.splitlines()[-1]
    assert run(*own, "report")[0] == 0
    assert "left out of the report: " in caplog.text
    assert "vectors.safetensors is not the file" in caplog.text
    (tmp_path / "run" / "vectors.safetensors").unlink()
    assert run(*own, "vectors")[0] == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["artefacts"]["vectors"]["sha256"] == {
        "vectors.safetensors": sha256(tmp_path / "run" / "vectors.safetensors")
    }
    assert len(whole) == (tmp_path / "run" / "vectors.safetensors").stat().st_size
