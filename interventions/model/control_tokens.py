"""Control tokens: how they are told from other tokens, and which a model has."""

import re
from dataclasses import dataclass
from typing import Any

from data.contract import RESPOND
from interventions.model.model import Model

CONTROL_TOKEN = re.compile(r"\[([^\W\d_][^\[\]\n]*)\]")  # a name in brackets that begins with a letter
# Special tokens that are there to be taken (Llama 3, Gemma, Mistral, Qwen) or that only mark the source files of
# pre-training data (StarCoder, SmolLM).
UNUSED = re.compile(
    r"<\|reserved_special_token_\d+\|>|<\|reserved_\d+\|>|<\|extra_\d+\|>|<unused_?\d+>|<(special|SPECIAL)_\d+>"
    r"|\[control_\d+\]|<(repo_name|reponame|file_sep|filename|gh_stars|issue_\w+|jupyter_\w+|empty_output)>"
)


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """The model's control tokens, name without brackets -> id: none, unless there is one to respond.

    Other models write tokens of other use in brackets, too: `[PAD]`, `[TOOL_CALLS]`.
    """
    found = bracketed_tokens(tokenizer)
    return found if RESPOND in found else {}


def bracketed_tokens(tokenizer: Any) -> dict[str, int]:
    """Added tokens written in brackets, name without them -> id, but for what the tokenizer or its template uses."""
    roles = {str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    template = tokenizer.chat_template or ""
    found = {}
    for number, token in tokenizer.added_tokens_decoder.items():
        text, match = token.content, CONTROL_TOKEN.fullmatch(token.content)
        if match and text not in roles and text not in template and not UNUSED.fullmatch(text):
            found[match[1]] = number
    return found


@dataclass(frozen=True)
class RefusalTokens:
    """A model's control tokens.

    Attributes:
        names: Categories.
        ids: Token id of each.
        respond: Token id of the respond token, or None.
    """

    names: list[str]
    ids: list[int]
    respond: int | None


def refusal_tokens(model: Model) -> RefusalTokens:
    """The control tokens in a model's tokenizer; empty lists where it has none."""
    found = control_tokens(model.tokenizer)
    names = [name for name in found if name != RESPOND]
    return RefusalTokens(names, [found[name] for name in names], found.get(RESPOND))
