"""A model's weights over several devices, memory and disk: accelerate's device map, and what can't be done with it.

accelerate moves a part's inputs to where its weights lie, and brings weights that lie on disk in for the part's own
forward pass alone; outside it they are empty.
"""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from data.errors import UserError
from interventions.model.embedded import cache_folder

WORDS = ("auto", "balanced", "balanced_low_0", "sequential")  # accelerate's
DISK = "disk"
ACCELERATE = "a device map takes accelerate: pip install accelerate"

Map = dict[str, Any]  # module's path -> device, `cpu` or `disk`


def read_map(given: str | Mapping[str, Any]) -> str | Map:
    """A device map as transformers takes it: a word, a device, or modules' devices out of a mapping or a JSON file.

    Raises:
        UserError: accelerate is not installed, the file can't be read, or all weights would lie on disk.
    """
    if find_spec("accelerate") is None:
        raise UserError(ACCELERATE)
    if isinstance(given, str) and given.endswith(".json"):
        try:
            read = json.loads(Path(given).read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{given}: no device map can be read from it ({error})") from None
        if not isinstance(read, dict) or not all(isinstance(place, (str, int)) for place in read.values()):
            raise UserError(f'{given}: a device map is one object, such as {{"model.layers.0": "cpu", "": "disk"}}')
        given = read
    if isinstance(given, str):
        return given
    if set(given.values()) == {DISK}:
        raise UserError(
            "the device map leaves everything on disk: name a device for the embeddings at least, such as cpu"
        )
    # The first device named is taken for the model's own, which a disk can't be.
    return dict(sorted(given.items(), key=lambda one: one[1] == DISK))


def devices_named(places: str | Map) -> list[str]:
    """The devices that a map names, the one that computes first: one that is neither memory nor disk, if there is any."""
    if places in WORDS:
        return ["cuda" if torch.cuda.is_available() else "cpu"]
    named = dict.fromkeys([places] if isinstance(places, str) else places.values())
    told = [f"cuda:{one}" if isinstance(one, int) else str(one) for one in named if one != DISK]
    return sorted(told, key=lambda one: one == "cpu")


def offload_room(folder: Path | None) -> tuple[str, Any]:
    """A folder for weights on disk that can't be read from the checkpoint as they are, and what removes it when it goes."""
    if folder is not None:
        return str(folder), None
    cache_folder().mkdir(parents=True, exist_ok=True)
    room = TemporaryDirectory(prefix="offload-", dir=cache_folder(), ignore_cleanup_errors=True)
    return room.name, room


def offloaded_parts(module: Any) -> int:
    """How many weights of a model that runs here are brought in from elsewhere for each forward pass."""
    return sum(part.is_meta for part in module.parameters())


def check_entrance(module: Any, name: str) -> None:
    """Do a model's embeddings lie on a device? Prompts are sent to where they lie.

    Raises:
        UserError: They don't.
    """
    if module.get_input_embeddings().weight.is_meta:
        raise UserError(f"{name}: the device map leaves its embeddings on no device; name one for them, such as cpu where "
                        "nothing lies on a GPU")  # fmt: skip
