"""Folders that appear whole, whoever else makes the same one at the same moment."""

import threading
from pathlib import Path

import pytest

from data.store.rundir import appearing


@pytest.mark.parametrize("replace", [True, False])
def test_many_at_once(tmp_path: Path, replace: bool) -> None:
    failed: list[BaseException] = []

    def make(number: int) -> None:
        try:
            with appearing(tmp_path / "model", replace=replace) as folder:
                (folder / "a").write_text(str(number))
                (folder / "b").write_text(str(number))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=make, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert (tmp_path / "model" / "a").read_text() == (tmp_path / "model" / "b").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_text("before")
    with pytest.raises(RuntimeError), appearing(tmp_path / "model", replace=True) as folder:
        (folder / "a").write_text("half")
        raise RuntimeError
    assert (tmp_path / "model" / "a").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
