"""Killed at any moment, a command goes on where it stopped, and ends with what it would have ended with."""

import random
import signal
from pathlib import Path

import pytest

from tests.faults.suite import EVERY, SEED, Cases, Place, chain_of, differing, holds, some

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
EACH = 24 if EVERY else 2  # kills a command
COMMANDS = list(chain_of(Path("any")))


@pytest.mark.parametrize("command", some(COMMANDS, 5))
def test_a_killed_command_goes_on(place: Place, command: str, case: Cases) -> None:
    random_, others = random.Random(f"{SEED} {command}"), place.others
    for _ in range(EACH):
        folder = place.copy(place.before(command))
        kills = [(random_.uniform(0.02, place.seconds[command] * 1.05), random_.choice(SIGNALS))
                 for _again in range(random_.choice((1, 1, 2)))]  # fmt: skip
        with case("kills and signals", len(kills)):
            for after, sent in kills:
                done = place.zygote.run(place.words(command, folder), kill=(after, sent))
                holds(done, folder, codes=(0, -sent, 130 if sent == signal.SIGINT else 0))
            done = place.zygote.run(place.words(command, folder))
            holds(done, folder, codes=(0,))
            assert differing(place.state(command), folder) == [], done
            assert not [path for path in folder.rglob("*") if path.name.startswith(".unfinished")]
            assert command != "report" or (folder / "report.html").read_bytes().endswith(b"</html>\n")
    assert place.others == others
