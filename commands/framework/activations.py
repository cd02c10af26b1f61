"""Reading the residual stream of prompts, and of prompts followed by control tokens, which contrasts compare."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from commands.framework.app import Session
from commands.framework.artefacts import ACTIVATIONS, PAIRS
from commands.framework.output import Summary, warn
from commands.framework.prompts import fingerprint_of
from commands.framework.records import model_key, note, unchanged
from commands.framework.settings import Record, Settings
from data.errors import UserError

if TYPE_CHECKING:
    import polars as pl

    from interventions.model.model import Model


def read_activations(session: Session, s: Settings, prompts: "pl.DataFrame", suffixes: tuple[str, ...]) -> Summary:
    """Read the residual stream of prompts, or of each prompt followed by each suffix."""
    from data.store.rundir import now
    from interventions.reading.extract import checked_layers, extract

    start = now()
    model = session.model(s)
    key = model_key(model) | {
        "fingerprint": fingerprint_of(prompts),
        "layers": checked_layers(model, s.get("layers")),
        "position": s.get("position") or ("suffix" if suffixes else "last"),
        "suffixes": list(suffixes),
        "seed": s.get("seed"),
    }
    artefact = PAIRS if suffixes else ACTIVATIONS
    path = artefact.path(s.run)
    if not unchanged(s, artefact, key):
        extract(model, prompts, path.parent, layers=key["layers"], position=key["position"], suffixes=suffixes,
                batch_tokens=s.get("batch_tokens"))  # fmt: skip
        note(s, artefact, key, model, start, data=s.get("data"))
    return {"rows": prompts.height * max(1, len(suffixes)), "layers": len(key["layers"]), "wrote": str(path)}


def needs_pairs(session: Session, s: Settings) -> bool:
    """Whether the method compares each prompt with itself, followed by other tokens.

    A first principal component does where the model has refusal tokens, and one to respond, to put behind a prompt.
    """
    from data.store.rundir import records
    from interventions.model.control_tokens import refusal_tokens

    if s.get("method") != "pca":
        return s.get("method") == "contrastive"
    tokens = refusal_tokens(session.model(s, records(s.run).get(ACTIVATIONS.name)))
    return bool(tokens.names) and tokens.respond is not None


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
                        f"{', '.join(tokens.names)}; --method mean needs none")  # fmt: skip
    left = sorted(set(harmful["category"]) - set(tokens.names))
    if left:
        warn(f"no refusal token for {', '.join(map(repr, left))}: left out")
    return paired, tuple(f"[{name}]" for name in [*sorted(set(paired["category"])), RESPOND])


def default_layer(record: Record) -> int:
    """Of the layers there are activations of, the one nearest to the default layer of their model."""
    return nearest_default(record["key"]["layers"], record["n_layers"])


def nearest_default(layers: Sequence[int], depth: int) -> int:
    """Of some layers, the one nearest to the default layer of a model of so many."""
    wanted = min(round(18 / 32 * depth), depth - 1)
    return min(layers, key=lambda at: abs(at - wanted))
