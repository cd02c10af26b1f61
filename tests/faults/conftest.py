"""One place to break things in for all of the suite, and the counts that are printed at its end."""

import shutil
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.faults.suite import ASKED, SKIPPED, Note, Place, Zygote, chain_of, holds
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
def note(record_property) -> Note:
    """Counts cases of a kind."""
    return lambda kind, cases: record_property("faults", (kind, cases))


def pytest_terminal_summary(terminalreporter) -> None:
    """How many cases of each kind ran, and that all held unless a test failed."""
    counts: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, value in getattr(report, "user_properties", ()):
                if name == "faults":
                    counts[value[0]] += value[1]
                    failed[value[0]] += outcome == "failed"
    if counts:
        terminalreporter.write_sep("-", "faults")
        for kind, cases in sorted(counts.items()):
            terminalreporter.write_line(
                f"{cases:6d}  {kind}" + (f", {failed[kind]} tests failed" if failed[kind] else "")
            )
