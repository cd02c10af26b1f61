"""`extract`: prompts to residual activations."""

from typing import Any

import click

from commands.framework import MAKERS, Session, command
from commands.output import emit_progress
from commands.prompts import fingerprint_of, load_prompts
from commands.records import ACTIVATIONS, missing, model_key, note, unchanged
from commands.settings import Layers, Settings


@command(
    click.option("--layers", type=Layers(), help="Blocks to read, such as 5, 0-9 or 3,5.  [default: all]"),
    click.option("--position", type=click.Choice(["last", "mean", "suffix"]), help="last prompt token, mean over the user's "
                 "tokens, or a suffix's last token.  [default: last]"),
    click.option("--suffix", multiple=True, help="Text after each rendered prompt; repeatable.  [default: none]"),
    click.option("--benign", multiple=True, help="More prompts, all benign; repeatable.  [default: none]"),
)  # fmt: skip
def extract(session: Session, s: Settings) -> dict[str, Any]:
    """Read residual activations of prompts."""
    from interventions.extraction import checked_layers
    from interventions.extraction import extract as run_extract
    from interventions.rundir import now

    start = now()
    prompts = load_prompts(s, limited=True)
    model = session.model(s)
    suffixes = list(s.get("suffix", ()))
    position = s.get("position", "suffix" if suffixes else "last")
    key = model_key(model) | {
        "fingerprint": fingerprint_of(prompts),
        "layers": checked_layers(model, s.get("layers")),
        "position": position,
        "suffixes": suffixes,
        "seed": s.get("seed", 0),
    }
    name = "pairs" if suffixes else "prompts"
    artefact = f"activations/{name}"
    path = s.run / "activations" / f"{name}.safetensors"
    if not unchanged(s, artefact, key, path):
        run_extract(model, prompts, path.parent, layers=key["layers"], position=position, suffixes=suffixes,
                    batch_tokens=s.get("batch_tokens", 2048))  # fmt: skip
        note(s, artefact, key, model, start, data=list(s.get("data", ("embedded",))), options=s.given())
    return {"rows": prompts.height * max(1, len(suffixes)), "layers": len(key["layers"]), "wrote": str(path)}


def need_activations(session: Session, s: Settings, *, own_data: bool) -> dict[str, Any]:
    """The record of activations that fit the settings; made if there are none."""
    from interventions.rundir import records

    record = records(s.run).get(ACTIVATIONS)
    made = (s.run / f"{ACTIVATIONS}.safetensors").exists() and record is not None
    reason = "there are none"
    if made and record is not None:
        reason = next((f"{name} is {s.get(name)}, was {record[name]}" for name in ("model", "dtype")
                       if s.get(name) is not None and s.get(name) != record[name]), "")  # fmt: skip
        if not reason and own_data and (s.get("data") or s.get("limit") or s.get("benign")):
            same = fingerprint_of(load_prompts(s, limited=True)) == record["key"]["fingerprint"]
            reason = "" if same else "the prompts changed"
    if not reason and record is not None:
        return record
    missing(s, "extract", "activations", reason)
    settings = s.for_missing(own_data=own_data)
    if record is not None:
        settings = settings.with_values(model=s.get("model", None, record), dtype=s.get("dtype", None, record))
        if not own_data or not s.get("data"):
            data = settings.get("data", ()) or (tuple(record.get("data") or ()) if s.get("benign") else ())
            settings = settings.with_values(data=data)
    extract_settings = settings.with_values(layers=s.get("layers"), position=None, suffix=())
    emit_progress(MAKERS["extract"](session, extract_settings))
    return records(s.run)[ACTIVATIONS]
