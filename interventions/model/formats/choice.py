"""The prompt format: which template puts a prompt into words, with which system message, and on which date.

It is chosen once, when a model is opened, and is part of what results rest on. The default, the tokenizer's own template
with nothing added, leaves no trace in a record, so that what was made before formats could be chosen is as it was.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from hashlib import sha256
from typing import Any

from data.errors import UserError
from data.prompts.conversations import turns
from interventions.model.foreign.rendering import rendered
from interventions.model.formats.named import NAMED

OWN, NONE = "tokenizer", "none"
PROMPT, SYSTEM = "{prompt}", "{system}"
MARK, SECOND = "\ue000", "\ue001"  # for private use, so that no template holds them
TODAY = re.compile(
    r"""\bstrftime_now\(\s*(['"])(.*?)\1\s*\)"""
)  # transformers gives templates this function of its clock
CALLED = re.compile(r"\bstrftime_now\s*\(")
KNOWS_THINKING = ("enable_thinking", "thinking")  # what templates call it

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class PromptFormat:
    """What was asked for.

    Attributes:
        name: `tokenizer` for its own template, `none` for the bare prompt, a key of `NAMED`, one of several templates of
            the tokenizer, or a pattern that holds `{prompt}`.
        template: A Jinja template's text, in the name's place.
        system: A system message.
        thinking: Whether a template that knows it lets the model think; None: as the template does by itself.
        date: What a template that writes today's date writes, ISO 8601.
        control_tokens: Whether a control token in a prompt's text counts as one, and not as its characters.
    """

    name: str = OWN
    template: str | None = None
    system: str | None = None
    thinking: bool | None = None
    date: str | None = None
    control_tokens: bool = False

    @property
    def record(self) -> dict[str, Any]:
        """What is not as it is by default."""
        plain = asdict(PromptFormat())
        return {key: value for key, value in asdict(self).items() if value != plain[key]}


@dataclass(frozen=True)
class Rendering:
    """A format as a tokenizer carries it out.

    Attributes:
        format: What was asked for, without a date that no template writes.
        variables: What the template is given beside messages.
        parts: Whether it takes a message's content as a list of parts.
    """

    format: PromptFormat = PromptFormat()
    variables: Mapping[str, Any] = field(default_factory=dict)
    parts: bool = False

    def messages(self, prompt: str) -> Messages:
        """The system message, what stands before the prompt, and the prompt."""
        system = [] if self.format.system is None else [{"role": "system", "content": self.format.system}]
        said = system + turns(prompt)
        if not self.parts:
            return said
        return [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in said]


def rendering_of(tokenizer: Any) -> Rendering:
    """How a tokenizer of an open model renders; by default as it is."""
    return getattr(tokenizer, "rendering", Rendering())


def render_all(tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """Prompts in the tokenizer's format, generation prompt included; bare without a template."""
    if not tokenizer.chat_template:
        return list(prompts)
    how = rendering_of(tokenizer)
    return rendered(tokenizer, [how.messages(prompt) for prompt in prompts], how.variables)


def template_hash(tokenizer: Any) -> str:
    """SHA-256 of the template, and of what else decides how prompts are put; of the empty text where there is none."""
    template, more = tokenizer.chat_template or "", rendering_of(tokenizer).format.record
    more = {key: value for key, value in more.items() if key not in ("name", "template")}  # which the text itself tells
    return sha256((json.dumps([template, more], sort_keys=True) if more else template).encode()).hexdigest()


def set_format(tokenizer: Any, asked: PromptFormat, name: str, say: Callable[[str], None]) -> None:
    """Give a tokenizer its template and its rendering, and try them.

    Args:
        tokenizer: Of the model that is opened.
        asked: The format.
        name: The model's.
        say: Takes a line on what was chosen among several.

    Raises:
        UserError: No such format, or one that drops what it is given.
    """
    tokenizer.chat_template = _template(tokenizer, asked, name, say)
    template = tokenizer.chat_template or ""
    variables: dict[str, Any] = {}
    if asked.thinking is not None:
        known = [word for word in KNOWS_THINKING if word in template]
        if not known:
            raise UserError(f"{name}: its template knows nothing of thinking; leave --thinking and --no-thinking out")
        variables |= dict.fromkeys(known, asked.thinking)
    today = date.fromisoformat(asked.date) if asked.date else date.today()
    dated = bool(TODAY.search(template))
    template = tokenizer.chat_template = TODAY.sub(lambda found: json.dumps(today.strftime(found[2])), template) or None
    if template and CALLED.search(template):
        raise UserError(
            f"{name}: its chat template writes today's date in a form that is not given here; pass --template with a date"
        )
    kept = replace(asked, date=today.isoformat() if dated else None)
    tokenizer.rendering = Rendering(kept, variables)
    if not template:
        if asked.system is not None:
            raise UserError(
                f"{name}: without a template there is no place for --system; pass --prompt-format or --template"
            )
        return
    if MARK not in _tried(tokenizer, name):
        tokenizer.rendering = Rendering(kept, variables, parts=True)
        if MARK not in _tried(tokenizer, name):
            raise UserError(
                f"{name}: its chat template leaves nothing of the user's text; pass --template or --prompt-format"
            )
        say(f"{name}: its chat template takes a message's text in parts, and gets it so")
    if asked.system is not None:
        spoken = replace(kept, system=SECOND)
        there = tokenizer.rendering
        tokenizer.rendering = Rendering(spoken, variables, there.parts)
        if SECOND not in _tried(tokenizer, name):
            raise UserError(f"{name}: its chat template leaves nothing of --system; pass --template or --prompt-format")
        tokenizer.rendering = there


def _tried(tokenizer: Any, name: str) -> str:
    """A mark in the format; a template that fails without a system message, and not with one, is told apart."""
    try:
        return render_all(tokenizer, [MARK])[0]
    except UserError as error:
        how = rendering_of(tokenizer)
        if how.format.system is not None or how.parts:
            raise UserError(f"{name}: {error}") from None
        with_system = [{"role": "system", "content": "."}, *how.messages(MARK)]
        try:
            fits = MARK in rendered(tokenizer, [with_system], how.variables)[0]
        except UserError:
            fits = False
        if fits:
            raise UserError(f"{name}: its chat template needs a system message: pass --system TEXT") from None
        try:
            return rendered(tokenizer, [Rendering(how.format, parts=True).messages(MARK)], how.variables)[0] and ""
        except UserError:
            raise UserError(f"{name}: {error}") from None


def _template(tokenizer: Any, asked: PromptFormat, name: str, say: Callable[[str], None]) -> str | None:
    own = tokenizer.chat_template
    if asked.template is not None:
        return asked.template
    if isinstance(own, dict):
        if asked.name in own:
            return own[asked.name]
        if asked.name == OWN:
            if "default" not in own:
                raise UserError(f"{name} has the templates {', '.join(own)} and no default: pass --prompt-format NAME")
            say(f"{name}: of its templates {', '.join(own)} the default is used; --prompt-format NAME takes another")
            return own["default"]
    elif asked.name == OWN:
        return own
    if asked.name == NONE:
        return None
    if asked.name in NAMED:
        return NAMED[asked.name]
    if PROMPT in asked.name:
        return _pattern(asked.name.replace("\\n", "\n"), asked.system is not None)
    known = [OWN, NONE, *NAMED, *(own if isinstance(own, dict) else ())]
    raise UserError(
        f"no prompt format {asked.name!r}: there are {', '.join(known)}, and patterns such as 'Q: {{prompt}}\\nA:'"
    )


def _pattern(text: str, has_system: bool) -> str:
    """A pattern as a Jinja template, which takes one message and, where it says `{system}`, a system message."""
    if text.count(PROMPT) != 1 or text.count(SYSTEM) > 1:
        raise UserError(f"the pattern {text!r} should hold {PROMPT} once, and {SYSTEM} at most once")
    if has_system != (SYSTEM in text):
        raise UserError(f"the pattern {text!r} and --system TEXT go together: {SYSTEM} says where it stands")
    for name, at in ((PROMPT, "{{ messages[-1]['content'] }}"), (SYSTEM, "{{ messages[0]['content'] }}")):
        text = text.replace(name, f"\x00{at}\x00")
    return "".join(part if at % 2 else "{{ " + json.dumps(part, ensure_ascii=False) + " }}"
                   for at, part in enumerate(text.split("\x00")) if part)  # fmt: skip
