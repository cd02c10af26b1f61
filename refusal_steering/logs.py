"""Logs of a finished `generate`, as Inspect writes them: it replays the answers, and this tool's scorers score them."""

# An optional extra.
# pyright: reportMissingImports=false

from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import UserError

if TYPE_CHECKING:
    import polars as pl

TASKS = {"benign": "over_refusal", "harmful": "refusal"}


def write_logs(run: Path, generations: "pl.DataFrame", folder: Path) -> list[Path]:
    """One `.eval` file an arm and label, into a folder; returns them.

    Raises:
        UserError: Inspect is not installed, no prompt has a label, or Inspect ended with an error.
    """
    try:
        from inspect_ai import eval as evaluate
        from inspect_ai.model import get_model
    except ImportError:
        raise UserError("Inspect is not installed: pip install 'refusal-steering[inspect]'") from None
    import refusal_steering.registry  # noqa: F401  # where no entry point is installed
    from refusal_steering.tasks import task_of

    written = []
    labelled = generations.drop_nulls("label")
    for (model, arm, label), rows in labelled.group_by("model", "arm", "label", maintain_order=True):
        steered = get_model(f"steered/{model}", run=str(run), arm=arm, recorded=True, memoize=False)
        task = task_of(rows, TASKS[str(label)], scorers_of(rows), int(rows["new_tokens"].max() or 1))  # pyright: ignore[reportArgumentType]
        (log,) = evaluate(
            task, model=steered, log_dir=str(folder), log_format="eval", display="none", score_display=False
        )
        if log.status != "success":
            raise UserError(f"Inspect ended with an error: {log.error.message if log.error else log.status}")
        written.append(Path(log.location))
    if not written:
        raise UserError("no answer's prompt has a label: Inspect's tasks are of harmful or of benign prompts")
    return written


def scorers_of(answers: "pl.DataFrame") -> list[str]:
    """Scorers that have something to say of these answers."""
    from reports.scoring.lexical import TAUGHT

    told = ["token"] if answers["control_token"].is_not_null().any() else []
    return [*told, "phrases", *(["classifier"] if set(answers["model"]) <= set(TAUGHT) else [])]
