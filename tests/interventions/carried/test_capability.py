"""Capability: lm-eval's own `hf` model to the last digit, and steered as plain hooks steer it, from the last context token on."""

import json
import shutil
import sys
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from data import UserError
from data.store.tables import CAPABILITY
from interventions.carried.capability import capability, rows_of
from interventions.carried.hooks import HookedArm
from interventions.steering.arms import Arm, parse_arms
from interventions.steering.plans import Tools, plan_arm
from tests import ROOT, SHARED
from tests.made.prompts import WORDS
from tests.made.tools import EVERY_EDIT, arms_of, lowrank_of, probe_of, vectors_of
from tests.oracles import edit_of, forced_arm, plain, refusal_ids

TASKS = {
    "choices": """
task: choices
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "answers": """
task: answers
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "poem"
generation_kwargs: {until: ["zzz"], max_gen_toks: 5, do_sample: false}
metric_list: [{metric: exact_match}]
""",
    "rolling": """
task: rolling
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}]
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three small tasks on rows of our own, and a group of two of them."""
    import random

    folder, random_ = tmp_path_factory.mktemp("tasks"), random.Random(2)
    rows = []
    for at in range(11):
        choices = [" ".join(random_.choices(WORDS, k=random_.randint(1, 3))) for _ in range(4)]
        question = " ".join(random_.choices(WORDS, k=random_.randint(1, 14)))
        rows.append({"question": question, "choices": choices, "answer": at % 4})
    # Equal tokens, cut at different places: "a b | c d" and "a b c | d" must not share a forward pass once steered.
    rows.append({"question": "tell me", "choices": ["the best", "the poem", "a", "i"], "answer": 0})
    rows.append({"question": "tell me the", "choices": ["best", "poem", "a", "i"], "answer": 1})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, text in TASKS.items():
        data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: '{folder / 'rows.jsonl'}'}}}}\ntest_split: test\n"
        (folder / f"{name}.yaml").write_text(data + text)
    (folder / "both.yaml").write_text(
        "group: both\ntask: [choices, answers]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def tools(tiny_tuned):
    return Tools(vectors_of(tiny_tuned), probe_of(tiny_tuned), lowrank_of(tiny_tuned))


@pytest.fixture(scope="module")
def arms():
    return arms_of(["baseline", *EVERY_EDIT])


def guest(model, arm, tools, **options):
    from interventions.carried.lm_eval import SteeredLM

    hooked = HookedArm(model, plan_arm(model, arm, tools, [{}]), tools)
    return SteeredLM(model, hooked, **{"batch_size": 5, "chat": False} | options)


def asked(kind, rows, **options):
    from lm_eval.api.instance import Instance

    arguments = {
        "loglikelihood": [(row["question"], f" {choice}") for row in rows for choice in row["choices"]],
        "loglikelihood_rolling": [(row["question"],) for row in rows],
        "generate_until": [(row["question"], {"until": ["zzz"], "max_gen_toks": 5} | options) for row in rows],
    }[kind]
    return [Instance(kind, {}, pair, at, ("choices", at, 1)) for at, pair in enumerate(arguments)]


def likelihood_by_hand(model, arm, tools, context, continuation):
    """Of one row, alone, with a plain hook from the last context token on."""
    if arm.kind == "prompt-only":
        context = f"tell me\n\n{context}"
    ids = model.tokenizer(context)["input_ids"]
    given = model.tokenizer(context + continuation)["input_ids"][len(ids) :]
    logs = forced_arm(model, arm, tools, ids, given)
    return logs[np.arange(len(given)), given].sum(), bool((logs.argmax(-1) == given).all())


def test_likelihoods_are_plain_hooks_from_the_last_context_token_on(tiny_tuned, rows, tools, arms):
    """Every scope, operation and route, in lm-eval's own batches; all scored logits differ from the unsteered ones."""
    for arm in arms:
        # lm-eval's own model reads some of the last row's logits one position early, since the row before has the same
        # tokens (its `Collator.get_cache`); as the baseline this one does, too.
        requests = asked("loglikelihood", rows[:-1] if arm.kind == "baseline" else rows)
        lm = guest(tiny_tuned, arm, tools)
        found = lm.loglikelihood(requests, disable_tqdm=True)
        wanted = [likelihood_by_hand(tiny_tuned, arm, tools, *request.args) for request in requests]
        assert np.allclose([pair[0] for pair in found], [pair[0] for pair in wanted], rtol=1e-4, atol=1e-4), arm.name
        assert [pair[1] for pair in found] == [pair[1] for pair in wanted]
        assert lm.changed == (set() if arm.kind == "baseline" else {"choices"})


def test_batches_of_a_size_that_lm_eval_finds_are_steered_too(tiny_tuned, rows, tools, arms):
    requests, arm = asked("loglikelihood", rows), next(arm for arm in arms if arm.kind == "gated")
    fixed, found = (
        guest(tiny_tuned, arm, tools, batch_size=size).loglikelihood(requests, disable_tqdm=True)
        for size in (5, "auto")
    )
    assert np.allclose([pair[0] for pair in fixed], [pair[0] for pair in found], rtol=1e-4)


def test_a_whole_documents_likelihood_is_steered_from_its_first_token_on(tiny_tuned, rows, tools):
    arm = Arm("fixed", "fixed", 2, "weapons", -5.0, unit="unit")
    lm = guest(tiny_tuned, arm, tools)
    found = lm.loglikelihood_rolling(asked("loglikelihood_rolling", rows), disable_tqdm=True)
    for row, value in zip(rows, found, strict=True):
        given = tiny_tuned.tokenizer(row["question"])["input_ids"]
        logs = forced_arm(tiny_tuned, arm, tools, [tiny_tuned.tokenizer.bos_token_id], given)
        assert value == pytest.approx(logs[np.arange(len(given)), given].sum(), rel=1e-4)
    assert lm.changed == {"choices"}


def generated_by_hand(model, arm, tools, context, steps=5):
    """transformers' own generate on one row, with a plain hook."""
    if arm.kind == "prompt-only":
        context = f"tell me\n\n{context}"
    ids = model.tokenizer(context)["input_ids"]
    logits, strength, edit = edit_of(model, arm, tools, ids)
    if arm.kind != "logit-bias":
        return plain(model, ids, arm.layer, arm.scope, steps, **edit)[0]
    biased = logits.clone()
    biased[refusal_ids(model)] += strength
    first = int(biased.argmax())
    if first == model.tokenizer.eos_token_id:
        return [first]
    return [first, *plain(model, [*ids, first], 0, "all", steps - 1)[0]]


def test_generations_are_transformers_own_under_a_plain_hook(tiny_tuned, rows, tools, arms):
    requests = asked("generate_until", rows)
    for arm in arms:
        lm = guest(tiny_tuned, arm, tools)
        found = lm.generate_until(requests, disable_tqdm=True)
        for row, text in zip(rows, found, strict=True):
            tokens = generated_by_hand(tiny_tuned, arm, tools, row["question"])
            end = next(
                (at for at, token in enumerate(tokens) if token == tiny_tuned.tokenizer.eos_token_id), len(tokens)
            )
            assert text == tiny_tuned.tokenizer.decode(tokens[:end], skip_special_tokens=True), (arm.name, row)
        assert lm.changed == (set() if arm.kind == "baseline" else {"choices"})


def test_beams_are_steered_with_their_rows(tiny_tuned, rows, tools):
    """Beam search holds each row several times: in a batch as alone."""
    arm = parse_arms(["gated:benign=-6,harmful=4"], Arm("x", "fixed", 2, unit="unit"))[0]
    options = {"num_beams": 3, "do_sample": False}
    together = guest(tiny_tuned, arm, tools).generate_until(asked("generate_until", rows, **options), disable_tqdm=True)
    alone = guest(tiny_tuned, arm, tools, batch_size=1)
    assert together == alone.generate_until(asked("generate_until", rows, **options), disable_tqdm=True)


def test_the_look_for_a_change_draws_no_random_number(tiny_tuned, rows, tools):
    arm = Arm("fixed", "fixed", 2, "weapons", -5.0, unit="unit")
    texts = []
    for changed in (set(), {"choices"}):
        lm = guest(tiny_tuned, arm, tools)
        lm.changed = changed
        torch.manual_seed(4)
        texts.append(
            lm.generate_until(asked("generate_until", rows, do_sample=True, temperature=1.0), disable_tqdm=True)
        )
    assert texts[0] == texts[1]


def test_an_instruction_stands_in_the_users_turn_of_a_chat(tiny_tuned, tools):
    arm = Arm("prompt-only", "prompt-only", 2, text="be brave")
    history = [{"role": "system", "content": "s"}, {"role": "user", "content": "tell me"}]
    text = guest(tiny_tuned, arm, tools, chat=True).apply_chat_template(history[1:])
    assert text == "<bos><user>be brave\n\ntell me<bot>" and history[1]["content"] == "tell me"


def tables(model, tools, folder, path, arms, tasks, **options):
    return capability(
        model, tools, path / "capability.parquet", arms=arms, tasks=tasks, include=[folder], batch_size=5, **options
    )


def theirs(folder, model, task, **options):
    """lm-eval's own `hf` model on the same task."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    evaluate: Any = simple_evaluate
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return evaluate(model="hf", model_args=f"pretrained={model},dtype=float32", tasks=[task], task_manager=manager,
                           batch_size=5, device="cpu", log_samples=False, **options)  # fmt: skip


def test_the_baseline_is_lm_evals_own_model_to_the_last_digit(
    tiny_tuned, tiny_tuned_folder, tools, folder, rows, tmp_path
):
    arms = parse_arms(["baseline", "routed"], Arm("x", "fixed", 2, strength=-5.0, unit="unit"))
    table = tables(tiny_tuned, tools, folder, tmp_path, arms, ["both", "rolling"])
    assert table.schema == pl.Schema(CAPABILITY) and not list(tmp_path.glob(".*"))
    for task in ("both", "rolling"):
        own = theirs(folder, tiny_tuned_folder, task)
        found = table.filter(arm="baseline").filter(pl.col("task").is_in(list(own["results"])))
        wanted = pl.DataFrame(rows_of(own, "baseline", False), CAPABILITY, orient="row")
        assert found.equals(wanted) and found["n"].unique().to_list() == ([13] if task == "rolling" else [13, 26])
    from lm_eval.models.huggingface import HFLM

    model: Any = HFLM
    own = model(pretrained=str(tiny_tuned_folder), dtype="float32", device="cpu", batch_size=5)
    ours = guest(tiny_tuned, arms[0], tools)
    for kind in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        requests = asked(kind, rows)
        assert getattr(ours, kind)(requests, disable_tqdm=True) == getattr(own, kind)(requests, disable_tqdm=True)
    steered = table.filter(arm="routed")
    assert steered["scored_logits_changed"].all() and not table.filter(arm="baseline")["scored_logits_changed"].any()
    assert steered["value"].to_list() != table.filter(arm="baseline")["value"].to_list()


def test_a_groups_figures_are_told_and_what_is_no_figure_is_not():
    found = {"group": {"alias": "g", "acc,none": np.float32(0.5), "acc_stderr,none": "N/A"},
             "a": {"name": "a", "acc,none": 1, "acc_stderr,none": np.float64(0.25), "f1,strict": 0.0, "text,none": "x"}}  # fmt: skip
    results = {"results": found, "group_subtasks": {"group": ["a", "b"]},
               "n-samples": {"a": {"effective": 3}, "b": {"effective": 4}}}  # fmt: skip
    assert rows_of(results, "routed", True) == [
        ["group", "routed", "acc", 0.5, None, 7, True],
        ["a", "routed", "acc", 1.0, 0.25, 3, True],
        ["a", "routed", "f1,strict", 0.0, None, 3, True],
    ]


def test_an_arm_that_changes_nothing_is_not_reported(tiny_tuned, tools, folder, tmp_path):
    for task in ("choices", "answers"):
        arms = parse_arms(["baseline", "fixed"], Arm("x", "fixed", 2, strength=0.0, unit="unit"))
        with pytest.raises(UserError, match=f"'fixed' changed no scored logit of task '{task}'"):
            tables(tiny_tuned, tools, folder, tmp_path, arms, [task])
    arms = parse_arms(["prompt-only"], Arm("x", "fixed", 2))
    with pytest.raises(UserError, match="changed no scored logit of task 'rolling'"):
        tables(tiny_tuned, tools, folder, tmp_path, arms, ["rolling"])
    assert not (tmp_path / "capability.parquet").exists()


def test_steering_where_nothing_is_scored_is_found_out(tiny_tuned, tools, monkeypatch):
    """As in published code, the batch's last position alone is edited: a shorter row's scored logits stay as they were."""
    from lm_eval.api.instance import Instance

    from interventions.carried import hooks as hooked

    monkeypatch.setattr(hooked, "covered", lambda _scope, at, end: (at == at.max()) & (end >= 0))
    pairs = {"short": ("tell me", " the"), "long": ("how do i kill a python process", " please")}
    requests = [Instance("loglikelihood", {}, pair, 0, (task, 0, 1)) for task, pair in pairs.items()]
    lm = guest(tiny_tuned, Arm("fixed", "fixed", 2, "weapons", -5.0, unit="unit"), tools)
    lm.loglikelihood(requests, disable_tqdm=True)
    assert lm.changed == {"long"}


def test_a_killed_run_keeps_its_finished_tasks(tiny_tuned, tools, folder, tmp_path, monkeypatch):
    from interventions.carried import capability as module

    arms = parse_arms(["baseline", "fixed"], Arm("x", "fixed", 2, strength=-5.0, unit="unit"))
    whole, calls = tables(tiny_tuned, tools, folder, tmp_path / "a", arms, ["choices", "answers"]), []

    def run_task(*arguments):
        calls.append(arguments[2])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    original = module.run_task
    monkeypatch.setattr(module, "run_task", run_task)
    with pytest.raises(KeyboardInterrupt):
        tables(tiny_tuned, tools, folder, tmp_path / "b", arms, ["choices", "answers"])
    assert tables(tiny_tuned, tools, folder, tmp_path / "b", arms, ["choices", "answers"]).equals(whole)
    assert calls == ["choices", "choices", "answers", "answers", "answers"]


BROKEN = """\
task: broken
dataset_path: json
dataset_kwargs: {data_files: nowhere.json}  # without any the hub is asked
output_type: multiple_choice
"""


def test_what_can_not_be_run_is_one_line(tiny_tuned, tools, folder, tmp_path, monkeypatch):
    def fails(arms=("fixed",), tasks=("choices",), include=folder, **options):
        chosen = parse_arms(list(arms), Arm("x", "fixed", 2, strength=-5.0, unit="unit"))
        with pytest.raises(UserError) as caught:
            tables(options.pop("model", tiny_tuned), tools, include, tmp_path, chosen, list(tasks), **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "reads labels" in fails(arms=["oracle"])
    assert "no such folder" in fails(include=tmp_path / "none") and "no such folder" in fails(mirror=tmp_path / "none")
    assert "no such file" in fails(tasks=["none.yaml"])
    (tmp_path / "broken.yaml").write_text(BROKEN)
    assert "can't be run" in fails(tasks=[str(tmp_path / "broken.yaml")])
    from dataclasses import replace

    from interventions.backends.backend import Backend
    from interventions.backends.ndif.client import Client

    far = replace(tiny_tuned, backend=Backend("remote", Client("http://127.0.0.1:1", 1.0)))
    assert "--local" in fails(model=far)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    assert "pip install" in fails()


def test_the_command(run, tiny_tuned_folder, prompts_file, folder, tmp_path, monkeypatch):
    words = [
        "--run",
        tmp_path / "run",
        "--model",
        tiny_tuned_folder,
        "--data",
        prompts_file,
        "--json",
        "capability",
        "--include-path",
        folder,
    ]
    again = [
        *words, "--task", "choices", "--task", folder / "answers.yaml", "--limit", 5, "--arm", "baseline", "--arm", "fixed",
    ]  # fmt: skip
    code, out, err = run(*again)
    assert code == 0, err
    (line,) = map(json.loads, out.splitlines())
    assert line["command"] == "capability" and line["arms"] == ["baseline", "fixed"]
    path = tmp_path / "run" / "capability.parquet"
    table = pl.read_parquet(path)
    assert table["n"].unique().to_list() == [5] and table["task"].unique().sort().to_list() == ["answers", "choices"]
    stamp = path.stat().st_mtime_ns
    assert run(*again, "--batch-size", 2)[0] == 0 and path.stat().st_mtime_ns == stamp
    copy = tmp_path / "tasks"
    shutil.copytree(folder, copy)
    (copy / "choices.yaml").write_text((copy / "choices.yaml").read_text() + "description: 'tell me '\n")
    code, _, err = run(
        *[copy if word is folder else word for word in again[:-4]], "--arm", "baseline", "--task", "choices"
    )
    assert code == 0 and "files" in err and path.stat().st_mtime_ns != stamp
    code, out, err = run(*words, "--task", "chioces")
    assert code == 1 and "did you mean" in err and not out
    code, _, err = run(*words, "--task", "choices", "--strength", "1e-30", "--arm", "fixed")
    assert code == 1 and "changed no scored logit" in err and err.count("error") == 1
    code, _, err = run(*words, "--remote", "--host", "http://127.0.0.1:1")
    assert code == 1 and "--local" in err
    assert run(*words, "--batch-size", "many")[0] == 2
    code, _, err = run("--run", tmp_path / "run", "report")
    assert code == 0 and "Capability" in (tmp_path / "run" / "report.html").read_text(), err


def test_a_mirrors_copy_is_read_instead_of_the_hub(tiny_tuned, tools, folder, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "hub" / "some" / "set").mkdir(parents=True)
    pl.DataFrame(rows).write_parquet(tmp_path / "hub" / "some" / "set" / "test.parquet")
    task = tmp_path / "mirrored.yaml"
    task.write_text(
        TASKS["choices"].replace("choices\n", "mirrored\n", 1) + "dataset_path: some/set\ntest_split: test\n"
    )
    arms = parse_arms(["baseline"], Arm("x", "fixed", 2))
    table = tables(tiny_tuned, tools, folder, tmp_path, arms, [str(task), "choices"], mirror=tmp_path / "hub")
    one, two = (table.filter(task=name).drop("task") for name in ("mirrored", "choices"))
    assert one.equals(two) and one.height == 2
    task.write_text(task.read_text().replace("test_split: test", "test_split: test\ntraining_split: train"))
    with pytest.raises(UserError, match=r"can't be run: KeyError: 'train' \(a split or column that its data lacks\?\)"):
        tables(tiny_tuned, tools, folder, tmp_path, arms, [str(task)], mirror=tmp_path / "hub")


HUB = SHARED / "hub"


@pytest.mark.skipif(not (HUB / "allenai" / "ai2_arc").exists(), reason="needs ../shared/hub")
@pytest.mark.parametrize(("task", "limit"), [("arc_easy_test", 4), ("gsm8k_test", 2)])
def test_a_real_task_offline_from_a_mirror(tiny_tuned, tiny_tuned_folder, tools, tmp_path, monkeypatch, task, limit):
    """On real items, with the data path given at run time: the baseline is lm-eval's `hf`, and steering is felt."""
    from data.prompts.hub import mirrored

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tasks = ROOT / "benchmarks" / "tasks"
    arms = parse_arms(["baseline", "gated"], Arm("x", "fixed", 2, strength=-5.0, unit="unit"))
    table = tables(tiny_tuned, tools, tasks, tmp_path, arms, [task], mirror=HUB, limit=limit, max_new_tokens=4)
    with mirrored(HUB):
        own = theirs(tasks, tiny_tuned_folder, task, limit=limit, gen_kwargs={"max_gen_toks": 4})
    assert table.filter(arm="baseline").equals(pl.DataFrame(rows_of(own, "baseline", False), CAPABILITY, orient="row"))
    assert table.filter(arm="gated")["scored_logits_changed"].all() and table["n"].unique().to_list() == [limit]
