"""Links, pipes and devices where a run directory's own files belong: nothing behind them is touched."""

import os
import stat
from pathlib import Path

import polars as pl
import pytest

from data.errors import UserError
from data.store.files import open_own
from data.store.journal import Journal
from data.store.rundir import replacing, writing
from reports.scoring.hand import write_sample


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    file = tmp_path / "precious"
    file.write_text("do not lose me\n")
    return file


def test_a_lock_that_is_a_link(tmp_path: Path, precious: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(precious)
    with pytest.raises(UserError, match=r"\.lock is a link"), writing(tmp_path / "run"):
        pass
    assert precious.read_text() == "do not lose me\n"


@pytest.mark.parametrize("resumed", [False, True])
def test_a_journal_that_is_a_link(tmp_path: Path, precious: Path, resumed: bool) -> None:
    if resumed:
        Journal(precious, {"a": 1}, [[0]])
        precious.write_text(precious.read_text() + "a torn line")
    before = precious.read_text()
    (tmp_path / ".journal").symlink_to(precious)
    with pytest.raises(UserError, match="is a link"):
        Journal(tmp_path / ".journal", {"a": 1}, [[0]]).finish({0: "x"})
    assert precious.read_text() == before


def test_a_whole_command_with_links(run, tmp_path: Path, precious: Path, tiny_folder: Path, prompts_file: Path) -> None:
    folder = tmp_path / "run" / "activations"
    folder.mkdir(parents=True)
    for name in (".prompts.journal", ".prompts.safetensors"):
        (folder / name).symlink_to(precious)
    run("--run", tmp_path / "run", "--model", tiny_folder, "--data", prompts_file, "extract")
    assert precious.read_text() == "do not lose me\n"


def test_a_folder_of_the_run_directory_that_is_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "activations").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="activations is a link to a folder elsewhere"), writing(tmp_path / "run"):
        pass


def test_a_run_directory_that_is_itself_a_link_is_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with writing(tmp_path / "run"):
        assert (tmp_path / "elsewhere" / ".lock").exists()


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for mode in ("wb", "ab", "r+b"):
        with pytest.raises(UserError, match="pipe"):
            open_own(tmp_path / "pipe", mode)


def test_a_device_stays(tmp_path: Path, run, tiny_folder: Path, prompts_file: Path) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root can make a device node")
    with pytest.raises(UserError, match="no regular file"), replacing(device):
        pass
    own = ("--run", tmp_path / "run", "--model", tiny_folder, "--data", prompts_file)
    code, _, told = run(*own, "extract", "vectors", "export", "--out", f"{device}.safetensors")
    assert code == 0, told
    (tmp_path / "null.safetensors").unlink()
    device.rename(tmp_path / "null.safetensors")
    device = tmp_path / "null.safetensors"
    code, _, told = run(*own, "export", "--out", device)
    assert code == 2 and "is a device and no file" in told
    (tmp_path / "link").symlink_to(device)
    with pytest.raises(UserError, match="no regular file"), replacing(tmp_path / "link"):
        pass
    assert stat.S_ISCHR(device.stat().st_mode)


def test_a_link_in_the_place_of_an_artefact_gives_way_and_its_target_stays(tmp_path: Path, precious: Path) -> None:
    (tmp_path / "table").symlink_to(precious)
    with replacing(tmp_path / "table") as path:
        path.write_text("new")
    assert precious.read_text() == "do not lose me\n"
    assert (tmp_path / "table").read_text() == "new"
    assert not (tmp_path / "table").is_symlink()


def test_a_sample_for_hands_does_not_go_through_a_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").symlink_to(tmp_path / "not there yet")
    columns = ("dataset", "id", "arm", "prompt", "response", "label")
    write_sample(pl.DataFrame({name: ["a"] for name in columns}), tmp_path / "labels.csv")
    assert not (tmp_path / "not there yet").exists()
