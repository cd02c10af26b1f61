"""`capability`: what lm-eval's tasks say of every arm."""

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from commands.framework.app import Session, command
from commands.framework.arms import STEERING, chosen_arms
from commands.framework.records import CAPABILITY, model_key, note, unchanged
from commands.framework.settings import Settings
from data.errors import UserError

TASKS = ("arc_easy",)


class Rows(click.ParamType):
    """A number of rows, or lm-eval's `auto` or `auto:N`."""

    name = "rows"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Parse, or fail as a usage error."""
        text = str(value)
        number = text.removeprefix("auto:") if text.startswith("auto:") else text
        if text != "auto" and not (number.isdecimal() and int(number) > 0):
            self.fail(f"{value!r} is neither a number of rows nor auto", param, ctx)
        return int(text) if text.isdecimal() else text


@command(
    *STEERING,
    click.option("--task", multiple=True, help="lm-eval's name of a task, group or tag, or a task file (.yaml); repeatable.  "
                 f"[default: {', '.join(TASKS)}]"),
    click.option("--include-path", multiple=True, type=click.Path(file_okay=False, path_type=Path), help="Folder with more "
                 "task files; a task file may run Python beside it; repeatable.  [default: none]"),
    click.option("--num-fewshot", type=click.IntRange(min=0), help="Examples before an item.  [default: the task's]"),
    click.option("--max-new-tokens", type=click.IntRange(min=1), help="Tokens an answer, in tasks that generate.  "
                 "[default: the task's]"),
    click.option("--chat-template", is_flag=True, default=None, help="Put items into the model's chat template.  "
                 "[default: off, as in lm-eval]"),
    click.option("--batch-size", type=Rows(), help="Rows a batch, or auto.  [default: 8]"),
)  # fmt: skip
def capability(session: Session, s: Settings) -> dict[str, Any]:
    """Run lm-eval's tasks on every arm, steered wherever a logit is scored; --limit takes each task's first items."""
    import polars as pl

    from data.store.rundir import now
    from interventions.carried.capability import INSTALL, task_files
    from interventions.carried.capability import capability as run_tasks

    start = now()
    if s.get("where") == "remote":
        raise UserError("capability runs lm-eval on the model in this process, and so only with --local")
    try:
        lm_eval = version("lm-eval")
    except PackageNotFoundError:
        raise UserError(INSTALL) from None
    model, arms, tools, rests_on = chosen_arms(session, s)
    tasks, include = s.get("task", TASKS), s.get("include_path", ())
    options = {"limit": s.get("limit"), "num_fewshot": s.get("num_fewshot"), "max_new_tokens": s.get("max_new_tokens"),
               "chat": s.get("chat_template", False), "seed": s.get("seed")}  # fmt: skip
    key = model_key(model) | rests_on | options | {
        "arms": [asdict(arm) for arm in arms],
        "tasks": list(tasks),
        "files": hashlib.sha256(json.dumps(task_files(tasks, include)).encode()).hexdigest(),
        "lm_eval": lm_eval,
    }  # fmt: skip
    path = s.run / "capability.parquet"
    if unchanged(s, CAPABILITY, key, path):
        table = pl.read_parquet(path)
    else:
        table = run_tasks(model, tools, path, arms=arms, tasks=tasks, include=include, mirror=s.get("data_mirror"),
                          batch_size=s.get("batch_size", 8), **options)  # fmt: skip
        note(s, CAPABILITY, key, model, start, data=list(tasks), options=s.given())
    return {"tasks": len(tasks), "arms": [arm.name for arm in arms], "table": table, "wrote": str(path)}
