"""Which value of an option counts: the command's flag, the group's, two environment variables.

After those come, where a command reads an artefact, that artefact's record, and the default; the commands ask for
these themselves, through `Settings.get`.
"""

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import click

WHERES = ("local", "simulate", "remote")
LISTS = {"data": os.pathsep}


class Layers(click.ParamType):
    """Block numbers: `5`, `0-9`, `3,5,10-12`."""

    name = "layers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Parse, or fail as a usage error."""
        if isinstance(value, tuple):
            return value
        try:
            numbers: list[int] = []
            for part in str(value).split(","):
                first, dash, last = part.strip().partition("-")
                span = range(int(first), int(last) + 1) if dash else [int(first)]
                if not span:
                    raise ValueError
                numbers.extend(span)
        except ValueError:
            self.fail(f"{value!r} is not a list of layers such as 5, 0-9 or 3,5,10-12", param, ctx)
        return tuple(numbers)


class LayerOrAuto(click.ParamType):
    """A block number, or `auto`."""

    name = "layer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Parse, or fail as a usage error."""
        if value == "auto" or isinstance(value, int):
            return value
        if not str(value).isdecimal():
            self.fail(f"{value!r} is neither a layer such as 17 nor auto", param, ctx)
        return int(value)


class Finite(click.ParamType):
    """A number that is one."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse, or fail as a usage error."""
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number", param, ctx)
        if number != number or number in (float("inf"), float("-inf")):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class Numbers(click.ParamType):
    """Numbers with commas between them: `-0.1,-0.3`."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Parse, or fail as a usage error."""
        if isinstance(value, tuple):
            return value
        return tuple(Finite().convert(part, param, ctx) for part in str(value).split(","))


SHARED: list[Callable[[Any], Any]] = [
    click.option("--run", type=click.Path(file_okay=False, path_type=Path), help="Run directory.  [default: runs/default]"),
    click.option("--model", help="Hub id, folder or alias (refusal-smollm2, smollm2).  [default: refusal-smollm2]"),
    click.option("--local", "where", flag_value="local", help="Run here.  [default]"),
    click.option("--simulate", "where", flag_value="simulate", help="Ship and rebuild each trace in-process first."),
    click.option("--remote", "where", flag_value="remote", help="Run on an NDIF server."),
    click.option("--host", help="NDIF server's address.  [default: nnsight's configuration]"),
    click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds a remote job may take.  [default: 600]"),
    click.option("--in-flight", type=click.IntRange(1, 64), help="Remote jobs under way at once.  [default: 4]"),
    click.option("--device", help="torch device.  [default: cuda if there is one, else cpu]"),
    click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]),
                 help="Type of the weights.  [default: float32 on a CPU, the checkpoint's elsewhere]"),
    click.option("--batch-tokens", type=click.IntRange(min=1), help="Padded tokens a batch.  [default: 2048; on a GPU what fits]"),
    click.option("--seed", type=click.IntRange(min=0), help="Seed of everything random.  [default: 0]"),
    click.option("--limit", type=click.IntRange(min=1), help="Only the first N prompts.  [default: all]"),
    click.option("--data", multiple=True, help="A name that `datasets` lists, NAME[:CONFIG][/PART]; a hub id with a "
                 "column prompt; or a .jsonl, .csv or .parquet file; repeatable.  [default: embedded]"),
    click.option("--data-mirror", type=click.Path(file_okay=False, path_type=Path), help="Folder with hub data sets under "
                 "their own names, used instead of the hub.  [default: none]"),
    click.option("--split", help="Rows to use.  [default: train for vectors, test for generate and trace]"),
    click.option("--json", "as_json", is_flag=True, default=None, help="One JSON object a command on stdout."),
    click.option("--no-auto", is_flag=True, default=None, help="Don't make missing inputs; say which command does."),
    click.option("--debug", is_flag=True, default=None, help="Show tracebacks."),
]  # fmt: skip


def shared(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate with every shared option."""
    for option in reversed(SHARED):
        command = option(command)
    return command


class Command(click.Command):
    """A command that looks, for each option not on its own command line, at the group's and the environment.

    It does so while parsing, so that a bad value anywhere in a chain is a usage error before anything runs.

    After an option of `many` any number of values may stand, up to the next option or command.
    """

    def __init__(self, *args: Any, many: Sequence[str] = (), **options: Any) -> None:
        """As click's, with `many`."""
        super().__init__(*args, **options)
        self.many = many

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, then fill in."""
        chained = ctx.parent.command if ctx.parent else None
        commands = chained.commands if isinstance(chained, click.Group) else {}
        rest = super().parse_args(ctx, spread(args, self.many, commands))
        group = ctx.parent.params if ctx.parent else {}
        for param in self.params:
            if not isinstance(param, click.Option) or param.name is None:
                continue
            name = param.name
            if _given(ctx.params.get(name)):
                continue
            if _given(group.get(name)):
                ctx.params[name] = group[name]
                continue
            prefixes = (f"REFUSAL_{self.name or ''}_".upper().replace("-", "_"), "REFUSAL_")
            for prefix in prefixes:
                value = _from_environment(prefix, param, ctx)
                if _given(value):
                    ctx.params[name] = value
                    break
        if ctx.parent is not None:
            folders = ctx.parent.meta.setdefault("refusal run directories", set())
            folders.add(ctx.params.get("run"))
            if len(folders) > 1:
                raise click.UsageError(
                    "the commands of a chain share one run directory: put --run before the first", ctx
                )
        return rest


def spread(words: Sequence[str], options: Collection[str], ends: Collection[str]) -> list[str]:
    """`--compare a b` as `--compare a --compare b`, up to a word that is an option or one of `ends`.

    In a chain, click can't tell more values from the next command; the commands' names can.
    """
    told: list[str] = []
    option = ""
    for word in words:
        if word in options:
            option = word
        elif option and told[-1] != option:  # it has a value already
            if word.startswith("-") or word in ends:
                option = ""
            else:
                told.append(option)
        told.append(word)
    return told


class Settings:
    """The resolved options of one command."""

    def __init__(self, ctx: click.Context) -> None:
        """Take them from a context whose command is a `Command`."""
        self._values = dict(ctx.params)
        self.command = ctx.info_name or ""
        group = ctx.parent.params if ctx.parent else {}
        self.group = {name: _shared_environment(ctx, name, group.get(name)) for name in ("data", "limit")}
        self.run: Path = self._values.get("run") or Path("runs/default")

    def get(self, name: str, default: Any = None, record: dict[str, Any] | None = None) -> Any:
        """An option's value: given, else from the artefact's record, else the default."""
        value = self._values.get(name)
        if _given(value):
            return value
        if record is not None and record.get(name) is not None:
            return record[name]
        return default

    def given(self) -> dict[str, Any]:
        """Every option that was given, as JSON can hold it; not the host, whose address may hold a key."""
        return {
            name: _plain(value) for name, value in self._values.items() if _given(value) and name not in ("run", "host")
        }

    def for_missing(self, *, own_data: bool) -> "Settings":
        """Settings to make a missing input with; without `own_data` it takes the group's --data and --limit alone."""
        made = object.__new__(Settings)
        made.__dict__ = dict(self.__dict__)
        made._values = dict(self._values)
        if not own_data:
            made._values |= self.group
            made._values |= {"split": None, "benign": ()}
        return made

    def with_defaults(self, **values: Any) -> "Settings":
        """The same with values for what was not given."""
        return self.with_values(**{name: value for name, value in values.items() if not _given(self.get(name))})

    def with_values(self, **values: Any) -> "Settings":
        """The same with some values replaced."""
        made = self.for_missing(own_data=True)
        made._values |= values
        return made


def _given(value: Any) -> bool:
    return value is not None and value != ()


def _plain(value: Any) -> Any:
    return (
        str(value)
        if isinstance(value, Path)
        else [_plain(part) for part in value]
        if isinstance(value, tuple)
        else value
    )


def _from_environment(prefix: str, param: click.Option, ctx: click.Context) -> Any:
    if param.name == "where":
        chosen = [
            where for where in WHERES if os.environ.get(prefix + where.upper(), "").lower() in ("1", "true", "yes")
        ]
        return chosen[-1] if chosen else None
    text = os.environ.get(prefix + max(param.opts, key=len).lstrip("-").upper().replace("-", "_"))
    if not text:
        return None
    value: Any = text
    if param.multiple:
        value = tuple(part for part in text.split(LISTS.get(param.name or "", "\n")) if part)
    try:
        return param.type_cast_value(ctx, value)
    except click.BadParameter as error:
        error.param = param
        raise


def _shared_environment(ctx: click.Context, name: str, value: Any) -> Any:
    if _given(value):
        return value
    param = next((p for p in ctx.command.params if p.name == name), None)
    found = _from_environment("REFUSAL_", param, ctx) if isinstance(param, click.Option) else None
    return found if found is not None else (() if name == "data" else None)
