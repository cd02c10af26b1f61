"""`extract`: prompts to residual activations."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from commands.framework.app import Session, command
from commands.framework.output import emit_progress, warn
from commands.framework.prompts import fingerprint_of, load_prompts
from commands.framework.records import ACTIVATIONS, PAIRS, contradiction, missing, model_key, note, unchanged
from commands.framework.settings import Layers, Settings
from data.errors import UserError

if TYPE_CHECKING:
    import polars as pl

    from interventions.model.model import Model


@command(
    click.option("--layers", type=Layers(), help="Blocks to read, such as 5, 0-9 or 3,5.  [default: all]"),
    click.option("--position", type=click.Choice(["last", "mean", "suffix"]), help="last prompt token, mean over the user's "
                 "tokens, or a suffix's last token.  [default: last]"),
    click.option("--suffix", multiple=True, help="Text after each rendered prompt; repeatable.  [default: none]"),
    click.option("--benign", multiple=True, help="More prompts, all benign; repeatable.  [default: none]"),
)  # fmt: skip
def extract(session: Session, s: Settings) -> dict[str, Any]:
    """Read residual activations of prompts."""
    return make_activations(session, s, load_prompts(s, limited=True), tuple(s.get("suffix", ())))


def make_activations(
    session: Session, s: Settings, prompts: "pl.DataFrame", suffixes: tuple[str, ...]
) -> dict[str, Any]:
    """Read the residual stream of prompts, or of each prompt followed by each suffix."""
    from data.store.rundir import now
    from interventions.reading.extract import checked_layers
    from interventions.reading.extract import extract as run_extract

    start = now()
    model = session.model(s)
    key = model_key(model) | {
        "fingerprint": fingerprint_of(prompts),
        "layers": checked_layers(model, s.get("layers")),
        "position": s.get("position", "suffix" if suffixes else "last"),
        "suffixes": list(suffixes),
        "seed": s.get("seed", 0),
    }
    artefact = PAIRS if suffixes else ACTIVATIONS
    path = s.run / f"{artefact}.safetensors"
    if not unchanged(s, artefact, key, path):
        run_extract(model, prompts, path.parent, layers=key["layers"], position=key["position"], suffixes=suffixes,
                    batch_tokens=s.get("batch_tokens"))  # fmt: skip
        note(s, artefact, key, model, start, data=list(s.get("data", ("embedded",))), options=s.given())
    return {"rows": prompts.height * max(1, len(suffixes)), "layers": len(key["layers"]), "wrote": str(path)}


def need_activations(session: Session, s: Settings, *, own_data: bool, artefact: str = ACTIVATIONS) -> dict[str, Any]:
    """The record of activations that fit the settings, of prompts or of `PAIRS`; made if there are none."""
    from data.store.rundir import records

    known = records(s.run)
    record = known.get(artefact)
    reason = "there are none"
    if record is not None and (s.run / f"{artefact}.safetensors").exists():
        reason = contradiction(s, record) or _other_prompts(session, s, record, own_data, artefact)
        if not reason:
            return record
    like = record or known.get(ACTIVATIONS)
    settings = _settings_to_make(s, like, own_data)
    prompts, suffixes = load_prompts(settings, limited=True), ()
    position = None
    if like is not None:
        settings = settings.with_defaults(layers=tuple(like["key"]["layers"]))
        position = like["key"]["position"] if artefact == ACTIVATIONS else None
    if artefact == PAIRS:
        prompts, suffixes = pairing(session.model(settings), prompts, s.get("split", "train"))
    words = shlex.join(["extract", *(word for text in suffixes for word in ("--suffix", text))])
    missing(s, words, "pairs" if suffixes else "activations", reason)
    emit_progress(make_activations(session, settings.with_values(position=position), prompts, suffixes))
    return records(s.run)[artefact]


def pairing(model: "Model", prompts: "pl.DataFrame", split: str) -> tuple["pl.DataFrame", tuple[str, ...]]:
    """Which prompts are read with which suffixes for contrastive vectors.

    Harmful rows of the split whose category is one of the model's refusal tokens; each is followed by every such
    token that has rows, and by the respond token.

    Raises:
        UserError: The model has no refusal tokens, or none of them has rows.
    """
    import polars as pl

    from data import for_split
    from data.contract import RESPOND
    from interventions.model.control_tokens import refusal_tokens

    tokens = refusal_tokens(model)
    if not tokens.names or tokens.respond is None:
        raise UserError(f"model {model.name!r} has no refusal tokens to put behind a prompt; use --method mean, or a "
                        "model that was taught them (finetune)")  # fmt: skip
    harmful = for_split(prompts, split).filter((pl.col("label") == "harmful") & pl.col("category").is_not_null())
    paired = harmful.filter(pl.col("category").is_in(tokens.names))
    if paired.is_empty():
        raise UserError(f"no harmful row of split {split!r} has a category among the refusal tokens of {model.name!r}: "
                        f"{', '.join(tokens.names)}")  # fmt: skip
    left = sorted(set(harmful["category"]) - set(tokens.names))
    if left:
        warn(f"no refusal token for {', '.join(map(repr, left))}: left out")
    return paired, tuple(f"[{name}]" for name in [*sorted(set(paired["category"])), RESPOND])


def default_layer(record: dict[str, Any]) -> int:
    """Of the layers there are activations of, the one nearest to the default layer of their model."""
    return nearest_default(record["key"]["layers"], record["n_layers"])


def nearest_default(layers: Sequence[int], depth: int) -> int:
    """Of some layers, the one nearest to the default layer of a model of so many."""
    wanted = min(round(18 / 32 * depth), depth - 1)
    return min(layers, key=lambda at: abs(at - wanted))


def _other_prompts(session: Session, s: Settings, record: dict[str, Any], own_data: bool, artefact: str) -> str:
    """Whether other prompts were asked for than those that were read."""
    paired = artefact == PAIRS
    if not own_data or not (s.get("data") or s.get("limit") or s.get("benign") or (paired and s.get("split"))):
        return ""
    prompts = load_prompts(s, limited=True)
    if fingerprint_of(prompts) == record["key"]["fingerprint"]:
        return ""
    if paired:
        prompts, _ = pairing(session.model(s, record), prompts, s.get("split", "train"))
        if fingerprint_of(prompts) == record["key"]["fingerprint"]:
            return ""
    return "the prompts changed"


def _settings_to_make(s: Settings, like: dict[str, Any] | None, own_data: bool) -> Settings:
    """Settings to extract with; model and dtype stay those of what is there."""
    settings = s.for_missing(own_data=own_data)
    if like is None:
        return settings
    if not own_data or not s.get("data"):
        data = settings.get("data", ()) or (tuple(like.get("data") or ()) if s.get("benign") else ())
        settings = settings.with_values(data=data)
    return settings.with_values(model=s.get("model", None, like), dtype=s.get("dtype", None, like))
