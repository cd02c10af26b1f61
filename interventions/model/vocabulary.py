"""Control tokens in a vocabulary: the places they take.

Many vocabularies hold special tokens that no text uses. A control token that takes such a place leaves every layer its
size, so that an adapter fits wherever the base model runs. Only the place's text changes: ordinary text is encoded as
before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data.errors import UserError
from interventions.model.control_tokens import CONTROL_TOKEN, UNUSED, bracketed_tokens


@dataclass(frozen=True)
class ControlToken:
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


def place_control_tokens(tokenizer: Any, names: Sequence[str]) -> tuple[ControlToken, ...]:
    """A place for each name: the one it has, else an unused special token, else a new row at the vocabulary's end.

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
    control_tokens = []
    for name in names:
        number, text = (known[name], f"[{name}]") if name in known else next(free, (end, None))
        end += number == end
        control_tokens.append(ControlToken(name, number, text))
    return tuple(control_tokens)


def unused_tokens(tokenizer: Any) -> list[tuple[int, str]]:
    """Ids and texts of special tokens that stand for nothing: neither a role of the tokenizer nor its template names them."""
    roles = {str(token) for token in tokenizer.special_tokens_map.values()}
    template = tokenizer.chat_template or ""
    return [
        (number, token.content)
        for number, token in sorted(tokenizer.added_tokens_decoder.items())
        if UNUSED.fullmatch(token.content) and token.content not in roles and token.content not in template
    ]
