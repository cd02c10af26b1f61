"""A run directory and an arm, opened to answer prompts."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from data.errors import UserError

if TYPE_CHECKING:
    from interventions.model.model import Model
    from interventions.steering.arms import Arm
    from interventions.steering.plans import Tools

DATASET = "inspect"


@dataclass(frozen=True)
class Opened:
    """A model, an arm and what it draws on."""

    model: "Model"
    arm: "Arm"
    tools: "Tools"

    def answers(self, prompts: list[str], max_new_tokens: int) -> list[dict[str, Any]]:
        """Rows of `GENERATIONS`, one a prompt, in order."""
        import polars as pl

        from data.store.tables import PROMPTS
        from interventions.steering.generate import answered

        rows = [{"id": str(at), "prompt": prompt, "dataset": DATASET} for at, prompt in enumerate(prompts)]
        with TemporaryDirectory() as folder:
            done = answered(self.model, pl.DataFrame(rows, schema=PROMPTS), self.tools, Path(folder) / "answers.parquet",
                            arms=[self.arm], max_new_tokens=max_new_tokens)  # fmt: skip
        return done.table.to_dicts()


def open_arm(run: Path, name: str, arm: str, **options: Any) -> Opened:
    """What `generate --arm ARM` of a run directory would answer with; nothing is made.

    Args:
        run: The run directory, with vectors and what else the arm draws on.
        name: The model, which is the run's.
        arm: As `--arm` takes it.
        options: Other options of `generate`, such as `device`.

    Raises:
        UserError: The run lacks something, is another model's, or the arm reads labels, which an evaluation has no place for.
    """
    import commands.framework.arms as framework
    from commands.framework.app import Session
    from data.contract import LABELLED_GATE

    if not (run / "run.json").exists():
        raise UserError(f"{run} is no run directory: run `python cli.py --run {run} vectors` first")
    session, settings = Session(), settings_of(run, name, arm, options)
    model, arms, tools, _ = framework.chosen_arms(session, settings)
    (chosen,) = arms
    if chosen.does.reads_labels or (chosen.is_gated and chosen.gate == LABELLED_GATE):
        raise UserError(f"arm {arm!r} reads the prompts' labels, which Inspect does not hand to a model")
    return Opened(model, chosen, tools)


def settings_of(run: Path, name: str, arm: str, options: dict[str, Any]) -> Any:
    """The settings of a `generate` with this arm."""
    import click

    from commands.framework.app import cli
    from commands.framework.settings import Settings

    import_module("commands.generate")  # registers the command
    words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    try:
        group = cli.make_context("refusal", ["--run", str(run), "--model", name, "--no-auto", "generate"])
        return Settings(cli.commands["generate"].make_context("generate", ["--arm", arm, *words], parent=group))
    except click.UsageError as error:
        raise UserError(error.format_message()) from None
