"""Which weights a name stands for: a release of an embedded model, the content of a folder, a commit of the hub."""

from pathlib import Path

from interventions.model.embedded import ALIASES, revision_of
from interventions.model.foreign.checkpoint import folder_revision


def known_revision(name: str) -> str | None:
    """The revision of an embedded model or of a model folder, opening neither; None for a name on the hub."""
    if name in ALIASES:
        return revision_of(name)
    return folder_revision(Path(name)) if (Path(name) / "config.json").exists() else None
