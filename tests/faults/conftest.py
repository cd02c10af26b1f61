"""One place to break things in for all of the suite, and the counts that are printed at its end."""

import shutil
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.faults.suite import ASKED, SKIPPED, Cases, Place, Zygote, chain_of, holds
from tests.made.models import CONTROL, make_tiny
from tests.made.prompts import split_prompts


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """The command line, imported."""
    if not ASKED:
        pytest.skip(SKIPPED)
    made = Zygote(tmp_path_factory.mktemp("printed"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Place:
    """Models and prompts, and nothing run yet."""
    root = tmp_path_factory.mktemp("place")
    make_tiny(root / "tuned", CONTROL)
    make_tiny(root / "base", ("<slot0>", "<slot1>", "<slot2>"), seed=1)
    split_prompts(root / "rows.jsonl")
    return Place(root, zygote, chain_of(root))


@pytest.fixture(scope="session")
def place(bare: Place) -> Place:
    """The same with the run directory as it was after each command."""
    folder = bare.copy(None)
    for command in bare.chain:
        done = bare.zygote.run(bare.words(command, folder))
        holds(done, folder, codes=(0,))
        bare.seconds[command] = done.seconds
        shutil.copytree(folder, bare.state(command))
    return bare


@pytest.fixture
def case(record_property) -> Iterator[Cases]:
    """Counts the cases of a test, which fails if one of them did not hold."""
    cases = Cases()
    yield cases
    record_property("faults", [(kind, many, cases.held[kind]) for kind, many in cases.run.items()])
    assert not cases.broken, "\n\n".join(cases.broken)


def pytest_terminal_summary(terminalreporter) -> None:
    """A table: how many cases of each kind ran, and how many of them held."""
    run: Counter[str] = Counter()
    held: Counter[str] = Counter()
    reports = [report for group in terminalreporter.stats.values() for report in group]
    for report in reports:
        if getattr(report, "when", None) == "teardown":
            for kind, many, good in dict(report.user_properties).get("faults", ()):
                run[kind] += many
                held[kind] += good
    if run:
        terminalreporter.write_sep("-", "faults")
        terminalreporter.write_line(f"{'kind':40}  cases   held")
        for kind, many in sorted(run.items()):
            terminalreporter.write_line(f"{kind:40} {many:6d} {held[kind]:6d}")
