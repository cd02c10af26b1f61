"""`generate`: answers in every arm."""

from typing import Any

from commands.framework.answers import answer_prompts, prepare
from commands.framework.app import Session, command, perform
from commands.framework.artefacts import GENERATIONS, Artefact, Making, as_before, made_by
from commands.framework.options import NEW_TOKENS, STEERING, TEST
from commands.framework.output import Summary
from commands.framework.prompts import fingerprint_of, prompts_of
from commands.framework.settings import Record, Settings
from data.errors import UserError


@command(*STEERING, NEW_TOKENS, TEST)
def generate(session: Session, s: Settings) -> Summary:
    """Answer prompts in every arm."""
    prompts = prompts_of(s, s.get("split"))[: s.get("limit")]
    if prompts.is_empty():
        raise UserError(f"no prompt in split {s.get('split')!r}: pass --split or other --data")
    ready = prepare(session, s)
    answer_prompts(s, ready, prompts, GENERATIONS, s.get("data"))
    return {"prompts": prompts.height, "arms": [arm.name for arm in ready.arms], "wrote": str(GENERATIONS.path(s.run))}


def split_of(s: Settings, record: Record | None) -> tuple[str, str]:
    """The split that is to be answered, and the one that was."""
    was = (record or {}).get("options", {}).get("split") or TEST.default
    return s.given("split") or was, was


def others_asked(_session: Session, s: Settings, _artefact: Artefact[Any], record: Record) -> str:
    """Whether answers to other prompts were asked for."""
    split, was = split_of(s, record)
    if split != was:
        return f"split is {split}, was {was}"
    if s.given("data") is None and s.given("limit") is None:
        return ""
    prompts = prompts_of(s, split)[: s.given("limit") or record["options"].get("limit")]
    return "" if fingerprint_of(prompts) == record["key"]["fingerprint"] else "the prompts changed"


@made_by(GENERATIONS, unless=others_asked)
def answer_again(session: Session, s: Settings, artefact: Artefact[Any], record: Record | None) -> Making:
    """Answer as before, the same prompts unless others were asked for."""
    data = s.given("data") or tuple((record or {}).get("data") or ())
    settings = s.with_values(**as_before(artefact, record), data=data, split=split_of(s, record)[0])
    return Making("generate", lambda: perform(session, settings, "generate"))
