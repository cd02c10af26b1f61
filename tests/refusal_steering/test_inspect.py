"""Inspect: steered arms as models, tasks, and logs of a finished run, read back by Inspect itself."""

# An optional extra.
# pyright: reportMissingImports=false

import json
import subprocess
import sys

import polars as pl
import pytest

from data import load
from data.contract import VERDICTS
from data.errors import UserError
from tests import ROOT

pytest.importorskip("inspect_ai", reason="Inspect is not installed: make setup, or pip install -e '.[inspect]'")
ARMS = ("baseline", "fixed:strength=-0.4")


@pytest.fixture(scope="module")
def answered(tiny_tuned_folder, prompts_file, tmp_path_factory):
    """A run on a tiny model: forty prompts in two arms, evaluated."""
    folder = tmp_path_factory.mktemp("inspected") / "run"
    words = ["--run", folder, "--model", tiny_tuned_folder, "--data", prompts_file, "--holdout", "none", "extract", "vectors",
             "generate", "--max-new-tokens", 6, *(word for arm in ARMS for word in ("--arm", arm)), "evaluate"]  # fmt: skip
    done = subprocess.run([sys.executable, "cli.py", *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def counts_of(log):
    """(scorer, verdict) -> how many, as the log's metrics say."""
    return {
        (score.name, name): int(score.metrics[name].value)
        for score in log.results.scores
        for name in VERDICTS
        if name in score.metrics
    }


def expected(folder, arm, label):
    scores = pl.read_parquet(folder / "scores.parquet").filter(arm=arm, label=label).drop_nulls("verdict")
    return {(scorer, verdict): n for scorer, verdict, n in scores.group_by("scorer", "verdict").len().iter_rows()}


def test_logs_of_a_finished_run_hold_the_verdicts_of_evaluate(answered, run):
    from inspect_ai.log import list_eval_logs, read_eval_log

    code, out, err = run("--run", answered, "export", "--format", "inspect")
    assert code == 0, err
    logs = [read_eval_log(info) for info in list_eval_logs(str(answered / "export" / "inspect"))]
    assert len(logs) == 4 and "logs 4" in out
    generations = pl.read_parquet(answered / "generations.parquet")
    for log in logs:
        arm, label = (
            log.eval.model_args["arm"],
            {"over_refusal": "benign", "refusal": "harmful"}[log.eval.task.rpartition("/")[2]],
        )
        found = {key: n for key, n in counts_of(log).items() if n}
        scored = {key: n for key, n in expected(answered, arm, label).items() if key[0] in {name for name, _ in found}}
        assert found == scored and found
        said = {sample.metadata["id"]: sample.output.completion for sample in log.samples or ()}
        own = dict(generations.filter(arm=arm, label=label).select("id", "response").iter_rows())
        assert said == own


def test_a_steered_arm_answers_as_generate_did(answered, tiny_tuned_folder):
    from inspect_ai import eval as evaluate
    from inspect_ai.model import get_model

    import refusal_steering.registry  # noqa: F401
    from refusal_steering.tasks import task_of

    generations = pl.read_parquet(answered / "generations.parquet").filter(kind="fixed", label="harmful")
    model = get_model(f"steered/{tiny_tuned_folder}", run=str(answered), arm=ARMS[1], memoize=False)
    (log,) = evaluate(
        task_of(generations, "mine", "phrases", 6), model=model, log_dir=str(answered / "logs"), display="none"
    )
    assert log.status == "success", log.error
    said = {sample.metadata["id"]: sample.output.completion for sample in log.samples or ()}
    assert said == dict(generations.select("id", "response").iter_rows())
    wanted = {key: n for key, n in expected(answered, "fixed", "harmful").items() if key[0] == "phrases"}
    assert {key: n for key, n in counts_of(log).items() if n} == wanted


@pytest.mark.parametrize(("arguments", "says"), [({}, "-M run="), ({"run": "nowhere"}, "no run directory"),
                                                 ({"arm": "oracle"}, "labels"), ({"arm": "no-such"}, "no-such"),
                                                 ({"recorded": True, "arm": "lowrank"}, "no arm 'lowrank'")])  # fmt: skip
def test_what_can_not_be_opened_is_said(answered, tiny_tuned_folder, arguments, says):
    from refusal_steering.provider import SteeredAPI

    given = {"run": str(answered)} | arguments if arguments else {}
    with pytest.raises(UserError, match=says):
        SteeredAPI(str(tiny_tuned_folder), **given)


def test_tasks_take_the_prompts_of_a_label():
    from refusal_steering.tasks import over_refusal, refusal

    for make, wanted in ((over_refusal, "comply"), (refusal, "refuse")):
        samples = list(make().dataset)
        assert len(samples) > 200 and all(sample.target == wanted for sample in samples)
        assert len({sample.id for sample in samples}) == len(samples)


FINDS = (
    "from importlib.metadata import entry_points; print(*(point.name for point in entry_points(group='inspect_ai')))"
)


@pytest.mark.slow
def test_the_command_lines_of_inspect_count_what_evaluate_counts(tmp_path):
    """The embedded model, steered, on forty prompts: offline, and read back with `inspect log dump`."""
    found = subprocess.run([sys.executable, "-c", FINDS], capture_output=True, text=True, cwd=tmp_path)
    if "refusal_steering" not in found.stdout.split():
        pytest.skip("the project is not installed with its entry point")
    rows = pl.concat(
        [load("embedded:traffic").filter(split="test", label=label).head(20) for label in ("benign", "harmful")]
    )
    prompts, folder, logs = tmp_path / "mine.csv", tmp_path / "run", tmp_path / "logs"
    rows.select("id", "prompt", "label", "split").write_csv(prompts)
    words = ["cli.py", "--run", folder, "extract", "--limit", 30, "vectors", "generate", "--data", prompts, "--limit", 40, "--max-new-tokens", 16,
             "--arm", "fixed", "evaluate"]  # fmt: skip
    told(words, ROOT)
    words = ["-m", "inspect_ai", "eval", "refusal_steering/over_refusal", "refusal_steering/refusal", "--model", "steered/refusal-smollm2",
             "-M", f"run={folder}", "-M", "arm=fixed", "-T", f"data={prompts}", "-T", "max_new_tokens=16", "--log-dir", logs,
             "--display", "plain"]  # fmt: skip
    told(words, tmp_path)
    dumped = [
        json.loads(told(["-m", "inspect_ai", "log", "dump", log], tmp_path)) for log in sorted(logs.glob("*.eval"))
    ]
    assert [log["status"] for log in dumped] == ["success"] * 2
    answers = pl.read_parquet(folder / "generations.parquet")
    said = {
        sample["metadata"]["id"]: sample["output"]["choices"][0]["message"]["content"]
        for log in dumped
        for sample in log["samples"]
    }
    assert said == dict(answers.select("id", "response").iter_rows()) and len(said) == 40
    for log in dumped:
        label = {"over_refusal": "benign", "refusal": "harmful"}[log["eval"]["task"].rpartition("/")[2]]
        counts = {(score["name"], verdict): score["metrics"][verdict]["value"] for score in log["results"]["scores"]
                  for verdict in VERDICTS if score["metrics"][verdict]["value"]}  # fmt: skip
        assert counts == expected(folder, "fixed", label) and {name for name, _ in counts} == {
            "token",
            "phrases",
            "classifier",
        }


def told(words, folder) -> str:
    """What a command line of Python writes."""
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
