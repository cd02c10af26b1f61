"""What `reproduce` runs: a TOML file with a table for each command, whose keys are that command's options."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

import click

from commands.framework.app import cli
from commands.framework.settings import Values
from commands.framework.types import Read
from data.errors import UserError

PAPER = Path(__file__).parents[1] / "paper.toml"
# Of the shared options those that say what a table's own command reads; the others are for the command line.
TABLES = {
    "extract": ("data", "limit"),
    "vectors": ("split",),
    "probe": ("split",),
    "lowrank": ("split",),
    "generate": ("data", "split"),
    "evaluate": (),
}
RESIDUAL = "residual"  # a table that is no command: what arms become where those of [generate] would change too little
MODELS, OF_MODEL = "models", ("prompt-format", "system", "thinking", "date", "dtype", "quantize")
LAYER = ("layer", "layers")  # one for all, at the top
NOT_HERE = ("position", "suffix")  # a probe gates, and contrasts are read, at positions of their own


@dataclass(frozen=True)
class Recipe:
    """A file that was read and checked.

    Attributes:
        layer: The block to read and to steer; None for the default.
        tables: Command -> its options, as click names and types them; `residual`: arms in units of the mean residual norm.
        models: Model -> shared options that hold for it.
    """

    layer: int | None
    tables: dict[str, Values]
    models: dict[str, Values]

    def of(self, command: str) -> Values:
        """A command's options; what the file leaves open is left out."""
        return self.tables.get(command, {})

    def for_model(self, name: str | None) -> Values:
        """How a model of this name is opened and prompted; what the file leaves open is left out."""
        return self.models.get(name or "", {})


def read_recipe(path: Path) -> Recipe:
    """Read a file and check every value as the command line would.

    Raises:
        UserError: It can't be read, or holds an unknown table, an unknown option or a bad value.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a TOML file: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    layer = content.pop("layer", None)
    if layer is not None and (type(layer) is not int or layer < 0):
        raise UserError(f"{path}: layer is a block's number, such as 18")
    models = content.pop(MODELS, {})
    if not isinstance(models, dict) or not all(isinstance(table, dict) for table in models.values()):
        raise UserError(f'{path}: write a table a model, [{MODELS}."OWNER/NAME"], with {", ".join(OF_MODEL)}')
    for name, table in content.items():
        if name not in (*TABLES, RESIDUAL) or not isinstance(table, dict):
            there = ", ".join(f"[{name}]" for name in (*TABLES, RESIDUAL))
            raise UserError(f"{path}: no [{name}] is known; there are layer, {there}")
        if name == RESIDUAL and table.keys() != {"arm"}:
            raise UserError(f"{path}: [{RESIDUAL}] has one key, arm")
    shared = {_word(param): param for param in cli.params if isinstance(param, click.Option)}
    known = {word: shared[word] for word in shared if word in OF_MODEL}
    recipe = Recipe(
        layer,
        {name: _options(path, "generate" if name == RESIDUAL else name, table) for name, table in content.items()},
        {name: _typed(path, f'{MODELS}."{name}"', table, known) for name, table in models.items()},
    )
    for needed in ("data", "arm"):
        if not recipe.of("generate").get(needed):
            raise UserError(f"{path}: [generate] names no {needed}")
    return recipe


def _options(path: Path, command: str, table: Values) -> Values:
    known = {_word(param): param for param in cli.commands[command].params if isinstance(param, click.Option)}
    others = {_word(param) for param in cli.params if isinstance(param, click.Option)} - set(TABLES[command])
    known = {word: param for word, param in known.items() if word not in (*others, *LAYER, *NOT_HERE)}
    for word in table:
        if word in LAYER:
            raise UserError(f"{path}: [{command}] {word}: one layer is read and steered; write `layer = N` at the top")
    return _typed(path, command, table, known)


def _typed(path: Path, called: str, table: Values, known: dict[str, click.Option]) -> Values:
    """A table's values as click names and types them."""
    values: Values = {}
    for word, value in table.items():
        if word not in known:
            raise UserError(f"{path}: [{called}] has no option {word!r}; there are {', '.join(known)}")
        param = known[word]
        if isinstance(value, list) is not param.multiple:
            raise UserError(f"{path}: [{called}] {word} is {'a list' if param.multiple else 'one value'}")
        assert param.name is not None
        try:
            values[param.name] = param.type_cast_value(click.Context(cli), value)
        except click.BadParameter as error:
            raise UserError(f"{path}: [{called}] {word}: {error.message}") from None
    return values


def _word(option: click.Option) -> str:
    return max(option.opts, key=len).removeprefix("--")


def _readable(text: str) -> Path:
    try:
        read_recipe(Path(text))
    except UserError as error:
        raise ValueError(str(error)) from None
    return Path(text)


RECIPE = Read("file", _readable)  # a bad one is a usage error, before anything runs
