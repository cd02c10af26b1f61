"""`extract`: prompts to residual activations."""

import shlex
from pathlib import Path
from typing import Any

from commands.framework.activations import as_read, pairing, read_activations, say_rows, why_rows
from commands.framework.app import Session, command
from commands.framework.artefacts import ACTIVATIONS, PAIRS, Artefact, Making, made_by
from commands.framework.options import BENIGN, LAYERS, POSITION, SHOW_PROMPT, SUFFIX
from commands.framework.output import Summary, warn
from commands.framework.prompts import fingerprint_of, fitting_prompts
from commands.framework.settings import Record, Settings


@command(SHOW_PROMPT, LAYERS, POSITION, SUFFIX, BENIGN)
def extract(session: Session, s: Settings) -> Summary:
    """Read residual activations of prompts."""
    prompts, suffixes = fitting_prompts(s), tuple(s.get("suffix"))
    told = shown_prompt(session, s, prompts["prompt"][0], suffixes) if s.get("show_prompt") else {}
    return told | read_activations(session, s, prompts, suffixes)


def shown_prompt(session: Session, s: Settings, prompt: str, suffixes: tuple[str, ...]) -> Summary:
    """A prompt as the model reads it, with the first suffix if there are any: as an object, or on stderr."""
    from interventions.model.prompt_format import encode, shown

    tokenizer = session.model(s).tokenizer
    encoded = encode(tokenizer, [prompt], suffixes[:1])
    ids, (start, stop) = encoded.ids[0], encoded.user[0]
    tokens = [shown(tokenizer, [token]) for token in ids]
    if s.get("as_json"):
        return {"rendered": shown(tokenizer, ids), "tokens": tokens, "user": [start, stop]}
    yours = f"; {stop - start} of them, from the {start + 1}th, are the prompt's own" if stop > start else ""
    warn(
        f"the first prompt, as the model reads it:\n{shown(tokenizer, ids)}\nits {len(ids)} tokens{yours}:\n{' '.join(map(repr, tokens))}"
    )
    return {}


def other_prompts(session: Session, s: Settings, artefact: Artefact[Any], record: Record) -> str:
    """Whether other prompts were asked for than those that were read."""
    asked = ("data", "limit", "benign", "holdout", *(["split"] if artefact == PAIRS else []))
    if not s.own_data or all(s.given(name) is None for name in asked):
        return ""
    prompts = fitting_prompts(s)
    if fingerprint_of(prompts) == record["key"]["fingerprint"]:
        return ""
    if artefact == PAIRS:
        prompts, _ = pairing(session.model(s, record), prompts, s.get("split"))
        if fingerprint_of(prompts) == record["key"]["fingerprint"]:
            return ""
    return "the prompts changed"


@made_by(ACTIVATIONS, PAIRS, unless=other_prompts)
def read_again(session: Session, s: Settings, artefact: Artefact[Any], record: Record | None) -> Making:
    """Read as before: model, dtype, layers and position stay those of what is there, and without --data the prompts."""
    from data.store.rundir import records

    like = record or records(s.run).get(ACTIVATIONS.name)
    settings = as_read(s, like)
    prompts, suffixes = fitting_prompts(settings), ()
    if artefact == PAIRS:
        prompts, suffixes = pairing(session.model(settings), prompts, s.get("split"))
    position = like["key"]["position"] if like is not None and artefact == ACTIVATIONS else None
    settings = settings.with_values(position=position)
    words = shlex.join(["extract", *(word for text in suffixes for word in ("--suffix", text))])
    much = f" over {prompts.height * max(1, len(suffixes)):,} rows"
    if record is not None and (was := rows_of(artefact.path(s.run))):
        much += f", in place of {was:,}"

    def make() -> Summary:
        say_rows(s, why_rows(s))
        return read_activations(session, settings, prompts, suffixes)

    return Making(words, make, much)


def rows_of(path: Path) -> int:
    """How many rows an activations file has, as its table says; 0 where that can't be read."""
    import polars as pl

    from data.store.tables import parquet_rows

    try:
        return parquet_rows(path.with_suffix(".parquet"))
    except (OSError, pl.exceptions.PolarsError):
        return 0
