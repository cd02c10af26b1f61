"""Is an artefact made already, and with what was it made?"""

import hashlib
import json
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands.framework.output import span, warn
from commands.framework.settings import Record, Settings, Values
from data.contract import UNQUANTISED
from data.errors import UserError

if TYPE_CHECKING:
    from commands.framework.artefacts import Artefact
    from interventions.model.formats.choice import PromptFormat
    from interventions.model.model import Model

Key = dict[str, Any]  # what an artefact is made from: the same key, the same artefact
TAKEN_OVER = (
    "model",
    "revision",
    "template",
    "tokenizer",
    "dtype",
    "quantize",
    "backend",
    "engine",
    "n_layers",
    "prompt_format",
)
OPTIONAL = ("quantize", "engine", "prompt_format")  # said of what has one
ADDRESSES = ("--host", "--judge-url", "--serve")  # options; of these the query goes unrecorded too
WORTH_A_WORD = 5  # seconds
# A scheme is tried at its first character alone and never given back in part: texts may be long.
LOGIN = re.compile(r"(?<![A-Za-z0-9+.-])([0-9+.-]*+[A-Za-z][A-Za-z0-9+.-]*+://)[^\s/?#\"']*@")


def unchanged(s: Settings, artefact: "Artefact[Any]", key: Key, elsewhere: Path | None = None) -> bool:
    """Whether the artefact, or the file that stands for it elsewhere, was made with this very key; says so if not.

    Raises:
        UserError: It was, and a file of it was altered since; or a file that nothing here made has its name.
    """
    from data.store.digests import altered
    from data.store.rundir import records

    record = records(s.run).get(artefact.name)
    if record is None and elsewhere is None:
        artefact.check(s.run)
    if record is None or not (elsewhere or artefact.path(s.run)).exists():
        return False
    if record["id"] == identity(key):
        odd = altered(s.run, record)
        if odd is not None and not odd.is_own:
            raise UserError(odd.words)
        if odd is not None:
            warn(f"{artefact.name} is made again: a command ended before it was recorded")
        return odd is None and all((s.run / name).exists() for name in artefact.beside)
    old = record.get("key", {})
    changed = sorted(name for name in {*old, *key} if old.get(name) != json.loads(json.dumps(key.get(name))))
    warn(f"{artefact.name} is made again: {', '.join(changed)} changed{replaced(record)}")
    return False


def replaced(record: Record) -> str:
    """How long what is replaced took to make, where that is worth a word."""
    from datetime import datetime

    start, end = (datetime.fromisoformat(record[name]) for name in ("start", "end"))
    seconds = (end - start).total_seconds()
    return f"; what it replaces took {span(seconds)}" if seconds >= WORTH_A_WORD else ""


def note(
    s: Settings,
    artefact: "Artefact[Any]",
    key: Key,
    of: "Model | Record",
    start: str,
    *,
    data: Iterable[str] | None = None,
    more: Record | None = None,
    elsewhere: Path | None = None,
) -> None:
    """Write an artefact's record; without a model, what is said of one is taken over from the record it rests on."""
    from data.store.digests import SHA256, digests
    from data.store.rundir import record

    like = of if isinstance(of, dict) else {}
    entry: Record = {
        "command": "python cli.py " + command_line(sys.argv[1:]),
        "options": _recorded(s.recorded()),
        "data": without_secrets(list(like.get("data", []) if data is None else data)),
        "key": key,
        "id": identity(key),
        "seed": s.get("seed"),
        "start": start,
        SHA256: digests(s.run, [elsewhere] if elsewhere else artefact.files(s.run)),
    }
    if isinstance(of, dict):
        entry |= {name: of.get(name) for name in TAKEN_OVER if name in of or name not in OPTIONAL}
    else:
        entry |= model_key(of) | {"backend": of.backend.kind, "n_layers": of.n_layers}
        entry |= {"prompt_format": of.prompt_format.record} if of.prompt_format.record else {}
        entry |= {"engine": of.backend.engine.record} if of.backend.engine is not None else {}
        if of.backend.client is not None:
            entry["remote"] = of.backend.client.traffic.since_noted()
    record(s.run, artefact.name, entry | (more or {}))


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


def _recorded(options: Values) -> Values:
    known = {name: _address(value) for name, value in options.items() if f"--{name}".replace("_", "-") in ADDRESSES}
    return without_secrets(options | known)


def _address(text: str) -> str:
    from interventions.backends.ndif.client import shown

    return shown(text)


def prompt_format(s: Settings, record: Record | None = None) -> "PromptFormat":
    """How prompts are put: as the options say, else as the record's artefact was made; a run keeps its first date."""
    from data.store.rundir import records
    from interventions.model.formats.choice import PromptFormat

    made = (record or {}).get("prompt_format") or {}
    chosen = s.given("prompt_format") or s.given("template") is not None
    template = s.given("template")
    dates = sorted(
        entry["prompt_format"]["date"]
        for entry in records(s.run).values()
        if entry.get("prompt_format", {}).get("date")
    )
    thinking, through = s.given("thinking"), s.given("control_tokens")
    return PromptFormat(
        name=s.given("prompt_format") or ("tokenizer" if chosen else made.get("name", "tokenizer")),
        template=template.read_text("utf-8") if template else None if chosen else made.get("template"),
        system=s.given("system", {"system": made.get("system")}),
        thinking=made.get("thinking") if thinking is None else thinking,
        control_tokens=made.get("control_tokens", False) if through is None else through,
        date=s.given("date") or made.get("date") or next(iter(dates), None),
    )


def contradiction(s: Settings, record: Record) -> str:
    """What was asked for that an artefact was not made with: `model is A, was B`; nothing if it fits."""
    from interventions.model.revision import known_revision

    for name in ("model", "dtype", "quantize"):
        was = record.get(name, UNQUANTISED)
        if s.given(name) is not None and s.given(name) != was:
            return f"{name} is {s.given(name)}, was {was}"
    asked, made = prompt_format(s, record).record, record.get("prompt_format") or {}
    odd = next((name for name in ("name", "template", "system", "thinking", "date", "control_tokens")
                if asked.get(name) != made.get(name) and (name != "date" or made.get("date"))), None)  # fmt: skip
    if odd:
        return f"the prompt format's {odd} is another"
    now = known_revision(record["model"]) if record.get("revision") else None
    return f"{record['model']} holds other weights now" if now is not None and now != record["revision"] else ""


def identity(key: Key) -> str:
    """A short hash of a key."""
    from data.store import rundir

    return rundir.identity(key)


def answering_key(model: "Model") -> Key:
    """What makes a model the same model that answers."""
    return model_key(model) | ({"generation_config": dict(model.rules)} if model.rules else {})


def model_key(model: "Model") -> Key:
    """What makes a model the same model."""
    tokenizer = hashlib.sha256(json.dumps(sorted(model.tokenizer.get_vocab().items())).encode()).hexdigest()
    return {"model": model.name, "revision": model.revision, "template": model.template_hash,
            "tokenizer": tokenizer, "dtype": model.dtype, **model.held}  # fmt: skip
