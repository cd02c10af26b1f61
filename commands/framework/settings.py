"""Which value of an option counts: the command's flag, the group's, two environment variables.

After those come, where a command reads an artefact, that artefact's record, and the default that the option is declared
with: `Settings.get`.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from commands.framework.options import Option
from data.contract import ARM_WORDS, KINDS, WHERES

LISTS = {"data": os.pathsep}
Record = dict[str, Any]  # an artefact's, as `run.json` holds it
Values = dict[str, Any]  # of options, by name


class Command(click.Command):
    """A command that looks, for each option not on its own command line, at the group's and the environment.

    It does so while parsing, so that a bad value anywhere in a chain is a usage error before anything runs.

    After an option of `many` any number of values may stand, up to the next option or command.
    """

    def __init__(self, *args: Any, many: Sequence[str] = (), **options: Any) -> None:
        """As click's, with `many`."""
        super().__init__(*args, **options)
        self.many = many

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Where arms are asked for, a line for each kind and each key."""
        if any(param.name == "arm" for param in self.params):
            for title, words in (
                ("Kinds of arms", {name: kind.help for name, kind in KINDS.items()}),
                ("Keys of arms", ARM_WORDS),
            ):
                with formatter.section(title):
                    formatter.write_dl([*words.items()])
        super().format_epilog(ctx, formatter)

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
            for prefix in (f"REFUSAL_{self.name or ''}_".upper().replace("-", "_"), "REFUSAL_"):
                value = _from_environment(prefix, param, ctx)
                if _given(value):
                    ctx.params[name] = value
                    break
        if ctx.parent is not None:
            folders = ctx.parent.meta.setdefault("refusal run directories", set())
            folders.add(ctx.params.get("run"))
            if len(folders) > 1:
                told = "the commands of a chain share one run directory: put --run before the first"
                raise click.UsageError(told, ctx)
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
    """The resolved options of one command.

    Attributes:
        command: Whose they are.
        run: The run directory.
        own_data: Whether --data says what is read and fitted on, and not what a command runs on that needs it.
    """

    def __init__(self, ctx: click.Context) -> None:
        """Take them from a context whose command is a `Command`."""
        self._values = dict(ctx.params)
        self.command = ctx.info_name or ""
        group = ctx.parent
        self._commands = group.command.commands if group and isinstance(group.command, click.Group) else {}
        self._declared = _defaults(ctx.command)
        shared = group.params if group else {}
        self._group = {name: _shared_environment(ctx, name, shared.get(name)) for name in ("data", "limit")}
        self.run: Path = self.get("run")
        self.own_data = True

    def get(self, name: str, record: Record | None = None) -> Any:
        """An option's value: given, else from the artefact's record, else the default that it is declared with."""
        value = self.given(name, record)
        return self._declared[name] if value is None else value

    def given(self, name: str, record: Record | None = None) -> Any:
        """An option's value as it was given, else from the artefact's record; None where neither says one."""
        value = self._values.get(name)
        return value if _given(value) else (record or {}).get(name)

    def recorded(self) -> Values:
        """Every option that was given, as JSON can hold it; not the host, whose address may hold a key."""
        given = {name: value for name, value in self._values.items() if _given(value)}
        return {name: _plain(value) for name, value in given.items() if name not in ("run", "host")}

    def for_command(self, name: str) -> "Settings":
        """The same values, with the defaults of another command, in whose stead something is made."""
        made = self.with_values()
        made._declared = _defaults(self._commands[name])
        return made

    def for_missing(self) -> "Settings":
        """Settings to make a missing input with, which takes the group's --data and --limit alone."""
        made = self.with_values(**self._group, split=None, benign=())
        made.own_data = False
        return made

    def with_defaults(self, **values: Any) -> "Settings":
        """The same with values for what was not given."""
        return self.with_values(**{name: value for name, value in values.items() if self.given(name) is None})

    def with_values(self, **values: Any) -> "Settings":
        """The same with some values replaced."""
        made = object.__new__(Settings)
        made.__dict__ = self.__dict__ | {"_values": self._values | values}
        return made


def _defaults(command: click.Command) -> Mapping[str, Any]:
    return {param.name or "": param.fallback for param in command.params if isinstance(param, Option)}


def _given(value: Any) -> bool:
    return value is not None and value != ()


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def _from_environment(prefix: str, param: click.Option, ctx: click.Context) -> Any:
    if param.name == "where":
        on = [where for where in WHERES if os.environ.get(prefix + where.upper(), "").lower() in ("1", "true", "yes")]
        return on[-1] if on else None
    text = os.environ.get(prefix + max(param.opts, key=len).lstrip("-").upper().replace("-", "_"))
    if not text:
        return None
    value: Any = text
    if param.multiple:
        parts = text.split(LISTS.get(param.name or "", "\n"))
        value = tuple(part for part in (whole_names(parts) if param.name == "data" else parts) if part)
    try:
        return param.type_cast_value(ctx, value)
    except click.BadParameter as error:
        error.param = param
        raise


def whole_names(parts: Sequence[str]) -> list[str]:
    """Names of data sets, put together again where the system's separator of paths stands in one: `embedded:lessons`.

    A part and the next are one name if they are a known one, or a file and COL=…, or else if the first is OWNER/NAME, no
    file, and the second is neither a file nor a name itself.
    """
    from data.prompts.files import is_file_name
    from data.prompts.reading import HUB_ID, is_known

    told: list[str] = []
    for part in parts:
        both = f"{told[-1]}{os.pathsep}{part}" if told else ""
        apart = not part or "/" in part or is_file_name(Path(part))
        columns = bool(told) and is_file_name(Path(told[-1])) and part.partition("=")[0].isidentifier() and "=" in part
        config = not apart and HUB_ID.fullmatch(both) and not is_known(part) and not Path(told[-1]).exists()
        if columns or (both.count(":") == 1 and os.pathsep == ":" and (is_known(both) or config)):
            told[-1] = both
        else:
            told.append(part)
    return told


def _shared_environment(ctx: click.Context, name: str, value: Any) -> Any:
    if _given(value):
        return value
    param = next((p for p in ctx.command.params if p.name == name), None)
    found = _from_environment("REFUSAL_", param, ctx) if isinstance(param, click.Option) else None
    return found if found is not None else (() if name == "data" else None)
