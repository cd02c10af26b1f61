"""A report beside damaged activations: the file is named on the page and on stderr, and the rest is shown."""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

FILE, ROWS = "activations/prompts.safetensors", "activations/prompts.parquet"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, prompts_file: Path) -> Path:
    from click.testing import CliRunner

    from cli import cli

    folder = tmp_path_factory.mktemp("whole") / "run"
    words = ["--run", str(folder), "--model", str(tiny_folder), "--data", str(prompts_file), "extract", "vectors"]
    done = CliRunner().invoke(cli, words, standalone_mode=False)
    assert done.exception is None
    return folder


def not_numbers(folder: Path) -> None:
    with safe_open(folder / FILE, "np") as file:
        metadata, values = file.metadata(), file.get_tensor("activations").copy()
    values[3] = np.nan
    save_file({"activations": values}, folder / FILE, metadata)


def keep(folder: Path, change) -> None:
    change(pl.read_parquet(folder / ROWS)).write_parquet(folder / ROWS)


DAMAGES = {
    "cut short": lambda f: (f / FILE).write_bytes((f / FILE).read_bytes()[:-500]),
    "empty": lambda f: (f / FILE).write_bytes(b""),
    "zeros": lambda f: (f / FILE).write_bytes(bytes(5000)),
    "no numbers": not_numbers,
    "gone": lambda f: (f / FILE).unlink(),
    "rows gone": lambda f: (f / ROWS).unlink(),
    "rows cut short": lambda f: (f / ROWS).write_bytes((f / ROWS).read_bytes()[:-30]),
    "rows empty": lambda f: (f / ROWS).write_bytes(b""),
    "fewer rows": lambda f: keep(f, lambda rows: rows.head(3)),
    "no label": lambda f: keep(f, lambda rows: rows.drop("label")),
    "a category of numbers": lambda f: keep(f, lambda rows: rows.with_columns(pl.lit(1).alias("category"))),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_rest_is_shown(run, tmp_path: Path, whole: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    DAMAGES[damage](folder)
    code, _, told = run("--run", folder, "report")
    assert code == 0, told
    (said,) = (record.getMessage() for record in caplog.records)
    assert "left out of the report: " in said
    assert "prompts." in said
    assert "\n" not in said
    page = (folder / "report.html").read_text()
    assert "Left out, as it could not be read: " in page
    assert 'id="vectors"' in page
    assert 'id="activations"' not in page


def test_whole_and_missing_activations_are_no_fault(run, tmp_path: Path, whole: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    code, _, told = run("--run", folder, "report")
    assert (code, told) == (0, "")
    assert 'id="activations"' in (folder / "report.html").read_text()
    shutil.rmtree(folder / "activations")
    assert run("--run", folder, "report")[::2] == (0, "")


def test_no_threshold_of_a_swapped_probe_is_drawn(run, tmp_path: Path, whole: Path) -> None:
    from reports.page.run import open_run

    folder = shutil.copytree(whole, tmp_path / "run")
    assert run("--run", folder, "probe")[0] == 0
    path = folder / "probe.safetensors"
    with safe_open(path, "np") as file:
        metadata, tensors = (
            file.metadata(),
            {name: file.get_tensor(name) for name in ("weight", "mean", "bias", "threshold")},
        )
    assert open_run(folder).threshold == pytest.approx(float(tensors["threshold"][0]))
    save_file(tensors | {"threshold": np.array([0.123], np.float32)}, path, metadata)
    swapped = open_run(folder)
    assert swapped.threshold is None and ["probe.safetensors" in fault for fault in swapped.faults] == [True]
    path.unlink()
    assert open_run(folder).threshold is None and not open_run(folder).faults
