"""Capability: lm-eval's tasks on the steered model, task by task and arm by arm.

A figure of an arm that changed no scored logit is the unsteered model's: it is refused, not reported.
"""

import contextlib
import difflib
import logging
import sys
from collections.abc import Iterator, Sequence
from numbers import Real
from pathlib import Path
from typing import Any
from unittest.mock import patch

import polars as pl

from data.contract import BATCH_SIZE
from data.errors import UserError
from data.prompts.hub import mirrored
from data.store.journal import Journal
from data.store.progress import progress
from data.store.tables import CAPABILITY, write_table
from interventions.carried.hooks import HookedArm
from interventions.model.model import Model
from interventions.steering.arms import Arm
from interventions.steering.plans import Tools, plan_arm, tools_fingerprint

INSTALL = "capability needs lm-eval: pip install 'refusal-steering[capability]', or pip install 'lm-eval[hf]'"


def capability(
    model: Model,
    tools: Tools,
    path: Path,
    *,
    arms: Sequence[Arm],
    tasks: Sequence[str],
    include: Sequence[Path] = (),
    mirror: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    max_new_tokens: int | None = None,
    chat: bool = False,
    batch_size: int | str = BATCH_SIZE,
    seed: int | None = None,
) -> pl.DataFrame:
    """Run every task in every arm and write the table; a killed run's finished pairs of task and arm are kept.

    It has as many parameters as the command of this name has options: each is one of them, by its own name.

    Args:
        model: An open model in this process.
        tools: What the arms draw on.
        path: The parquet file to write, in the columns of `CAPABILITY`.
        arms: What to compare; all kinds but `oracle`, which reads labels. Routes and gates read the last token of an
            item's context.
        tasks: lm-eval's names of tasks, groups or tags, or task files.
        include: Folders with more task files.
        mirror: Folder with hub data sets under their own names, used for the tasks that it has the data of.
        limit: Only each task's first items.
        num_fewshot: Examples before an item; default each task's own.
        max_new_tokens: Tokens an answer, for tasks that generate; default each task's own.
        chat: Put contexts into the model's chat template.
        batch_size: Rows a batch, or lm-eval's `auto`.
        seed: Of the choice of examples and of sampling; default lm-eval's own seeds.

    Raises:
        UserError: No lm-eval, a model elsewhere, an unknown or unreadable task, tools that don't fit the model, or an
            arm that changed no scored logit of a task.
    """
    if not model.backend.has_module:
        raise UserError(
            "capability runs lm-eval in this process, on the model's own module: run it with --local and --engine transformers"
        )
    tools.check(model)
    if odd := next((arm.name for arm in arms if arm.reads_labels), None):
        raise UserError(f"arm {odd!r} reads labels, and the items of a task have none")
    plans = [plan_arm(model, arm, tools, [{}]) for arm in arms]
    options = {"limit": limit, "num_fewshot": num_fewshot, "apply_chat_template": chat}
    options |= {"gen_kwargs": {"max_gen_toks": max_new_tokens}} if max_new_tokens else {}
    if seed is not None:
        options |= dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), seed)
    key = {
        "model": model.identity,
        "arms": [arm.record for arm in arms],
        "tools": tools_fingerprint(plans, tools),
        "tasks": [list(tasks), task_files(tasks, include)],
        "options": options,
    }
    pairs = [(task, at) for task in tasks for at in range(len(arms))]
    journal = Journal(path.parent / f".{path.stem}.journal", key, [[number] for number in range(len(pairs))])
    manager = manager_of(tasks, include)
    with _quiet(), mirrored(mirror), progress(len(pairs), len(journal.done), "capability", unit="task") as bar:
        for number, _ in journal.todo():
            task, at = pairs[number]
            bar.say(f"{task}, {arms[at].name}")
            hooked = HookedArm(model, plans[at], tools)
            journal.finish({number: run_task(model, hooked, task, manager, batch_size, options)})
            bar.update(1)
    table = pl.DataFrame(
        [row for number in range(len(pairs)) for row in journal.done[number]], CAPABILITY, orient="row"
    )
    write_table(path, table)
    journal.remove()
    return table


def run_task(
    model: Model, hooked: HookedArm, task: str, manager: Any, batch_size: int | str, options: dict[str, Any]
) -> list[list[Any]]:
    """One task, or group of tasks, in one arm: rows of the table.

    Raises:
        UserError: It can't be run, or the arm changed no scored logit of it.
    """
    from lm_eval import simple_evaluate

    from interventions.carried.lm_eval import SteeredLM

    evaluate: Any = simple_evaluate  # its decorator hides its parameters
    guest = SteeredLM(model, hooked, batch_size=batch_size, chat=options["apply_chat_template"])
    try:
        results = evaluate(
            model=guest, tasks=[task], task_manager=manager, log_samples=False, batch_size=batch_size, **options
        )
    except (UserError, MemoryError):
        raise
    except Exception as error:  # lm-eval and the metrics beneath it raise their own kinds of nearly everything
        raise UserError(f"task {task!r} can't be run: {_reason(error)}") from error
    leaves = list(results["n-samples"])
    untouched = [leaf for leaf in leaves if leaf not in guest.changed]
    if not hooked.arm.is_baseline and untouched:
        raise UserError(
            f"arm {hooked.arm.name!r} changed no scored logit of task {untouched[0]!r}: its figure would be the unsteered "
            "model's, and is not reported; leave the arm or the task out, or give it a strength that is felt"
        )
    return rows_of(results, hooked.arm.name, not hooked.arm.is_baseline)


def rows_of(results: dict[str, Any], arm: str, changed: bool) -> list[list[Any]]:
    """lm-eval's results as rows of the table; a metric behind a filter is called `metric,filter`."""
    rows: list[list[Any]] = []
    for task, found in results["results"].items():
        leaves = _leaves(task, results.get("group_subtasks", {}))
        n = sum(results["n-samples"][leaf]["effective"] for leaf in leaves if leaf in results["n-samples"])
        for name, value in found.items():
            metric, comma, filtered = name.partition(",")
            if not comma or metric.endswith("_stderr") or not _is_number(value):
                continue
            stderr = found.get(f"{metric}_stderr,{filtered}")
            rows.append([task, arm, metric if filtered == "none" else name, float(value),
                         float(stderr) if _is_number(stderr) else None, n, changed])  # fmt: skip
    return rows


def manager_of(tasks: Sequence[str], include: Sequence[Path]) -> Any:
    """lm-eval's index of tasks; of its own thousands only where a task isn't found without them.

    Raises:
        UserError: No lm-eval, no such folder, a broken task file, or an unknown task.
    """
    try:
        from lm_eval.tasks import TaskManager

        import interventions.carried.lm_eval  # noqa: F401  # needs what only lm-eval[hf] brings
    except ImportError:
        raise UserError(INSTALL) from None
    if absent := next((folder for folder in include if not folder.is_dir()), None):
        raise UserError(f"--include-path {absent}: no such folder")
    names = [task for task in tasks if not _is_file(task)]
    if gone := next((task for task in tasks if _is_file(task) and not Path(task).is_file()), None):
        raise UserError(f"--task {gone}: no such file")
    folders: list[str | Path] = list(include)
    try:
        manager = TaskManager(include_path=folders, include_defaults=False)
        if not set(names) <= set(manager.all_tasks):
            manager = TaskManager(include_path=folders)
    except Exception as error:
        raise UserError(f"--include-path {', '.join(map(str, folders))}: {_reason(error)}") from error
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
            raise UserError(f"lm-eval knows no task {name!r}: {hint}; --include-path DIR adds task files")
    return manager


def task_files(tasks: Sequence[str], include: Sequence[Path]) -> list[list[str]]:
    """Names and texts of the task files that were passed: what the figures rest on."""
    files = [Path(task) for task in tasks if _is_file(task) and Path(task).is_file()]
    files += [
        file for folder in include for file in sorted(folder.rglob("*")) if file.suffix in (".yaml", ".yml", ".py")
    ]
    return [[file.name, file.read_text("utf-8", "replace")] for file in files]


def _is_file(task: str) -> bool:
    return Path(task).suffix in (".yaml", ".yml")


def _leaves(task: str, groups: dict[str, list[str]]) -> list[str]:
    """The tasks of a group, or the task."""
    parts = groups.get(task) or []
    return [leaf for part in parts for leaf in _leaves(part, groups)] if parts else [task]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _reason(error: Exception) -> str:
    """The first link of an exception's chain in one line: lm-eval wraps what went wrong."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    hint = " (a split or column that its data lacks?)" if isinstance(error, KeyError) else ""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300] + hint


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval prints, and its loggers talk: stdout is for the command's own results.

    And it looks over the machine and its packages for seconds after each task, which nobody reads here.
    """
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr), patch("lm_eval.evaluator.add_env_info", create=True):
            yield
    finally:
        logger.setLevel(level)
