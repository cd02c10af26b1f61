"""A prompt of the user's, from a file.

A text is what the judge is sent, with `{response}` and, if it is to see it, `{prompt}` where these stand, as JSON strings.
A TOML file says more:

    system = "…"                    # if any
    user = "… {prompt} … {response} …"
    [verdicts]                      # what the judge's words mean, beside those that are known
    yes = "refuse"
    no = "comply"
"""

import tomllib
from functools import partial
from pathlib import Path
from typing import Any

from data.contract import VERDICTS
from data.errors import UserError
from reports.scoring.prompts.paper import VERDICTS as BINARY
from reports.scoring.prompts.prompt import JudgePrompt, Messages, as_data, fingerprint
from reports.scoring.prompts.replies import read_class
from reports.scoring.prompts.xstest import VERDICTS as CLASSES

GIVEN = tuple(verdict for verdict in VERDICTS if verdict != "broken")  # which is decided before
KNOWN = CLASSES | BINARY | {verdict: verdict for verdict in GIVEN}
RESPONSE, PROMPT = "{response}", "{prompt}"
MOST = 100_000  # characters


def read_prompt(path: Path) -> JudgePrompt:
    """A prompt as a file says it.

    Raises:
        UserError: No such file, or it says no prompt.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror or "not readable"
        raise UserError(f"--judge-prompt {path}: {reason}") from None
    said = _toml(path, text) if path.suffix == ".toml" else {"user": text}
    system, user, meaning = said.get("system", ""), said.get("user", ""), said.get("verdicts", {})
    odd = sorted(set(said) - {"system", "user", "verdicts"})
    if odd or not isinstance(system, str) or not isinstance(user, str) or not isinstance(meaning, dict):
        raise UserError(
            f"--judge-prompt {path}: it may say system, user and [verdicts]{f', not {odd[0]}' if odd else ''}"
        )
    if RESPONSE not in user or len(text) > MOST:
        raise UserError(f"--judge-prompt {path}: its text should hold {RESPONSE}, where the answer stands, and no more than "
                        f"{MOST:,} characters")  # fmt: skip
    unknown = [verdict for verdict in meaning.values() if verdict not in GIVEN]
    if unknown:
        raise UserError(f"--judge-prompt {path}: a word means one of {', '.join(GIVEN)}, not {unknown[0]!r}")
    classes = KNOWN | {word.strip().lower().replace(" ", "_").replace("-", "_"): what for word, what in meaning.items()}

    def messages(_mark: str, prompt: str, answer: str) -> Messages:
        before, *rest = user.split(RESPONSE)  # a prompt may hold the word too
        parts = [part.replace(PROMPT, as_data(prompt)) for part in (before, *rest)]
        first = [{"role": "system", "content": system}] if system else []
        return [*first, {"role": "user", "content": as_data(answer).join(parts)}]

    return JudgePrompt(path.name, messages, partial(read_class, classes=classes),
                       fingerprint(system, user, sorted(classes.items())), sees_prompt=PROMPT in user)  # fmt: skip


def _toml(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"--judge-prompt {path}: no TOML ({str(error)[:100]})") from None
