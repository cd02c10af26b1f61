"""Conversations as prompts: the last turn of the user is the prompt, what stands before it is its context.

A frame of prompts holds texts alone. A prompt with a context is written as the context, in JSON, between two characters
that no text holds, and the prompt behind it.
"""

import json
from typing import Any

from data.errors import UserError

OPEN, CLOSE = "\ue010", "\ue011"  # for private use
PLACE = "{prompt}"  # of a template, where the prompt goes
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
         "prompter": "user", "developer": "system"}  # fmt: skip


def turns(prompt: str) -> list[dict[str, str]]:
    """The messages of a prompt, its own last."""
    context, text = parted(prompt)
    return [*context, {"role": "user", "content": text}]


def parted(prompt: str) -> tuple[list[dict[str, str]], str]:
    """What stands before a prompt, and its own text."""
    if not prompt.startswith(OPEN):
        return [], prompt
    context, _, text = prompt[1:].partition(CLOSE)
    try:
        return json.loads(context), text
    except ValueError:  # somebody's text begins with that character
        return [], prompt


def instructed(instruction: str, prompt: str) -> str:
    """A prompt with an instruction before its own words."""
    own = parted(prompt)[1]
    return f"{prompt.removesuffix(own)}{instruction}\n\n{own}"


def wrapped(template: str, prompt: str) -> str:
    """A prompt's own words put into a template, in the place of `{prompt}`; what stands before them as context stays there."""
    own = parted(prompt)[1]
    return f"{prompt.removesuffix(own)}{template.replace(PLACE, own)}"


def as_prompt(messages: Any, called: str) -> str:
    """The last turn of the user in a list of messages, with what stands before it; what follows it is left out.

    Args:
        messages: A list of {role, content} (OpenAI's), or {from, value} (ShareGPT's); a content may be a list of parts.
        called: The row, for messages of errors.

    Raises:
        UserError: They are no such thing, or no turn is the user's.
    """
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{called}: its messages should be a list of turns, each with role and content")
    said = [_turn(message, called) for message in messages]
    last = next((at for at in range(len(said) - 1, -1, -1) if said[at]["role"] == "user"), None)
    if last is None:
        raise UserError(f"{called}: none of its messages is the user's")
    if not last:
        return said[0]["content"]
    return OPEN + json.dumps(said[:last], ensure_ascii=False) + CLOSE + said[last]["content"]


def _turn(message: Any, called: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise UserError(f"{called}: a message is {type(message).__name__}, not an object with role and content")
    role, content = message.get("role") or message.get("from"), message.get("content", message.get("value"))
    if isinstance(content, list):
        odd = [
            part
            for part in content
            if not (isinstance(part, str) or (isinstance(part, dict) and isinstance(part.get("text"), str)))
        ]
        if odd:
            raise UserError(f"{called}: a message has a part that is no text; images and the like are not read")
        content = "".join(part if isinstance(part, str) else part["text"] for part in content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise UserError(f"{called}: a message lacks its role or its text")
    return {"role": ROLES.get(role, role), "content": content}
