"""What is no number is refused by every option that takes one, and never written into a record."""

import json

import click
import pytest

from cli import cli
from commands.framework import types
from data.errors import UserError
from data.store.rundir import read_records, record, records

NUMBERS = (click.types.FloatParamType, click.types.IntParamType, click.FloatRange, click.IntRange)
OWN = (types.FINITE, types.NUMBERS, types.LAYERS, types.LAYER_OR_AUTO, types.ROWS)


def numeric() -> list[tuple[str, click.Option]]:
    found = []
    for name, command in sorted(cli.commands.items()):
        for param in command.params:
            if isinstance(param, click.Option) and (isinstance(param.type, NUMBERS) or param.type in OWN):
                found.append((name, param))
    return found


def test_there_are_many() -> None:
    assert len({option.name for _, option in numeric()}) > 25


@pytest.mark.parametrize("word", ["nan", "inf", "-inf", "NaN", "infinity", "1e999", "", "x"])
def test_every_number_option_refuses_what_is_none(word: str) -> None:
    for name, option in numeric():
        context = click.Context(cli.commands[name])
        with pytest.raises(click.BadParameter):
            option.type.convert(word, option, context)


def test_the_command_line_and_the_environment_refuse_it(run, tmp_path) -> None:
    own = ("--run", tmp_path / "run")
    for words in (("finetune", "--learning-rate", "nan"), ("vectors", "--tau", "inf"), ("--timeout", "nan", "extract")):
        code, _, told = run(*own, *words)
        assert code == 2
        assert "not a finite number" in told
    code, _, told = run(*own, "vectors", REFUSAL_TAU="nan")
    assert code == 2
    assert "not a finite number" in told
    assert not (tmp_path / "run").exists()


def test_what_is_far_too_large_or_has_no_end_is_a_usage_error(run, tmp_path) -> None:
    own, huge = ("--run", tmp_path / "run"), "99999999999999999999"
    for words in (("--seed", huge, "extract"), ("--limit", huge, "extract"), ("generate", "--layer", huge), ("probe", "--layer", huge),
                  ("extract", "--layers", f"0-{huge}"), ("finetune", "--rank", huge), ("vectors", "--top-k", huge),
                  ("extract", "--template", "/dev/zero"), ("effects", "--text", "/dev/zero"), ("evaluate", "--hand", "/dev/zero"),
                  ("report", "--out", "/dev/null")):  # fmt: skip
        code, out, told = run(*own, *words)
        assert (code, out) == (2, ""), (words, told)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}, "half \ud800"])
def test_a_record_is_strict_json(tmp_path, value) -> None:
    record(tmp_path, "vectors", {"key": {"tau": 0.5}})
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(UserError, match="can't hold the record of probe"):
        record(tmp_path, "probe", {"key": value})
    assert (tmp_path / "run.json").read_bytes() == before
    assert read_records(tmp_path)["vectors"]["key"] == {"tau": 0.5}


@pytest.mark.parametrize(
    "text", ['{"artefacts": {"a": NaN}}', '{"artefacts": []}', "[1]", "", "[" * 100_000, '{"artefacts": 1}']
)
def test_a_record_that_is_none_is_one_line(tmp_path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match="is damaged; delete it"):
        records(tmp_path)


def test_finite_numbers_pass() -> None:
    assert types.Numbers(0, 1, min_open=True).convert("1e-3", None, None) == 1e-3
    assert json.dumps(types.NUMBERS.convert("1,-2.5", None, None)) == "[1.0, -2.5]"
