"""`capability`: what lm-eval's tasks say of every arm."""

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version

from commands.framework.app import Session, command
from commands.framework.arms import chosen_arms
from commands.framework.artefacts import CAPABILITY
from commands.framework.options import BATCH_SIZE, BATCH_TOKENS, CHAT, FEWSHOT, INCLUDE, NEW_TOKENS, STEERING, TASK
from commands.framework.output import Summary, warn
from commands.framework.records import model_key, note, unchanged
from commands.framework.settings import Settings
from data.errors import UserError


@command(
    *STEERING, TASK, INCLUDE, FEWSHOT,
    NEW_TOKENS.but(help="Tokens an answer, in tasks that generate.", default=None, shown="the task's"), CHAT,
    BATCH_SIZE,
    BATCH_TOKENS.but(help="Padded tokens a batch of what is made on the way; lm-eval's batches are --batch-size rows."),
)  # fmt: skip
def capability(session: Session, s: Settings) -> Summary:
    """Run lm-eval's tasks on every arm, steered wherever a logit is scored; --limit takes each task's first items."""
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
    if s.given("batch_tokens") is not None:
        warn("capability: --batch-tokens does not size lm-eval's batches, --batch-size does")
    model, arms, tools, rests_on = chosen_arms(session, s)
    tasks, include = s.get("task"), s.get("include_path")
    options = {"limit": s.get("limit"), "num_fewshot": s.get("num_fewshot"), "max_new_tokens": s.get("max_new_tokens"),
               "chat": s.get("chat_template"), "seed": s.get("seed")}  # fmt: skip
    key = model_key(model) | rests_on | options | {
        "arms": [arm.record for arm in arms],
        "tasks": list(tasks),
        "files": hashlib.sha256(json.dumps(task_files(tasks, include)).encode()).hexdigest(),
        "lm_eval": lm_eval,
    }  # fmt: skip
    path = CAPABILITY.path(s.run)
    if unchanged(s, CAPABILITY, key):
        table = CAPABILITY.read(s.run)
    else:
        table = run_tasks(model, tools, path, arms=arms, tasks=tasks, include=include, mirror=s.get("data_mirror"),
                          batch_size=s.get("batch_size"), **options)  # fmt: skip
        note(s, CAPABILITY, key, model, start, data=tasks)
    return {"tasks": len(tasks), "arms": [arm.name for arm in arms], "table": table, "wrote": str(path)}
