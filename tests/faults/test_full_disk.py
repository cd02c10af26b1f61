"""A disk that is too small: every command finishes right, or says so in a line and finishes right once there is room."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors import safe_open

from data.errors import UserError
from data.store import files
from data.store.journal import Journal
from data.store.rundir import replacing
from tests.faults.suite import Cases, Place, chain_of, differing, holds, some

COMMANDS = ("extract", "vectors", "generate", "evaluate", "report")
LEVELS = (0, 4, 12, 24, 48, 64, 80, 96, 128, 192, 384)  # KB left on the disk
TABLES = (
    "activations/prompts.parquet",
    "logit_lens.parquet",
    "generations.parquet",
    "scores.parquet",
    "summary.parquet",
)
TENSORS = ("activations/prompts.safetensors", "vectors.safetensors")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory):
    """A file system of 16 MB in memory."""
    folder = tmp_path_factory.mktemp("disk")
    try:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], capture_output=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("no mount here")
    if made.returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)  # a mapped file of this process would keep it


def fill(disk: Path, left: int) -> Path:
    """Take all but so many KB."""
    ballast = disk / "ballast"
    room = os.statvfs(disk)
    with ballast.open("wb") as file:
        file.write(b"x" * max(0, room.f_bavail * room.f_frsize - left * 1024))
    return ballast


def tables(folder: Path) -> dict[str, pl.DataFrame]:
    return {name: pl.read_parquet(folder / name) for name in TABLES}


def tensors(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for name in TENSORS:
        with safe_open(folder / name, "np") as file:
            found |= {f"{name} {key}": file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
    return found


def equal(one: Path, other: Path) -> bool:
    a, b = tensors(one), tensors(other)
    alike = set(a) == set(b) and all((a[name] == b[name]).all() for name in a)
    return alike and all(frame.equals(tables(other)[name]) for name, frame in tables(one).items())


def words(command: str, folder: Path, model: Path, prompts: Path) -> list[str]:
    own = {"generate": ["--max-new-tokens", "4", "--arm", "baseline", "--arm", "fixed"]}.get(command, [])
    return [
        "--run",
        str(folder),
        "--model",
        str(model),
        "--data",
        str(prompts),
        "--batch-tokens",
        "24",
        "--no-auto",
        command,
        *own,
    ]


@pytest.mark.slow
def test_every_command_finishes_right_or_says_that_the_disk_is_full(
    run, disk: Path, tmp_path: Path, tiny_tuned_folder: Path, prompts_file: Path
) -> None:
    whole = tmp_path / "whole"
    for command in COMMANDS:
        assert run(*words(command, whole, tiny_tuned_folder, prompts_file))[0] == 0
    refused = 0
    for level in LEVELS:
        folder = disk / f"run{level}"
        for command in COMMANDS:
            ballast = fill(disk, level)
            code, _, told = run(*words(command, folder, tiny_tuned_folder, prompts_file))
            lines = [line for line in told.splitlines() if "error:" in line]
            assert "Traceback" not in told
            assert code == 0 or (code == 1 and len(lines) == 1 and "no room left on the disk" in lines[0]), (
                level,
                command,
                told,
            )
            ballast.unlink()
            if code:
                refused += 1
                left = [
                    path.name
                    for path in folder.rglob(".*")
                    if path.is_file() and path.suffix not in (".journal", ".lock")
                ]
                assert [name for name in left if name not in (".lock", ".prompts.safetensors", ".digests.json")] == []
                assert run(*words(command, folder, tiny_tuned_folder, prompts_file))[0] == 0
        assert equal(folder, whole), level
        assert (folder / "report.html").read_bytes().endswith(b"</html>\n")
        subprocess.run(["rm", "-r", str(folder)], check=True)
    assert refused >= len(LEVELS)


@pytest.mark.parametrize("command", some(list(chain_of(Path("any"))), 4))
def test_a_command_goes_on_once_there_is_room(place: Place, disk: Path, command: str, case: Cases) -> None:
    folder, levels = disk / "any", some(LEVELS, 3)
    for level in levels:
        shutil.rmtree(folder, ignore_errors=True)
        before = place.before(command)
        if before is not None:
            shutil.copytree(before, folder)
        ballast = fill(disk, level)
        with case("commands × levels of a full disk"):
            done = place.zygote.run(place.words(command, folder))
            holds(done, folder, codes=(0, 1))
            assert done.code == 0 or "no room left on the disk" in done.err.splitlines()[-1], (level, done)
            ballast.unlink()
            holds(place.zygote.run(place.words(command, folder)), folder, codes=(0,))
            assert differing(place.state(command), folder) == [], (level, done)
        ballast.unlink(missing_ok=True)
    shutil.rmtree(folder)


def test_a_write_that_takes_the_beginning_alone_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, content, at: real(handle, bytes(content)[:3], at))
    with (tmp_path / "file").open("w+b") as file:
        files.reserve(file.fileno(), 20)
        files.write_all(file.fileno(), b"0123456789", 5)
    assert (tmp_path / "file").read_bytes() == bytes(5) + b"0123456789" + bytes(5)


def test_room_is_asked_for_before_anything_is_computed(tmp_path: Path, disk: Path) -> None:
    room = pytest.raises(UserError, match=r"no room left on the disk for .*/large")
    with room, replacing(disk / "large") as path, path.open("r+b") as file:
        files.reserve(file.fileno(), 1 << 30)
    assert list(disk.iterdir()) == []


def test_half_a_line_of_a_journal_is_taken_back(disk: Path) -> None:
    journal = Journal(disk / ".j", {"a": 1}, [[0], [1], [2]])
    journal.finish({0: "first"})
    ballast = fill(disk, 0)
    with pytest.raises(UserError, match="no room left"):
        journal.finish({1: "x" * 10_000})
    ballast.unlink()
    journal.finish({2: "third"})
    again = Journal(disk / ".j", {"a": 1}, [[0], [1], [2]])
    assert again.resumed
    assert again.done == {0: "first", 2: "third"}
    again.remove()


def test_a_full_disk_is_known_under_other_names(tmp_path: Path) -> None:
    assert files.is_full(OSError(28, "No space left on device"))
    assert files.is_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not files.is_full(OSError(2, "No such file"))
    assert not files.is_full(None)


def test_the_command_line_says_it_in_a_line(disk: Path, tiny_folder: Path) -> None:
    fill(disk, 0)
    told = subprocess.run(
        [sys.executable, "cli.py", "--run", disk / "deep" / "run", "--model", tiny_folder, "extract"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    (disk / "ballast").unlink()
    assert told.returncode == 1
    assert [
        line for line in told.stderr.splitlines() if "no room left on the disk" in line
    ] == told.stderr.splitlines()[-1:]
