"""Control tokens in a vocabulary: the slots they take, and a tokenizer that knows them by name.

Many vocabularies hold special tokens that no text uses. A control token that takes such a slot leaves every layer its
size, so that an adapter fits wherever the base model runs. Only the slot's text changes: ordinary text is encoded as
before.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError
from interventions.model.prompt_format import CONTROL_TOKEN, UNUSED, bracketed_tokens

REFUSE = "refuse"
SLOTS_FILE = "control_tokens.json"

# The template of the published model (arXiv 2603.13359), which has no user header; for a base model with Llama 3's
# vocabulary. And one in plain words for any other without a template.
PUBLISHED_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}{{ message['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "### Answer:\n{{ message['content'] }}{{ eos_token }}\n\n{% else %}{{ message['content'] }}\n\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}### Answer:\n{% endif %}"
)
DEFAULT_SYSTEM = re.compile(
    r"\{%-?\s*if\s+loop\.first\s+and\s+messages\[0\]\[.role.\]\s*!=\s*.system.\s*-?%\}.*?\{%-?\s*endif\s*-?%\}",
    re.DOTALL,
)


@dataclass(frozen=True)
class Slot:
    """Where a control token stands.

    Attributes:
        name: The token without its brackets: `respond` or a category.
        id: Its token id.
        replaces: Text of the unused special token whose place it takes; its own if the vocabulary had it before;
            None for a new row at the vocabulary's end.
    """

    name: str
    id: int
    replaces: str | None

    @property
    def token(self) -> str:
        """The token's text, `[name]`."""
        return f"[{self.name}]"


def choose_slots(tokenizer: Any, names: Sequence[str]) -> tuple[Slot, ...]:
    """A slot for each name: the one it has, else an unused special token, else a new row at the vocabulary's end.

    Args:
        tokenizer: A fast tokenizer.
        names: Control tokens without brackets.

    Raises:
        UserError: A name that can't be told from ordinary text as a token.
    """
    for name in names:
        if not CONTROL_TOKEN.fullmatch(f"[{name}]"):
            raise UserError(
                f"category {name!r} can't be a token: it must begin with a letter and hold no "
                "brackets; rename it in the data"
            )
    known = bracketed_tokens(tokenizer)
    free = iter(unused_tokens(tokenizer))
    end = len(tokenizer)
    slots = []
    for name in names:
        number, text = (known[name], f"[{name}]") if name in known else next(free, (end, None))
        end += number == end
        slots.append(Slot(name, number, text))
    return tuple(slots)


def unused_tokens(tokenizer: Any) -> list[tuple[int, str]]:
    """Ids and texts of special tokens that stand for nothing: neither a role of the tokenizer nor its template names them."""
    roles = {str(token) for token in tokenizer.special_tokens_map.values()}
    template = tokenizer.chat_template or ""
    return [
        (number, token.content)
        for number, token in sorted(tokenizer.added_tokens_decoder.items())
        if UNUSED.fullmatch(token.content) and token.content not in roles and token.content not in template
    ]


def answer_template(tokenizer: Any) -> str:
    """The chat template to train and run with: the tokenizer's own without its default system prompt, or a simple one.

    A default system prompt costs tokens in every prompt and says who the base model is. The form that SmolLM2 has is
    recognised; a template that inserts one in another way stays as it is.
    """
    if tokenizer.chat_template:
        return DEFAULT_SYSTEM.sub("", tokenizer.chat_template)
    vocabulary = tokenizer.get_vocab()
    published = {"<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"} <= vocabulary.keys()
    return PUBLISHED_TEMPLATE if published else PLAIN_TEMPLATE


def write_tokenizer(tokenizer: Any, slots: Sequence[Slot], template: str, folder: Path) -> None:
    """Save a tokenizer with its control tokens in place and the template; nothing else changes.

    Raises:
        UserError: The tokenizer has no `tokenizer.json`, so its slots can't be named.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    if not path.exists():
        raise UserError(f"{type(tokenizer).__name__} is not a fast tokenizer; convert it to a tokenizer.json first")
    renamed = {slot.replaces: slot.token for slot in slots if slot.replaces}
    for file in folder.glob("*token*.json"):
        content = _renamed(json.loads(file.read_text("utf-8")), renamed)
        if file == path:
            content["added_tokens"] += _new_entries(content["added_tokens"], slots)
        file.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", "utf-8")
    (folder / "chat_template.jinja").write_text(template, "utf-8")


def _renamed(value: Any, names: dict[str, str]) -> Any:
    """The same JSON with every string, and every key, that is one of `names` replaced."""
    if isinstance(value, dict):
        return {names.get(key, key): _renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def _new_entries(entries: list[dict[str, Any]], slots: Sequence[Slot]) -> list[dict[str, Any]]:
    there = {entry["id"] for entry in entries}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": slot.id, "content": slot.token, **flags} for slot in slots if slot.id not in there]


def write_slots(slots: Sequence[Slot], folder: Path) -> None:
    """Write `control_tokens.json`: for each control token its name, id and the token whose slot it took."""
    text = json.dumps([asdict(slot) for slot in slots], ensure_ascii=False, indent=2)
    (folder / SLOTS_FILE).write_text(text + "\n", "utf-8")


def read_slots(folder: Path) -> tuple[Slot, ...]:
    """Read what `write_slots` wrote.

    Raises:
        UserError: The folder holds no such file, or a damaged one.
    """
    path = folder / SLOTS_FILE
    try:
        return tuple(
            Slot(str(row["name"]), int(row["id"]), row["replaces"]) for row in json.loads(path.read_text("utf-8"))
        )
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder} is no adapter of `finetune`: no readable {SLOTS_FILE}") from None
