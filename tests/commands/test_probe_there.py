"""`probe --fit mass-mean` on a server brings moments and projections back, and all that rests on a probe takes it from these."""

import json

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from safetensors.torch import load_file

from commands.framework.activations import why_rows
from interventions.backends.backend import Backend
from interventions.backends.ndif.client import Client
from interventions.reading.parts import Parts

TABLES = ("probe_quality", "probe_layers", "probe_roc", "gates/probe_quality")


@pytest.fixture(scope="module")
def shared(tiny_tuned_folder, tmp_path_factory):
    """Prompts of two files, no two alike, and how the command line is told of them."""
    words = ("poem", "weapon", "person", "write", "please", "tell", "python", "painter", "best", "another", "the", "do")
    names = []
    for name, many in (("one", 24), ("two", 20)):
        rows = [
            {"id": f"{name}{at}", "prompt": " ".join(words[(at * step + shift) % 12] for step, shift in ((1, 0), (5, at // 12), (7, len(name + "x") * (name == "two")))),
             "label": "harmful" if at % 2 else "benign", "category": ("weapons", "feelings")[at // 2 % 2] if at % 2 or at % 4 == 2 else None}
            for at in range(many)
        ]  # fmt: skip
        path = tmp_path_factory.mktemp("sets") / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        names.append(str(path))
    return ["--model", tiny_tuned_folder, "--holdout", "none", *(word for name in names for word in ("--data", name))]


@pytest.fixture
def there(run, shared, tmp_path):
    """A sandboxed run's probe."""
    words = ["--run", tmp_path / "there", *shared, "--simulate", "--sandbox"]
    code, _, err = run(*words, "probe", "--fit", "mass-mean", "--layer", "auto")
    assert code == 0 and "extract" not in err, err
    return words


def test_a_sandboxed_probe_is_the_local_one_and_brings_no_activations(run, shared, there, tmp_path):
    code, _, err = run("--run", tmp_path / "here", *shared, "probe", "--fit", "mass-mean", "--layer", "auto")
    assert code == 0, err
    here = tmp_path / "here"
    files = {path.name for path in (tmp_path / "there/activations").iterdir()}
    assert files == {f"{name}.{end}" for name in ("projections", "carried") for end in ("safetensors", "parquet")}
    one, two = (load_file(folder / "probe.safetensors") for folder in (here, tmp_path / "there"))
    for name in ("weight", "mean", "threshold"):
        assert (one[name] - two[name]).abs().max() <= 2e-6 * one[name].abs().max(), name
    for name in TABLES:
        own, other = (pl.read_parquet(folder / f"{name}.parquet") for folder in (here, tmp_path / "there"))
        assert_frame_equal(own, other, rel_tol=1e-6, abs_tol=1e-6)
    carried = pl.read_parquet(here / "gates/probe_quality.parquet")
    assert carried["rows"].to_list() == ["other themes", "without one", "without two"]


def test_all_that_rests_on_the_probe_takes_it(run, there, tmp_path):
    known = json.loads((tmp_path / "there/run.json").read_text())["artefacts"]
    code, _, err = run(*there, "probe", "--fit", "mass-mean", "--layer", "auto")
    assert code == 0 and "moments" not in err and "made again" not in err, err
    code, _, err = run(*there, "vectors", "generate", "--arm", "gated", "--limit", 4, "--max-new-tokens", 2, "report")
    assert code == 0 and "probe needs" not in err, err
    now = json.loads((tmp_path / "there/run.json").read_text())["artefacts"]
    assert now["probe"] == known["probe"] and now["generations"]["key"]["probe"] == known["probe"]["id"]
    assert not (tmp_path / "there/activations/prompts.safetensors").exists()
    code, out, err = run("--json", *there[:4], "verify", "--share", 1)
    assert code == 0, err
    told = {(row["artefact"], row["check"]): row["outcome"] for row in json.loads(out)["table"]}
    assert told["probe", "from projections"] == told["probe", "how it carries over"] == "pass"
    for name in ("projections", "carried"):
        assert told[f"activations/{name}", "by the model"] == "can't be checked"
    assert told["activations/projections", "fingerprint"] == "pass" and "differs" not in told.values()


def test_a_probe_is_made_again_where_what_it_rests_on_is_another(run, there):
    code, _, err = run(*there, "probe", "--fit", "mass-mean", "--threshold-split", "test")
    assert code == 0 and "activations/projections is made again: threshold_split changed" in err, err
    code, _, err = run(*there, "probe", "--fit", "logistic")
    assert code == 0 and "probe needs activations" in err, err
    code, _, err = run(*there, "probe", "--fit", "mass-mean", "--threshold-split", "test")
    assert code == 0 and "moments" not in err, err  # of activations, now that they are here


def test_what_comes_back_is_said(monkeypatch, capsys, tiny, prompts_file, tmp_path):
    """200 prompts in SmolLM2's 30 layers: of a fit on rows that no threshold is chosen by, and of one with its five folds."""
    from data.store.progress import Watch

    line = Backend("remote", Client("http://127.0.0.1:9", 1, Watch()), in_flight=4)
    monkeypatch.setattr(Backend, "each", lambda *_args, **_given: iter(()))
    far = type("Far", (), {"name": "far", "backend": line})
    for fits in (1, 6):
        for name, how in (("moments", {"job_bytes": 4 * (1 + 4 * fits) * 30 * 576}), ("projections", {"unit_bytes": 4 * 30 * fits})):  # fmt: skip
            parts = Parts(tmp_path / str(fits), name, {}, [list(range(at, at + 50)) for at in range(0, 200, 50)])
            parts.read(far, None, name, 2048, None, **how)  # pyright: ignore[reportArgumentType]
    assert [text for text in capsys.readouterr().err.splitlines() if "come back" in text] == [
        "moments of 200 rows: 4 requests, 1.4 MB to come back",
        "projections of 200 rows: 4 requests, 0.0 MB to come back",
        "moments of 200 rows: 4 requests, 6.9 MB to come back",
        "projections of 200 rows: 4 requests, 0.1 MB to come back",
    ]


def test_the_other_fits_say_what_does_without_rows():
    from types import SimpleNamespace

    told = {"fit": "published"}
    words = why_rows(SimpleNamespace(command="probe", get=told.get))  # pyright: ignore[reportArgumentType]
    assert words.startswith("--fit published is fitted to them") and "--fit mass-mean does with sums" in words
