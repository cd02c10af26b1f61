"""One group of chained commands: registering them, and what a chain shares."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import click

from commands.framework.options import Declared, shared
from commands.framework.output import Summary, emit, warn
from commands.framework.records import prompt_format
from commands.framework.settings import Command, Record, Settings
from data.contract import ASKED_BYTES, TUNED_MODEL
from data.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from interventions.backends.backend import Backend, VLLMOptions
    from interventions.model.model import Model
    from interventions.steering.first_token import FirstPositions


@dataclass
class Session:
    """What a chain of commands shares: the open backend and the open model, and how its answers to prompts begin."""

    backends: dict[tuple[Any, ...], "Backend"] = field(default_factory=dict)
    models: dict[tuple[Any, ...], "Model"] = field(default_factory=dict)
    openings: dict[tuple[str, str], "FirstPositions"] = field(default_factory=dict)

    def backend(self, s: Settings) -> "Backend":
        """Where traces run; a server is asked once whether it is there."""
        from data.store.progress import Watch
        from interventions.backends.backend import open_backend

        key = (
            s.get("where"),
            s.get("host"),
            s.get("timeout"),
            s.get("in_flight"),
            s.get("sandbox"),
            s.get("insecure"),
            s.get("yes"),
            vllm_options(s),
        )
        if key not in self.backends:
            watch = Watch(as_json=s.get("as_json"))
            self.backends[key] = open_backend(
                key[0], key[1], timeout=key[2], in_flight=key[3], watch=watch, sandbox=key[4], insecure=key[5],
                most_bytes=None if key[6] else ASKED_BYTES, vllm=key[7],
            )  # fmt: skip
        return self.backends[key]

    def model(self, s: Settings, record: Record | None = None, *, trusted: bool = False) -> "Model":
        """The model that the settings name, else the record, else the default; opened once.

        One that was not opened before goes through cheap checks, unless it is trusted.
        """
        from interventions.model.kinds import rules_of
        from interventions.model.opening import open_model
        from interventions.reading.checks import check_once

        backend = self.backend(s)
        name = s.get("model", record) or self._default_model(backend)
        put = prompt_format(s, record)
        follow = bool(s.given("generation_config"))
        placed = s.get("device"), s.get("device_map"), s.get("offload_folder"), s.get("quantize", record)
        key = (name, backend, placed, put, s.get("dtype", record))
        if key not in self.models:
            device, device_map, folder, quantize = placed
            model = open_model(name, remote=backend, device=device, dtype=key[4], prompt_format=put, follow=follow,
                               device_map=device_map, offload_folder=folder, quantize=quantize)  # fmt: skip
            if not trusted and backend.has_module:
                check_once(model)
            self.models |= {key: model, (*key[:4], model.dtype): model}
        model = self.models[key]
        rules = rules_of(model.module, name) if follow else {}
        return model if model.rules == rules else replace(model, rules=rules)

    def first_positions(
        self, model: "Model", prompts: "pl.DataFrame", journal: "Path | None" = None
    ) -> "FirstPositions":
        """The first generated position of prompts, unsteered; looked at once, in batches that are noted in `journal`."""
        from data import fingerprint
        from interventions.steering.first_token import first_positions

        key = (repr(model.identity), fingerprint(prompts))
        if key not in self.openings:
            self.openings[key] = first_positions(model, prompts["prompt"].to_list(), journal=journal)
        return self.openings[key]

    def traffic(self) -> dict[str, int]:
        """What went over the lines of all backends so far."""
        total: Counter[str] = Counter()
        for backend in self.backends.values():
            total.update(backend.traffic)
        return dict(total)

    def _default_model(self, backend: "Backend") -> str:
        if not backend.is_remote or backend.is_loopback:
            return TUNED_MODEL
        from interventions.backends.ndif.server import pick_llama

        name = pick_llama(backend.address).name
        warn(f"no --model given: {name} is up there and will be used")
        return name


def vllm_options(s: Settings) -> "VLLMOptions | None":
    """How a vLLM engine is opened, where the settings ask for one.

    Raises:
        UserError: Options of vLLM without it.
    """
    if s.get("engine") != "vllm":
        odd = [name for name in ("serve", "tensor_parallel", "requests", "max_model_len") if s.given(name)]
        if odd:
            raise UserError(f"--{odd[0].replace('_', '-')} is for --engine vllm: pass that too, or leave it out")
        return None
    from interventions.backends.backend import VLLMOptions

    return VLLMOptions(
        tensor_parallel=s.get("tensor_parallel"),
        requests=s.get("requests"),
        max_model_len=s.get("max_model_len"),
        serve=s.get("serve") or "",
        timeout=s.get("timeout"),
        insecure=s.get("insecure"),
    )


@click.group(chain=True, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
@shared
@click.pass_context
def cli(ctx: click.Context, **_options: Any) -> None:
    """Read and steer refusal in Llama models.

    Commands chain and share a run directory: `python cli.py extract vectors trace evaluate report`. A command makes
    what it needs and finds missing. Options before the first command hold for all of them, those behind a command for
    that one alone. Every option also comes from REFUSAL_OPTION or REFUSAL_COMMAND_OPTION.
    """
    ctx.obj = Session()


Perform = Callable[[Session, Settings], Summary]


def command(
    *options: Declared | Callable[..., Any], writes: bool = True, many: Sequence[str] = (), cls: type[Command] = Command
) -> Callable[[Perform], click.Command]:
    """Register a function as a command: it gets the session and settings and returns its summary.

    One that `writes` nothing neither makes the run directory nor waits for another's lock on it. After an option of
    `many` any number of values may stand. `cls` parses its words.
    """

    def register(perform: Perform) -> click.Command:
        name = perform.__name__.rstrip("_")

        def run(**_options: Any) -> None:
            from data.store.rundir import writing

            ctx = click.get_current_context()
            settings = Settings(ctx)
            session: Session = ctx.obj
            before = session.traffic()
            with writing(settings.run) if writes else nullcontext():
                summary = perform(session, settings)
            remote = {name: number - before.get(name, 0) for name, number in session.traffic().items()}
            if any(remote.values()):
                summary["remote"] = remote
            emit(name, summary, settings.get("as_json"))

        PERFORM[name] = perform
        run = shared(run, [option for option in options if isinstance(option, Declared)])
        for option in reversed(options):  # a command's own options come first in its help
            run = option(run)
        return cli.command(name, cls=cls, help=perform.__doc__, many=many)(run)

    return register


PERFORM: dict[str, Perform] = {}


def perform(session: Session, s: Settings, name: str) -> Summary:
    """Do what another command does, with its defaults for what was not given."""
    return PERFORM[name](session, s.for_command(name))
