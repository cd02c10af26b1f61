"""One group of chained commands: registering them, and what a chain shares."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from commands.output import emit
from commands.settings import Command, Settings, shared
from data.errors import UserError

if TYPE_CHECKING:
    from interventions.models import Model

DEFAULT_MODEL = "smollm2"


@dataclass
class Session:
    """What a chain of commands shares: the open model."""

    models: dict[tuple[Any, ...], "Model"] = field(default_factory=dict)

    def model(self, s: Settings, record: dict[str, Any] | None = None) -> "Model":
        """The model that the settings name, else the record, else the default; opened once."""
        from interventions.backends import is_loopback, resolve
        from interventions.embedded import ALIASES
        from interventions.models import open_model

        name = s.get("model", DEFAULT_MODEL, record)
        key = (name, s.get("where", "local"), s.get("host"), s.get("device"), s.get("dtype", None, record))
        if key not in self.models:
            where = resolve(key[1], key[2])
            if isinstance(where, str) and where != "local" and name in ALIASES and not is_loopback(where):
                raise UserError(f"model {name!r} lives on this machine; pass --model with a hub id")
            model = open_model(name, remote=where, device=key[3], dtype=key[4])
            self.models |= {key: model, (*key[:4], model.dtype): model}
        return self.models[key]


@click.group(chain=True, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
@shared
@click.pass_context
def cli(ctx: click.Context, **_options: Any) -> None:
    """Read and steer refusal in Llama models.

    Commands chain and share a run directory: `python cli.py extract vectors trace evaluate report`. A command makes
    what it needs and finds missing. Every option also comes from REFUSAL_OPTION or REFUSAL_COMMAND_OPTION.
    """
    ctx.obj = Session()


MAKERS: dict[str, Callable[[Session, Settings], dict[str, Any]]] = {}


def command(*options: Callable[..., Any]) -> Callable[[Callable[[Session, Settings], dict[str, Any]]], click.Command]:
    """Register a function as a command: it gets the session and settings and returns its summary."""

    def register(make: Callable[[Session, Settings], dict[str, Any]]) -> click.Command:
        name = make.__name__.rstrip("_")

        def run(**_options: Any) -> None:
            from interventions.rundir import writing

            ctx = click.get_current_context()
            settings = Settings(ctx)
            with writing(settings.run):
                emit(name, make(ctx.obj, settings), settings.get("as_json", False))

        for option in reversed(options):
            run = option(run)
        MAKERS[name] = make
        return cli.command(name, cls=Command, help=make.__doc__)(shared(run))

    return register
