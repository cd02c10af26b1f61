"""Reading the residual stream of prompts, and of prompts followed by control tokens, which contrasts compare."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from commands.framework.app import Session
from commands.framework.artefacts import ACTIVATIONS, PAIRS, PROJECTIONS, SUMS, Artefact, need, unfit
from commands.framework.output import Summary, warn
from commands.framework.prompts import fingerprint_of, fitting_prompts
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


def say_rows(s: Settings, why: str) -> None:
    """Where a server computes, and before it is asked: why it is activations that come back, and not their sums."""
    if s.get("where") == "remote":
        warn(f"{s.command}: activations of single rows come back, not their sums: {why}")


def why_rows(s: Settings) -> str:
    """What of a command that needs activations rests on single rows."""
    if s.command == "probe":
        return (
            f"--fit {s.get('fit')} is fitted to them, and its threshold chosen by their scores; --fit mass-mean does with sums "
            "and projections, and `extract --layers L` reads one layer alone"
        )
    if s.command == "vectors":
        return f"--method {s.get('method')} is fitted to them; mean and contrastive do with sums"
    return f"{s.command} is fitted to them"


def as_read(s: Settings, like: Record | None) -> Settings:
    """Settings to read prompts as before: model, dtype and layers stay, and without --data the prompts."""
    settings = s.for_command("extract")
    if like is None:
        return settings
    if not s.own_data or s.given("data") is None:
        data = s.given("data") or (tuple(like.get("data") or ()) if s.given("benign") else ())
        settings = settings.with_values(data=data)
    settings = settings.with_values(model=s.given("model", like), dtype=s.given("dtype", like),
                                    quantize=s.given("quantize", like))  # fmt: skip
    return settings.with_defaults(layers=tuple(like["key"]["layers"]))


def need_to_fit(session: Session, s: Settings) -> tuple[Path, Record]:
    """What vectors are fitted to: activations, or on a server their sums, where a method rests on these and no activations are here."""
    from interventions.methods.fit import rests_on_sums

    source = PAIRS if needs_pairs(session, s) else ACTIVATIONS
    if s.get("where") == "local" or not rests_on_sums(s.get("method")):
        return need(session, s, source)
    return need(session, s, source) if _is_newest(session, s, source, SUMS) else read_sums(session, s)


def need_to_fit_probe(session: Session, s: Settings) -> tuple[Path, Record]:
    """What a probe is fitted to: activations, or on a server moments and projections, where its fit rests on these and no activations
    are here."""
    from interventions.gates.fit import SINGLE

    if s.get("where") == "local" or s.get("fit") != SINGLE or _is_newest(session, s, ACTIVATIONS, PROJECTIONS):
        return need(session, s, ACTIVATIONS)
    return read_projections(session, s)


def _is_newest(session: Session, s: Settings, source: "Artefact[Path]", reduced: "Artefact[Path]") -> bool:
    """Whether activations are there that fit, and what a server made of others is older."""
    from data.store.rundir import records

    known = records(s.run)
    there = [one.name for one in (source, reduced) if one.name in known]
    newest = max(there, key=lambda name: known[name]["end"], default=None)
    return newest == source.name and not unfit(session, s, source)


def read_sums(session: Session, s: Settings) -> tuple[Path, Record]:
    """Sums over the rows that a method compares, added up where the model is; unless they are here."""
    from data.store.rundir import now, records
    from interventions.methods.fit import group_of, relabels
    from interventions.reading.extract import checked_layers
    from interventions.reading.sums import extract_sums

    start, known = now(), records(s.run)
    like = known.get(SUMS.name) or known.get(ACTIVATIONS.name)
    settings = as_read(s, like)
    model, prompts, suffixes = session.model(settings), fitting_prompts(settings), ()
    split, seed, method = s.get("split"), s.get("seed"), s.get("method")
    position = like["key"]["position"] if like is not None and not like["key"]["suffixes"] else "last"
    if needs_pairs(session, s):
        position, (prompts, suffixes) = "suffix", pairing(model, prompts, split)
    key = model_key(model) | {
        "fingerprint": fingerprint_of(prompts),
        "layers": checked_layers(model, settings.get("layers")),
        "position": position,
        "suffixes": list(suffixes),
        "split": split,
        "relabelled": [method, seed] if relabels(method) else None,
    }
    path = SUMS.path(s.run)
    if not unchanged(s, SUMS, key):
        extract_sums(model, prompts, path.parent, lambda rows: group_of(rows, method, split=split, seed=seed),
                     layers=key["layers"], position=position, suffixes=suffixes,
                     batch_tokens=s.get("batch_tokens"))  # fmt: skip
        note(settings, SUMS, key, model, start, data=settings.get("data"))
    return path, records(s.run)[SUMS.name]


def read_projections(session: Session, s: Settings) -> tuple[Path, Record]:
    """Moments of the rows that a mass-mean probe is fitted to, and projections of all that it scores; unless they are here."""
    from data.store.rundir import now, records
    from interventions.fitting.moments import mass_mean, together
    from interventions.gates.fit import fits_of
    from interventions.reading.extract import checked_layers
    from interventions.reading.projections import extract_projections

    start, known = now(), records(s.run)
    like = next((known[one.name] for one in (PROJECTIONS, SUMS, ACTIVATIONS) if one.name in known), None)
    settings = as_read(s, like)
    model, prompts = session.model(settings), fitting_prompts(settings)
    splits = {name: s.get(name) for name in ("split", "threshold_split", "seed")}
    key = model_key(model) | {
        "fingerprint": fingerprint_of(prompts),
        "layers": checked_layers(model, settings.get("layers")),
        "position": like["key"]["position"] if like is not None and not like["key"]["suffixes"] else "last",
        "suffixes": [],
        **splits,
    }
    path = PROJECTIONS.path(s.run)
    if not unchanged(s, PROJECTIONS, key):
        extract_projections(model, prompts, path.parent, lambda rows: fits_of(rows, **splits), together, mass_mean,
                            layers=key["layers"], position=key["position"], batch_tokens=s.get("batch_tokens"))  # fmt: skip
        note(settings, PROJECTIONS, key, model, start, data=settings.get("data"))
    return path, records(s.run)[PROJECTIONS.name]


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
