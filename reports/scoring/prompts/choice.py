"""Which prompt a judge gets: one by its name, or a file's."""

from pathlib import Path

from data.contract import JUDGE_PROMPTS
from data.errors import UserError
from reports.scoring.prompts import guards, own, paper, strongreject, xstest
from reports.scoring.prompts.prompt import JudgePrompt

NAMED = {
    prompt.name: prompt
    for prompt in (
        xstest.PROMPT,
        paper.PROMPT,
        strongreject.PROMPT,
        guards.WILDGUARD,
        guards.QWEN3GUARD,
        guards.LLAMA_GUARD,
    )
}


def judge_prompt(name: str) -> JudgePrompt:
    """A prompt by its name, a key of `JUDGE_PROMPTS`, or of a file.

    Raises:
        UserError: Neither.
    """
    if name in NAMED:
        return NAMED[name]
    if not Path(name).exists():
        raise UserError(f"--judge-prompt {name!r}: neither one of {', '.join(JUDGE_PROMPTS)} nor a file")
    return own.read_prompt(Path(name))
