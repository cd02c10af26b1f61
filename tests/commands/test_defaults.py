"""Defaults of options that may be repeated are lists of values, never a text of which each letter is one."""

import click
import pytest

from cli import cli


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_repeatable_options_have_lists_as_defaults(name: str) -> None:
    options = [param for param in cli.commands[name].params if isinstance(param, click.Option) and param.multiple]
    assert options
    for option in options:
        fallback = getattr(option, "fallback", ())
        assert fallback is None or isinstance(fallback, (tuple, list)), option.name
