"""What was fitted to the project's own prompts and comes with it: artefacts of a run directory, taken where others would be made alike."""

import shutil
from pathlib import Path

from data.store.digests import SHA256, making
from data.store.rundir import Record, records

FOLDER = Path(__file__).parents[1] / "fitted"


def take(artefact: str, identity: str, run: Path) -> bool:
    """Copy an artefact's files into a run directory, if what comes with the project was made from the same; did it?

    Args:
        artefact: Its name in `run.json`.
        identity: Of the key that it would be made with.
        run: The run directory.
    """
    record = records(FOLDER).get(artefact)
    if record is None or record["id"] != identity:
        return False
    for name in record[SHA256]:
        with making(run / name) as unfinished:
            shutil.copyfile(FOLDER / name, unfinished)
    return True


def is_shipped(artefact: str, record: Record) -> bool:
    """Whether a run's artefact was made from what one that comes with the project was made from."""
    own = records(FOLDER).get(artefact)
    return own is not None and own["id"] == record.get("id")
