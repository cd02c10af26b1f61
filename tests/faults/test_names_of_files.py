"""Names with `*`, `?`, `[` and `=`: each is the file of that very name."""

from pathlib import Path

import polars as pl
import pytest

from data import load
from data.store.tables import parquet_rows, read_parquet

ODD = ("?", "*", "[1]", "[ab]", "a=b", "**", "{a,b}", "~", "%41", "file:", "a b\\c")


def table(words: str) -> pl.DataFrame:
    return pl.DataFrame({"prompt": [words], "label": ["harmful"]})


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_name_is_no_pattern(tmp_path: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for one in (name, "1", "a", "b", "other"):
        path = Path("g", f"{one}.parquet") if kind == "file" else Path(one, "g.parquet")
        path.parent.mkdir(exist_ok=True)
        table(f"of {one}").write_parquet(path.absolute())
    path = Path("g", f"{name}.parquet") if kind == "file" else Path(name, "g.parquet")
    assert read_parquet(path).to_dicts() == table(f"of {name}").to_dicts()
    assert parquet_rows(path) == 1
    assert load(str(tmp_path / path))["prompt"].to_list() == [f"of {name}"]
    path.unlink()
    with pytest.raises((OSError, pl.exceptions.PolarsError)):
        read_parquet(path)


def test_nothing_reads_parquet_in_another_way() -> None:
    own = [path for folder in ("commands", "data", "interventions", "reports") for path in Path(folder).rglob("*.py")]
    odd = [
        str(path)
        for path in own
        if "pl.read_parquet(" in path.read_text("utf-8") or "pl.scan_" in path.read_text("utf-8")
    ]
    assert odd == ["data/store/tables.py"]


def test_a_run_directory_of_such_a_name(run, tmp_path: Path, tiny_tuned_folder: Path, prompts_file: Path) -> None:
    copy = tmp_path / "a[1]*?.jsonl"
    copy.write_bytes(prompts_file.read_bytes())
    own = ("--run", tmp_path / "a[1]=?*", "--model", tiny_tuned_folder, "--data", copy)
    code, _, told = run(*own, "extract", "vectors", "probe", "lowrank", "--epochs", "1", "generate", "--max-new-tokens",
                        "2", "evaluate", "report")  # fmt: skip
    assert code == 0, told
    assert run(*own, "evaluate", "report")[0] == 0
