"""Which weights a name stands for: a release of an embedded model, the content of a folder, a commit of the hub."""

from hashlib import sha256
from pathlib import Path

from interventions.model.embedded import ALIASES, revision_of

SAMPLES, SAMPLE = 1024, 4096
WEIGHTS = ("*.safetensors", "*.bin")


def known_revision(name: str) -> str | None:
    """The revision of an embedded model or of a model folder, opening neither; None for a name on the hub."""
    if name in ALIASES:
        return revision_of(name)
    return folder_revision(Path(name)) if (Path(name) / "config.json").exists() else None


def folder_revision(folder: Path) -> str:
    """The first sixteen digits of a SHA-256 over a model folder's settings, and over the weights in samples.

    Of each weight file its size, its beginning, its end and 1,024 evenly spread pieces of 4 KB count, which meet every
    large matrix: other weights have another revision, copied ones the same, and 100 GB take no longer than 1.
    """
    digest = sha256()
    for file in sorted({*folder.glob("*.json"), *folder.glob("*.jinja"), *folder.glob("*.model")}):
        digest.update(f"{file.name} ".encode() + sha256(file.read_bytes()).digest())
    for file in sorted(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as weights:
            for number in range(SAMPLES + 1):
                weights.seek(max(0, size - SAMPLE) * number // SAMPLES)
                digest.update(weights.read(SAMPLE))
    return digest.hexdigest()[:16]
