"""Killed at any moment, a command goes on where it stopped, and ends with what it would have ended with."""

import random
import signal
from pathlib import Path

import pytest

from tests.faults.suite import EVERY, SEED, Note, Place, chain_of, differing, holds, some

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
EACH = 24 if EVERY else 2  # kills a command
COMMANDS = list(chain_of(Path("any")))


@pytest.mark.parametrize("command", some(COMMANDS, 5))
def test_a_killed_command_goes_on(place: Place, command: str, note: Note) -> None:
    random_, killed, others = random.Random(f"{SEED} {command}"), 0, place.others
    for _ in range(EACH):
        folder = place.copy(place.before(command))
        for _again in range(random_.choice((1, 1, 2))):
            sent = random_.choice(SIGNALS)
            after = random_.uniform(0.02, place.seconds[command] * 1.05)
            done = place.zygote.run(place.words(command, folder), kill=(after, sent))
            holds(done, folder, codes=(0, -sent, 130 if sent == signal.SIGINT else 0))
            killed += 1
        done = place.zygote.run(place.words(command, folder))
        holds(done, folder, codes=(0,))
        assert differing(place.state(command), folder) == [], done
        assert not [path for path in folder.rglob("*") if path.name.startswith(".unfinished")]
        if command == "report":
            assert (folder / "report.html").read_bytes().endswith(b"</html>\n")
    assert place.others == others
    note("kills and signals", killed)
