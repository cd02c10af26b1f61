"""A tokenizer on disk that knows control tokens by name, and the record of which token took which place."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.errors import UserError
from interventions.model.vocabulary import ControlToken

RECORD_FILE = "control_tokens.json"


def write_tokenizer(tokenizer: Any, control_tokens: Sequence[ControlToken], template: str, folder: Path) -> None:
    """Save a tokenizer with its control tokens in place and the template; nothing else changes.

    Raises:
        UserError: The tokenizer has no `tokenizer.json`, so its tokens can't be named.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    if not path.exists():
        raise UserError(f"{type(tokenizer).__name__} is not a fast tokenizer; convert it to a tokenizer.json first")
    renamed = {token.replaces: token.token for token in control_tokens if token.replaces}
    for file in folder.glob("*token*.json"):
        content = _renamed(json.loads(file.read_text("utf-8")), renamed)
        if file == path:
            content["added_tokens"] += _new_entries(content["added_tokens"], control_tokens)
        file.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", "utf-8")
    (folder / "chat_template.jinja").write_text(template, "utf-8")


def _renamed(value: Any, names: dict[str, str]) -> Any:
    """The same JSON with every string, and every key, that is one of `names` replaced."""
    if isinstance(value, dict):
        return {names.get(key, key): _renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def _new_entries(entries: list[dict[str, Any]], control_tokens: Sequence[ControlToken]) -> list[dict[str, Any]]:
    there = {entry["id"] for entry in entries}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": token.id, "content": token.token, **flags} for token in control_tokens if token.id not in there]


def write_places(control_tokens: Sequence[ControlToken], folder: Path) -> None:
    """Write `control_tokens.json`: for each control token its name, id and the token whose place it took."""
    text = json.dumps([asdict(token) for token in control_tokens], ensure_ascii=False, indent=2)
    (folder / RECORD_FILE).write_text(text + "\n", "utf-8")


def read_places(folder: Path) -> tuple[ControlToken, ...]:
    """Read what `write_places` wrote.

    Raises:
        UserError: The folder holds no such file, or a damaged one.
    """
    path = folder / RECORD_FILE
    try:
        return tuple(
            ControlToken(str(row["name"]), int(row["id"]), row["replaces"])
            for row in json.loads(path.read_text("utf-8"))
        )
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder} is no adapter of `finetune`: no readable {RECORD_FILE}") from None
