"""Is an artefact made already, and with what was it made?"""

import hashlib
import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands.framework.output import warn
from commands.framework.settings import Settings
from data.errors import UserError

if TYPE_CHECKING:
    from interventions.model.model import Model

TAKEN_OVER = ("model", "revision", "template", "tokenizer", "dtype", "backend", "n_layers")
ACTIVATIONS, PAIRS = "activations/prompts", "activations/pairs"
MODEL, VECTORS, LENS, PROBE, LOWRANK, SWEEP, DIFF, GENERATIONS, PAPER_TABLE = (
    "model",
    "vectors",
    "logit_lens",
    "probe",
    "lowrank",
    "sweep",
    "diff",
    "generations",
    "paper",
)
EFFECTS, CAPABILITY = "effects", "capability"
ADDRESSES = ("--host", "--judge-url")  # options; of these the query goes unrecorded too
# A scheme is tried at its first character alone and never given back in part: texts may be long.
LOGIN = re.compile(r"(?<![A-Za-z0-9+.-])([0-9+.-]*+[A-Za-z][A-Za-z0-9+.-]*+://)[^\s/?#\"']*@")


def missing(s: Settings, name: str, what: str, reason: str) -> None:
    """Say that an input is made, or refuse to with --no-auto."""
    if s.get("no_auto", False):
        raise UserError(
            f"{s.command} needs {what} in {s.run} ({reason}): run `python cli.py --run {s.run} {name}` first"
        )
    warn(f"{s.command} needs {what} ({reason}): running {name}")


def unchanged(s: Settings, artefact: str, key: dict[str, Any], path: Path) -> bool:
    """Whether the artefact was made with this very key; says so if it was made with another."""
    from data.store.rundir import records

    record = records(s.run).get(artefact)
    if record is None or not path.exists():
        return False
    if record["id"] == identity(key):
        return True
    old = record.get("key", {})
    changed = sorted(name for name in {*old, *key} if old.get(name) != json.loads(json.dumps(key.get(name))))
    warn(f"{artefact} is made again: {', '.join(changed)} changed")
    return False


def note(s: Settings, artefact: str, key: dict[str, Any], model: "Model | None", start: str, *,
         like: dict[str, Any] | None = None, data: list[str] | None = None, options: dict[str, Any] | None = None,
         more: dict[str, Any] | None = None) -> None:  # fmt: skip
    """Write an artefact's record; what there is no model for is taken over from the record it rests on."""
    from data.store.rundir import record

    entry: dict[str, Any] = {
        "command": "python cli.py " + command_line(sys.argv[1:]),
        "options": _recorded(options or {}),
        "data": without_secrets(data if data is not None else (like or {}).get("data", [])),
        "key": key,
        "id": identity(key),
        "seed": s.get("seed", 0),
        "start": start,
    }
    if model is not None:
        entry |= model_key(model) | {"backend": model.backend.kind, "n_layers": model.n_layers}
        if model.backend.client is not None:
            entry["remote"] = model.backend.client.traffic.since_noted()
    else:
        entry |= {name: (like or {}).get(name) for name in TAKEN_OVER}
    record(s.run, artefact, entry | (more or {}))


def command_line(words: Sequence[str]) -> str:
    """The words as typed, but for what may be secret in addresses."""
    kept = []
    for before, word in zip(["", *words], words, strict=False):
        option, equals, value = word.partition("=")
        if before in ADDRESSES:
            word = _address(word)
        elif option in ADDRESSES and equals:
            word = f"{option}={_address(value)}"
        kept.append(without_secrets(word))
    return shlex.join(kept)


def without_secrets(value: Any) -> Any:
    """A value of JSON, with no user name and password in any URL of any text in it."""
    if isinstance(value, str):
        return LOGIN.sub(r"\1", value)
    if isinstance(value, dict):
        return {name: without_secrets(part) for name, part in value.items()}
    return [without_secrets(part) for part in value] if isinstance(value, (list, tuple)) else value


def _recorded(options: dict[str, Any]) -> dict[str, Any]:
    known = {name: _address(value) for name, value in options.items() if f"--{name}".replace("_", "-") in ADDRESSES}
    return without_secrets(options | known)


def _address(text: str) -> str:
    from interventions.backends.ndif.client import shown

    return shown(text)


def contradiction(s: Settings, record: dict[str, Any]) -> str:
    """What was asked for that an artefact was not made with: `model is A, was B`; nothing if it fits."""
    from interventions.model.revision import known_revision

    for name in ("model", "dtype"):
        if s.get(name) is not None and s.get(name) != record[name]:
            return f"{name} is {s.get(name)}, was {record[name]}"
    now = known_revision(record["model"]) if record.get("revision") else None
    return f"{record['model']} holds other weights now" if now is not None and now != record["revision"] else ""


def identity(key: dict[str, Any]) -> str:
    """A short hash of a key."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def model_key(model: "Model") -> dict[str, Any]:
    """What makes a model the same model."""
    tokenizer = hashlib.sha256(json.dumps(sorted(model.tokenizer.get_vocab().items())).encode()).hexdigest()
    return {"model": model.name, "revision": model.revision, "template": model.template_hash,
            "tokenizer": tokenizer, "dtype": model.dtype}  # fmt: skip
