"""Odd command lines, drawn by hypothesis: a usage error, one line, or done; nothing hangs and nothing else is touched."""

import click
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from cli import cli
from tests.faults.suite import EVERY, SEED, Cases, Place, differing, holds

PARTS, LINES = (10, 100) if EVERY else (1, 25)
# What asks other machines, takes long by right, or writes where it is told to.
LEFT_OUT = {
    "help",
    "debug",
    "host",
    "where",
    "judge_url",
    "judge_model",
    "include_path",
    "run",
    "compare",
    "map_of_activations",
    "in_flight",
}
LOOPS = {"epochs", "max_new_tokens", "random", "answer_tokens", "rank", "timeout", "best", "top_k"}
NOT_TRIED = {"reproduce", "finetune", "capability", "status", "serve"}
ODD = ["", " ", "0", "-1", "1", "2", "1e9", "99999999999999999999", "nan", "-inf", "0x10", "1,2,3", "3-1", "0-99999999999", "mean", "auto",
       "all", "none", "../..", "/dev/null", "*", "é", "\u202e", "--", "-x", "gated", "fixed:", "fixed:strength=1,strength=2",
       "fixed:category=weapons", "random:seed=18446744073709551616", "ablate:layers=all", "prompt-only:text=", "embedded/none", "weapons"]  # fmt: skip


def options() -> list[tuple[str, str, click.Option]]:
    return [(name, max(option.opts, key=len), option) for name, command in sorted(cli.commands.items()) if name not in NOT_TRIED
            for option in command.params if isinstance(option, click.Option) and option.name not in LEFT_OUT]  # fmt: skip


OPTIONS = options()
COMMANDS = sorted({name for name, _, _ in OPTIONS})


def value_of(option: click.Option) -> st.SearchStrategy[str]:
    kinds = [st.sampled_from(ODD[:6] if option.name in LOOPS else ODD)]
    if isinstance(option.type, click.Choice):
        kinds.append(st.sampled_from(list(option.type.choices)))
    elif option.name not in LOOPS:
        kinds += [
            st.integers(-5, 1 << 70).map(str),
            st.floats().map(str),
            st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8),
        ]
    return st.one_of(kinds)


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    words: list[str] = []
    for command in draw(st.lists(st.sampled_from(COMMANDS), min_size=1, max_size=2)):
        words.append(command)
        own = [(flag, option) for name, flag, option in OPTIONS if name == command]
        for flag, option in draw(st.lists(st.sampled_from(own), max_size=3)):
            words.append(flag)
            if not option.is_flag:
                words.append(draw(value_of(option)))
    return words


@pytest.mark.parametrize("part", range(PARTS))
def test_command_lines(place: Place, part: int, case: Cases) -> None:
    others = place.others

    @seed(SEED * PARTS + part)
    @settings(
        max_examples=LINES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
    @given(lines())
    def any_line(words: list[str]) -> None:
        folder = place.copy(place.whole)
        out = ["--out", str(place.root / "broken" / "out.any")] if words[0] in ("export", "bake", "report") else []
        with case("generated command lines"):
            done = place.zygote.run(["--run", str(folder), *place.own, words[0], *out, *words[1:]])
            holds(done, folder)
            assert done.code != 2 or differing(place.whole, folder) == [], words

    any_line()
    assert place.others == others
