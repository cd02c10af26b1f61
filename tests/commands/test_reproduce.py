"""A paper's table by one command: whole, resumed, with empty cells for what is missing, and summed as by hand."""

import contextlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from scipy.stats import binomtest

import cli
from commands.framework.prompts import spread, spread_in_kinds
from commands.framework.recipe import PAPER, read_recipe
from data import UserError, known_themes, load
from data.contract import DEFAULT_STRENGTH
from data.prompts.catalogue import TAXONOMY, find
from reports.statistics import paper, published
from tests.check_contract import fits_contract
from tests.made.mirror import put_known
from tests.made.models import make_tiny
from tests.made.prompts import WORDS

LIMIT = 6


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("cache"))
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
        patch.setenv("HF_DATASETS_CACHE", folder)
        yield


def texts(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(2, 9))) for _ in range(count)]


@pytest.fixture(scope="module")
def mirror(tmp_path_factory) -> Path:
    """Five of the papers' sets and JailbreakBench; the others are missing."""
    folder = tmp_path_factory.mktemp("mirror")
    many: dict[str, list[str]] = {
        "id": [f"c{at}" for at in range(12)],
        "subcategory": [f"theme {at % 3}" for at in range(12)],
    }
    put_known(folder, "coconot:contrast", "test", prompt=texts(1, 12), id=many["id"], subcategory=many["subcategory"])
    kinds, labels = ["homonyms", "figures"] * 10, ["safe", "safe", "unsafe", "unsafe"] * 5
    put_known(folder, "xstest", prompt=texts(2, 20), type=kinds, label=labels)
    put_known(folder, "advbench", prompt=texts(3, 9))
    put_known(folder, "do-not-answer", question=texts(4, 5), id=[*range(5)], types_of_harm=["a", "b", "a", "b", "a"])
    put_known(folder, "jbb", Goal=texts(5, 4), Index=[*range(4)], Behavior=["w", "x", "y", "z"])
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, prompts_file) -> Path:
    """The file that is shipped, fitted on prompts in the tiny model's categories."""
    path = tmp_path_factory.mktemp("recipe") / "mine.toml"
    shipped = PAPER.read_text("utf-8")
    assert 'data = ["embedded"]' in shipped
    path.write_text(shipped.replace('data = ["embedded"]', f"data = [{json.dumps(str(prompts_file))}]"))
    return path


@pytest.fixture(scope="module")
def words(tiny_tuned_folder, mirror, recipe):
    """The group's options and the command, but for the run directory."""
    return ["--model", str(tiny_tuned_folder), "--data-mirror", str(mirror), "--batch-tokens", "96",
            "reproduce", "paper", "--config", str(recipe), "--limit", str(LIMIT), "--max-new-tokens", "6"]  # fmt: skip


def call(*args) -> tuple[str, str]:
    """The command line in this process: what it wrote to stdout and to stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        cli.cli.main([*map(str, args)], standalone_mode=False)
    return out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """An undisturbed run: its directory, and its JSON."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    out, err = call("--run", folder, "--json", *words)
    return folder, json.loads(out), err


def test_the_run_is_held_against_itself(whole, words):
    """Nothing is made again, so that what is verified is what was there; a forged rate ends the command."""
    folder, _, _ = whole
    out, _ = call("--run", folder, "--json", *words, "--verify")
    told = json.loads(out.splitlines()[0])
    assert told["command"] == "verify" and told["differs"] == 0
    passed = {row["artefact"] for row in told["table"] if row["outcome"] == "pass"}
    assert passed >= {
        "vectors",
        "probe",
        "generations",
        "scores",
        "summary",
        "paper",
        "activations/pairs",
        "report.html",
    }


TABLES = ("generations", "scores", "summary", "paper")


def tables(folder: Path) -> dict[str, pl.DataFrame]:
    return {name: pl.read_parquet(folder / f"{name}.parquet") for name in TABLES}


def test_the_run_directory_holds_what_the_contract_names(whole):
    folder, told, _ = whole
    assert told["command"] == "reproduce" and told["wrote"] == str(folder)
    names = {path.name for path in folder.iterdir()}
    assert {
        "vectors.safetensors",
        "probe.safetensors",
        "lowrank.safetensors",
        "report.html",
        "run.json",
        "paper.toml",
    } <= names
    fits_contract(folder)
    generations = pl.read_parquet(folder / "generations.parquet")
    assert generations["arm"].unique(maintain_order=True).to_list() == ["baseline", "gated", "lowrank"]
    counts = generations.filter(arm="baseline").group_by("dataset", "label").len().rows()
    assert sorted(counts) == [
        ("advbench", "harmful", 6), ("coconot:contrast", "benign", 6), ("do-not-answer", "harmful", 5),
        ("jbb", "benign", 4), ("jbb", "harmful", 4), ("xstest", "benign", 6), ("xstest", "harmful", 6),
    ]  # fmt: skip
    gated = generations.filter(arm="gated")
    assert set(gated["strength"]) <= {-6.0, 4.0} and set(gated["strength_unit"]) == {"unit"}
    assert set(generations.filter(arm="lowrank")["strength"]) <= {-1.5, 1.0}


def test_other_commands_take_it_for_a_run_like_any(whole, mirror, run):
    folder, _, _ = whole
    before = {name: (folder / f"{name}.parquet").stat().st_mtime_ns for name in TABLES}
    assert run("--run", folder, "evaluate", "report")[0] == 0
    assert before == {name: (folder / f"{name}.parquet").stat().st_mtime_ns for name in TABLES}


def test_a_strength_that_is_next_to_nothing_here_is_said_so(whole):
    folder, _, err = whole
    with safe_open(folder / "vectors.safetensors", "np") as file:
        (norm,) = json.loads(file.metadata()["residual_norms"])
    page = (folder / "report.html").read_text().replace("\u00a0", " ")
    assert f"at most {600 / norm:.1f} % of the mean residual norm" in page
    assert ("of the mean residual norm" in err) == (norm / 10 > 6)


def test_missing_sets_leave_empty_cells_and_say_how_to_get_them(whole):
    folder, told, err = whole
    gated = "wildguard:test/harmful"
    assert len(told["missing"]) == 9 and "hf download allenai/wildguardmix" in told["missing"][gated]
    assert "accept its terms at https://huggingface.co/datasets/allenai/wildguardmix" in told["missing"][gated]
    assert "gated" not in told["missing"]["or-bench:toxic"]
    for source, how in told["missing"].items():
        assert err.count(f"{source} is missing") == 1 and how in err and "\n" not in how
    empty = [row for row in told["table"] if row["missing"]]
    assert [row["missing"] for row in empty] == list(told["missing"].values())
    assert all(row["baseline rate"] is None and row["published base"] is not None for row in empty)
    page = (folder / "report.html").read_text()
    assert "hf download allenai/wildguardmix" in page and "Sets that were not there" in page


def test_each_cell_is_counted_from_the_answers(whole):
    folder, told, _ = whole
    scores = pl.read_parquet(folder / "scores.parquet").filter(scorer="phrases")
    row = next(row for row in told["table"] if row["dataset"] == "XSTest unsafe")
    for arm in ("baseline", "gated", "lowrank"):
        own = scores.filter(dataset="xstest", label="harmful", arm=arm)
        k, n = int(own["refused"].sum()), own.height
        interval = binomtest(k, n).proportion_ci(method="wilson")
        found = [row[f"{arm} {key}"] for key in ("n", "rate", "low", "high", "broken")]
        assert found == pytest.approx([n, k / n, interval.low, interval.high, (own["verdict"] == "broken").sum()])
    assert (row["published base"], row["n_published"]) == (pytest.approx(0.945), 200)


def test_sums_hold_the_papers_sets_alone(whole):
    folder, told, _ = whole
    scores = pl.read_parquet(folder / "scores.parquet").filter(scorer="phrases", arm="baseline", label="harmful")
    sets = [scores.filter(dataset=name)["verdict"] == "broken" for name in ("xstest", "advbench", "do-not-answer")]
    prompts, mean = (
        next(row for row in told["table"] if row["dataset"] == f"{name} of 3 of 9 sets") for name in ("Prompts", "Mean")
    )
    assert prompts["baseline n"] == sum(map(len, sets)) == 17
    assert prompts["baseline broken"] == sum(int(one.sum()) for one in sets)
    assert prompts["n_published"] == 200 + 520 + 939
    refused = round(200 * 0.945) + round(520 * 0.9423) + round(939 * 0.8701)
    assert prompts["published base"] == pytest.approx(refused / 1659)
    assert mean["published base"] == pytest.approx(np.mean([0.945, 0.9423, 0.8701]))
    rates = [
        scores.filter(dataset=name)["refused"].cast(pl.Float64).to_numpy().mean()
        for name in ("xstest", "advbench", "do-not-answer")
    ]
    assert mean["baseline rate"] == pytest.approx(np.mean(rates))
    own = [(row["label"], row["baseline n"]) for row in told["table"] if row["dataset"] == "JailbreakBench"]
    assert own == [("benign", 4), ("harmful", 4)]
    assert all(row["published base"] is None for row in told["table"] if row["dataset"] == "JailbreakBench")
    page = (folder / "report.html").read_text()
    assert "These rates pool every set of this run; the sums beside the papers’ leave out jbb," in page


def test_the_published_sums_are_those_of_the_published_sets():
    summary = pl.DataFrame([
        {"dataset": row.source.partition("/")[0], "label": row.label, "arm": "baseline", "n": 1, "broken": 0}
        for row in published.PUBLISHED if row.source != published.POOLED
    ])  # fmt: skip
    rows = paper.every(summary)
    together = summary.head(1).with_columns(dataset=pl.lit("(pooled)"))
    for label in ("benign", "harmful"):
        pooled = paper.sums([row for row in rows if row.label == label], together)[0]
        for theirs in published.PUBLISHED:
            if theirs.source == published.POOLED and theirs.label == label:
                assert [*pooled.percents.values()] == pytest.approx(theirs.percents, abs=0.006) and pooled.n == theirs.n
        assert pooled.title == "All prompts"


def test_a_killed_run_goes_on_and_ends_the_same(words, whole, tmp_path):
    folder = tmp_path / "killed"
    command = [sys.executable, "cli.py", "--run", str(folder), *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not _in_the_middle(folder / "sets"):
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()[1]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (folder / "generations.parquet").exists()
    finished = {path.name: path.stat().st_mtime_ns for path in (folder / "sets").glob("[!.]*.parquet")}
    assert finished
    call("--run", folder, *words)
    for name, stamp in finished.items():
        assert (folder / "sets" / name).stat().st_mtime_ns == stamp
    assert not list(folder.rglob(".*.journal"))
    for name, table in tables(folder).items():
        assert table.equals(tables(whole[0])[name]), name


def _in_the_middle(sets: Path) -> bool:
    """Whether one set is answered and another has begun."""
    finished = {path.stem for path in sets.glob("[!.]*.parquet")}
    begun = {path.name[1:].removesuffix(".journal") for path in sets.glob(".*.journal")}
    return bool(finished) and bool(begun - finished) and not begun & finished


def test_a_set_that_comes_later_costs_its_own_answers_only(words, mirror, tmp_path):
    here, folder = tmp_path / "mirror", tmp_path / "run"
    here.mkdir()
    for owner in ("walledai", "JailbreakBench"):
        (here / owner).symlink_to(mirror / owner)
    args = ["--run", folder, *words[:2], "--data-mirror", here, *words[6:]]
    call(*args, "--data", "advbench", "--data", "or-bench:toxic")
    stamps = {path: path.stat().st_mtime_ns for path in [*(folder / "sets").iterdir(), folder / "vectors.safetensors"]}
    put_known(here, "or-bench:toxic", prompt=texts(6, 5))
    _, err = call(*args, "--data", "advbench", "--data", "or-bench:toxic")
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    assert "generations is made again: fingerprint changed" in err and "missing" not in err
    table = pl.read_parquet(folder / "paper.parquet")
    assert table.filter(dataset="OR-Bench-Toxic")["baseline n"].to_list() == [5]
    assert table.filter(dataset="SORRY-Bench")["missing"].to_list() == [None]  # it was not asked for


def test_every_trace_goes_through_the_door(words, whole, tmp_path):
    call("--simulate", "--run", tmp_path / "run", *words, "--data", "advbench")
    simulated, local = (pl.read_parquet(f / "generations.parquet") for f in (tmp_path / "run", whole[0]))
    local = local.filter(dataset="advbench")  # no set's answers hang on which others there are
    assert set(simulated["backend"]) != set(local["backend"]) and simulated.drop("backend").equals(
        local.drop("backend")
    )


def test_a_file_of_ones_own_is_what_runs(words, recipe, tmp_path):
    mine = tmp_path / "mine.toml"
    lines = (
        recipe.read_text()
        .replace('method = "contrastive"', 'method = "mean"')
        .replace('scope = "generated"', 'scope = "all"')
    )
    start, end = lines.index("arm = ["), lines.index("]\n", lines.index("arm = ["))
    mine.write_text("layer = 1\n" + lines[:start] + 'arm = ["baseline", "fixed:strength=2"' + lines[end:])
    args = [*words[:6], "reproduce", "--config", mine, "--limit", 3, "--seed", 5, "paper"]
    call("--run", tmp_path / "run", *args, "--data", "xstest/safe", "--max-new-tokens", 3)
    row = pl.read_parquet(tmp_path / "run" / "generations.parquet").filter(kind="fixed").row(0, named=True)
    wanted = {"layer": 1, "strength": 2.0, "strength_unit": "unit", "scope": "all", "seed": 5, "dataset": "xstest"}
    assert wanted.items() <= row.items() and row["new_tokens"] <= 3
    made = {path.name for path in (tmp_path / "run").iterdir()}
    assert not {"probe.safetensors", "lowrank.safetensors"} & made  # no arm draws on them
    records = json.loads((tmp_path / "run" / "run.json").read_text())["artefacts"]
    assert records["vectors"]["options"]["method"] == "mean"


def test_where_strengths_are_next_to_nothing_those_in_shares_of_the_stream_take_their_place(words, recipe, tmp_path):
    """And --strength, --strength-unit count before both; it is said on the page."""
    mine, folder = tmp_path / "mine.toml", tmp_path / "run"
    lowrank = ', "lowrank:route=gated,benign=-1.5,harmful=1"'
    text = recipe.read_text().replace("benign=-6,harmful=4", "benign=-0.006,harmful=0.004").replace(lowrank, "")
    mine.write_text(text)
    args = ["--run", folder, *words[:6], "reproduce", "--config", mine, "--limit", 3, "--max-new-tokens", 2, "paper",
            "--data", "xstest"]  # fmt: skip

    def steered():
        rows = pl.read_parquet(folder / "generations.parquet").filter(kind="gated")
        return {round(value, 6) for value in rows["strength"]}, set(rows["strength_unit"])

    _, err = call(*args)
    page = (folder / "report.html").read_text().replace("\u00a0", " ")
    assert "gated:benign=-0.3,harmful=0.2" in err and "strengths are shares of that norm instead" in page
    assert steered()[0] <= {-0.3, 0.2} and steered()[1] == {"residual"}
    _, err = call(*args, "--strength", "-0.45")
    assert steered()[0] <= {-0.45, 0.3} and steered()[1] == {"residual"}
    _, err = call(*args, "--strength-unit", "unit")
    assert steered()[0] <= {-0.006, 0.004} and steered()[1] == {"unit"} and "it may change little" in err
    assert "of that norm instead" not in (folder / "report.html").read_text()


@pytest.mark.parametrize("where", ["option", "environment", "file"])
def test_a_password_in_an_address_stands_nowhere(words, recipe, mirror, tmp_path, monkeypatch, where):
    address = "http://me:SECRETPW@127.0.0.1:9/v1?key=SECRETPW"
    given = {"option": ["--judge-url", address]}.get(where, [])
    if where == "environment":
        monkeypatch.setenv("REFUSAL_REPRODUCE_JUDGE_URL", address)
    if where == "file":
        text = recipe.read_text().replace("[evaluate]", f'[evaluate]\njudge-url = "{address.partition("?")[0]}"')
        (tmp_path / "mine.toml").write_text(text)
        given = ["--config", str(tmp_path / "mine.toml")]
    argv = ["--run", str(tmp_path / "run"), *words, *given, "--limit", "1", "--data", "advbench"]
    monkeypatch.setattr(sys, "argv", ["cli.py", *argv])
    call(*argv)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not [path.name for path in files if b"SECRETPW" in path.read_bytes()]
    if where != "file":
        assert "http://127.0.0.1:9/v1" in (tmp_path / "run" / "run.json").read_text()


def test_the_training_rows_that_the_file_speaks_of_can_be_fitted_on(mirror, tmp_path):
    model = make_tiny(tmp_path / "model", (*(f"[{name}]" for name in TAXONOMY), "[respond]"))
    here, mine = tmp_path / "mirror", tmp_path / "mine.toml"
    put_known(here, "coconot:original", "train", prompt=texts(7, 40), id=[f"o{at}" for at in range(40)],
              category=[*TAXONOMY] * 8)  # fmt: skip
    folder = here / "allenai" / "coconot"
    put_known(tmp_path / "other", "coconot:pref", prompt=texts(8, 30), id=[f"p{at}" for at in range(30)])
    (tmp_path / "other" / "allenai" / "coconot" / "pref").rename(folder / "pref")
    card = (tmp_path / "other" / "allenai" / "coconot" / "README.md").read_text().partition("configs:\n")[2]
    (folder / "README.md").write_text((folder / "README.md").read_text().removesuffix("---\n") + card)
    (here / "walledai").symlink_to(mirror / "walledai")
    text = PAPER.read_text("utf-8").replace(
        'data = ["embedded"]', 'data = ["coconot:original/train", "coconot:pref/train"]'
    )
    mine.write_text(text.replace('threshold-split = "validation"', 'threshold-split = "train"'))
    call("--run", tmp_path / "run", "--model", model, "--data-mirror", here, "reproduce", "paper", "--config", mine,
         "--data", "advbench", "--limit", 3, "--max-new-tokens", 2)  # fmt: skip
    with safe_open(tmp_path / "run" / "vectors.safetensors", "np") as file:
        assert json.loads(file.metadata()["counts"]) == dict.fromkeys(TAXONOMY, 3)  # --limit holds of each category too
    table = pl.read_parquet(tmp_path / "run" / "paper.parquet").filter(dataset="AdvBench")
    assert table["baseline n"].item() == table["lowrank n"].item() == 3


BAD = {
    "[vectors": "not a TOML file",
    '[vectors]\nmethd = "mean"': "no option 'methd'",
    '[vectors]\nmethod = "magic"': "[vectors] method",
    "[generate]\nlayer = 3": "at the top",
    "[generate]\nmodel = 'x'": "no option 'model'",
    'layer = "deep"': "layer is a block's number",
    "[sweep]\nbest = 3": "no [sweep] is known",
    "[residual]\nscope = 'all'": "[residual] has one key",
    '[extract]\ndata = "embedded"': "data is a list",
    "[generate]\nscope = ['all']": "scope is one value",
    "[generate]\nmax-new-tokens = 0": "max-new-tokens",
    '[generate]\ndata = ["xstest"]': "names no arm",
    '[generate]\narm = ["baseline"]': "names no data",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_file_is_a_usage_error_before_anything_runs(text, run, tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    code, out, err = run("--run", tmp_path / "run", "reproduce", "paper", "--config", path)
    assert code == 2 and BAD[text] in err and not out and not (tmp_path / "run").exists()


def test_an_arm_that_can_not_be_read_and_a_folder_without_sets_are_one_line(run, recipe, tmp_path):
    code, _, err = run("--run", tmp_path / "run", "reproduce", "paper", "--data-mirror", tmp_path)
    assert code == 1 and "none of the 16 data sets is there" in err
    mine = tmp_path / "mine.toml"
    mine.write_text(recipe.read_text().replace('"baseline", ', '"steady", '))
    code, _, err = run("--run", tmp_path / "run", "reproduce", "paper", "--config", mine)
    assert code == 1 and "unknown kind 'steady'" in err and "missing" not in err


@pytest.mark.parametrize(
    ("args", "limit", "rest"),
    [
        (["paper"], None, []),
        (["paper", "--limit", "3"], 3, []),
        (["--limit", "3", "paper"], 3, []),
        (["paper", "--limit", "3", "report", "--out", "x"], 3, ["report", "--out", "x"]),
        (["--limit", "3", "paper", "report", "--out", "x"], 3, ["report", "--out", "x"]),
        (["--seed", "1", "paper", "--limit", "3", "report"], 3, ["report"]),
        (["paper", "report"], None, ["report"]),
    ],
)
def test_the_word_may_stand_before_its_options(args, limit, rest):
    with click.Context(cli.cli) as group:
        group.params = {}
        ctx = cli.cli.commands["reproduce"].make_context(
            "reproduce", args, parent=group, allow_extra_args=True, allow_interspersed_args=False
        )
    assert (ctx.params["what"], ctx.params["limit"], [*ctx.args]) == ("paper", limit, rest)


@pytest.mark.parametrize("args", [["reproduce"], ["reproduce", "book"], ["reproduce", "paper", "paper"]])
def test_the_word_is_the_papers(args, run, tmp_path):
    assert run("--run", tmp_path / "run", *args)[0] == 2 and not (tmp_path / "run").exists()


def test_a_model_is_put_as_the_file_says_of_its_name(tmp_path, tiny_tuned_folder, prompts_file, mirror):
    path, name = tmp_path / "mine.toml", str(tiny_tuned_folder)
    text = f'[extract]\ndata = [{json.dumps(str(prompts_file))}]\n[generate]\narm = ["baseline"]\ndata = ["advbench"]\nmax-new-tokens = 2\n'
    path.write_text(f'{text}[models."{name}"]\nprompt-format = "Q: {{prompt}} A:"\n')
    words = ["--model", name, "--data-mirror", str(mirror), "reproduce", "paper", "--config", str(path), "--limit", "2"]
    call("--run", tmp_path / "run", *words)
    made = json.loads((tmp_path / "run" / "run.json").read_text())["artefacts"]
    assert {entry["prompt_format"]["name"] for entry in made.values() if entry.get("model")} == {"Q: {prompt} A:"}
    assert "Q: {prompt} A:" in (tmp_path / "run" / "report.html").read_text()
    call("--run", tmp_path / "other", "--prompt-format", "plain", *words)
    made = json.loads((tmp_path / "other" / "run.json").read_text())["artefacts"]
    assert {entry["prompt_format"]["name"] for entry in made.values() if entry.get("model")} == {"plain"}
    path.write_text(f'{text}[models."{name}"]\nrun = "elsewhere"\n')
    with pytest.raises(click.UsageError, match="has no option 'run'; there are"):
        call("--run", tmp_path / "none", *words)


def test_what_is_shipped_is_what_was_published():
    shipped = read_recipe(PAPER)
    sources = shipped.of("generate")["data"]
    theirs = list(dict.fromkeys(row.source for row in published.PUBLISHED if row.source != published.POOLED))
    assert list(sources[:14]) == theirs and sources[14:] == ("jbb/harmful", "jbb/benign")
    assert all(find(source) is not None for source in sources) and shipped.layer is None
    assert (
        f"gated:benign={published.STRENGTH_BENIGN:g},harmful={published.STRENGTH_HARMFUL:g}"
        in shipped.of("generate")["arm"]
    )
    assert shipped.of("vectors") == {"method": "contrastive", "normalize": True}
    ratio = published.STRENGTH_HARMFUL / published.STRENGTH_BENIGN
    gated, *_ = (arm for arm in shipped.of("residual")["arm"] if arm.startswith("gated"))
    benign, harmful = (float(value) for value in re.findall(r"=(-?[\d.]+)", gated))
    assert benign == DEFAULT_STRENGTH and harmful / benign == pytest.approx(ratio)
    theirs = "tomg-group-umd/zephyr-llama3-8b-sft-refusal-n-contrast-multiple-tokens"
    assert shipped.for_model(theirs) == {"prompt_format": "refusal-llama3", "dtype": "bfloat16"}
    assert (
        shipped.of("generate")["max_new_tokens"] == 128
        and shipped.for_model("another") == shipped.for_model(None) == {}
    )
    for data in (shipped.of("extract")["data"], sources):
        assert isinstance(data, tuple)
    text = PAPER.read_text("utf-8")
    for line in ('data = ["coconot:original/train", "coconot:pref/train"]', 'threshold-split = "train"'):
        assert line in text


def test_a_limit_holds_of_each_label_and_category_in_each_split():
    kinds = [(split, label, category) for split in ("train", None) for label, category in (("harmful", "a"), ("harmful", "b"), ("benign", None))]  # fmt: skip
    rows = [{"dataset": "d", "id": str(at), "split": kind[0], "label": kind[1], "category": kind[2]}
            for at, kind in enumerate(kinds * 7)]  # fmt: skip
    frame = pl.DataFrame(rows)
    chosen = spread_in_kinds(frame, 3)
    assert chosen.group_by("split", "label", "category").len()["len"].to_list() == [3] * 6
    places = [int(row) for row in chosen["id"]]
    assert places == sorted(places) and max(places) > 24  # spread, not the first
    assert spread_in_kinds(frame, None).equals(frame) and spread_in_kinds(frame, 99).equals(frame)


@settings(deadline=None)
@given(st.integers(1, 60), st.one_of(st.none(), st.integers(1, 80)))
def test_a_limit_spreads_over_the_set(rows, most):
    chosen = spread(pl.DataFrame({"at": range(rows)}), most)["at"].to_list()
    assert len(chosen) == min(rows, most or rows) and chosen == sorted(set(chosen)) and chosen[0] == 0
    gaps = np.diff([*chosen, rows])
    assert gaps.max() - gaps.min() <= 1


# Themes.


def test_themes_are_drawn_where_they_can_be_read_and_asked_for_until_then(
    run, tiny_tuned_folder, prompts_file, mirror, tmp_path
):
    words = ["--run", tmp_path / "run", "--model", tiny_tuned_folder, "extract", "--data", prompts_file, "vectors",
             "generate", "--data", "coconot:contrast/test", "--data", "xstest/safe", "--max-new-tokens", 3,
             "--data-mirror", mirror]  # fmt: skip
    here = tmp_path / "mirror"
    (here / "walledai").mkdir(parents=True)
    (here / "walledai" / "XSTest").symlink_to(mirror / "walledai" / "XSTest")
    code, _, err = run(*words, "evaluate", "--data-mirror", here)
    assert code == 0 and len([line for line in err.splitlines() if "for itself" in line]) == 1
    assert "coconot:contrast" in err and "hf download allenai/coconot" in err

    def clusters(dataset):
        row = pl.read_parquet(tmp_path / "run" / "summary.parquet").filter(
            dataset=dataset, arm="fixed", scorer="phrases"
        )
        return row["n"].item(), row["n_clusters"].item(), row["cluster_low"].item() is not None, row["interval"].item()

    assert clusters("coconot:contrast") == (12, 12, False, "wilson") and clusters("xstest") == (10, 2, True, "wilson")
    assert clusters("(macro)")[1:] == (14, False, "bootstrap of themes")
    code, _, err = run("--run", tmp_path / "run", "evaluate", "--data-mirror", mirror)
    assert code == 0 and "is made again: without themes changed" in err and "for itself" not in err
    assert clusters("coconot:contrast") == (12, 3, True, "wilson")
    whole = pl.read_parquet(tmp_path / "run" / "summary.parquet")
    empty = tmp_path / "empty"
    empty.mkdir()
    code, _, err = run("--run", tmp_path / "run", "--seed", 0, "evaluate", "--data-mirror", empty, "--difference", 5)
    assert code == 0 and not err and pl.read_parquet(tmp_path / "run" / "summary.parquet").equals(whole)


def test_themes_go_with_the_text_not_with_the_name_alone(mirror):
    rows = load("coconot:contrast/test", mirror)
    changed = rows.with_columns(prompt=pl.when(pl.col("id") == "c1").then(pl.lit("another")).otherwise("prompt"))
    found = known_themes(changed, mirror)
    assert not found.lost
    assert found.table["theme"].to_list() == [None if at == 1 else f"theme {at % 3}" for at in range(12)]
    assert known_themes(rows.select("dataset", "id"), mirror).table["theme"].null_count() == 0


def test_a_hub_out_of_reach_is_asked_once(monkeypatch):
    from data.errors import OutOfReachError

    asked = []

    def fetch(hub, *_args, **_options):
        asked.append(hub)
        raise OutOfReachError(f"{hub}: the hub is out of reach (offline?)")

    monkeypatch.setattr("data.prompts.catalogue.fetch", fetch)
    rows = pl.DataFrame({"dataset": ["xstest", "jbb", "advbench", "mine"], "id": ["1"] * 4})
    found = known_themes(rows)
    assert list(found.lost) == ["xstest", "jbb"] and asked == ["walledai/XSTest"]  # AdvBench has no themes
    with pytest.raises(UserError, match="out of reach"):
        from data import themes

        themes(rows)


def test_a_hub_out_of_reach_keeps_no_table_waiting(monkeypatch, tmp_path, run, tiny_tuned_folder):
    import datasets
    import datasets.config as reader

    seen = []

    def load_dataset(*_args, **_options):
        seen.append(reader.HF_HUB_OFFLINE)
        raise ConnectionError("no way there")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(reader, "HF_HUB_OFFLINE", False)
    code, _, err = run("--run", tmp_path / "run", "--model", tiny_tuned_folder, "reproduce", "paper", "--data", "advbench",
                       "--data", "jbb/harmful", "--data", "xstest/safe")  # fmt: skip
    assert code == 1 and "none of the 3 data sets is there" in err
    assert seen == [False, True, True] and not reader.HF_HUB_OFFLINE
