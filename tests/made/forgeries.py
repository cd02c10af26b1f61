"""One figure of a run directory forged, and with it all that `run.json` and the ledger say of the file: what `verify` has to find."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from data.store.digests import LEDGER, SHA256
from data.store.rundir import identity

Forgery = Callable[[Path], None]


def recorded(folder: Path, name: str) -> None:
    """Put the SHA-256 of a forged file where the true one stood: in its record, and in the ledger with the file's own times."""
    path = folder / name
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    told = json.loads((folder / "run.json").read_text())
    for record in told["artefacts"].values():
        if name in record[SHA256]:
            record[SHA256][name] = digest
    (folder / "run.json").write_text(json.dumps(told))
    ledger, stat = json.loads((folder / LEDGER).read_text()), path.stat()
    ledger[name] = {SHA256: digest, "stat": [stat.st_size, stat.st_mtime_ns, stat.st_ino]}
    (folder / LEDGER).write_text(json.dumps(ledger))


def frame(name: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Forgery:
    """Forge a table."""

    def forge(folder: Path) -> None:
        path = folder / f"{name}.parquet"
        old = pl.read_parquet(path)
        new = change(old)
        assert not new.equals(old), "nothing was forged"
        new.write_parquet(path)
        recorded(folder, f"{name}.parquet")

    return forge


def table(name: str, **values: pl.Expr) -> Forgery:
    """Forge columns of a table."""
    return frame(name, lambda old: old.with_columns(**values))


def tensor(name: str, what: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Forgery:
    """Forge a tensor of a safetensors file, the first where none is named; its metadata stay."""

    def forge(folder: Path) -> None:
        path = folder / f"{name}.safetensors"
        with safe_open(path, "pt") as file:
            metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        key = what or next(iter(tensors))
        new = change(tensors[key].clone()).contiguous()
        assert not torch.equal(new, tensors[key]), "nothing was forged"
        save_file(tensors | {key: new}, path, metadata)
        recorded(folder, f"{name}.safetensors")

    return forge


def one(column: str, value) -> pl.Expr:
    """The first value that there is replaced: by a value, or by what an expression makes of it."""
    new = value if isinstance(value, pl.Expr) else pl.lit(value)
    there = pl.col(column).is_not_null()
    return pl.when(there & (there.cum_sum() == 1)).then(new).otherwise(pl.col(column))


def by(column: str, much: float) -> pl.Expr:
    """The first number that there is moved by so much."""
    return one(column, pl.col(column) + much)


def nudge(values: torch.Tensor) -> torch.Tensor:
    """The last entry moved by half of the largest."""
    values.view(-1)[-1] += 0.5 * values.abs().max()
    return values


def a_hundredth(values: torch.Tensor) -> torch.Tensor:
    """An entry, the largest of the last vector, moved by 1 %."""
    row = values.view(-1, values.shape[-1])[-1]
    row[row.abs().argmax()] *= 1.01
    return values


def swap(values: torch.Tensor) -> torch.Tensor:
    """Two rows in one another's place, at the last layer."""
    rows = values.view(-1, *values.shape[-2:])[-1] if values.dim() > 2 else values
    rows[[0, 1]] = rows[[1, 0]]
    return values


def tokens_too(folder: Path) -> None:
    """An answer's tokens put in the place of another's, text and all: nothing in the table contradicts them."""
    own = ["response", "token_ids", "token_ends", "new_tokens", "control_token", "refusal_token", "finish"]

    def change(old: pl.DataFrame) -> pl.DataFrame:
        mine, rows = old.filter(arm="baseline"), old.to_dicts()
        other = next(row for row in mine.to_dicts() if row["token_ids"] != mine["token_ids"][0].to_list())
        assert rows[0]["arm"] == "baseline"
        rows[0] |= {name: other[name] for name in own}
        return pl.DataFrame(rows, old.schema)

    frame("generations", change)(folder)


def score_kept(folder: Path) -> None:
    """The verdict on one answer and on all that are summed in its rate kept, the answer made one of the other kind."""
    refusals = pl.col("response").str.contains("(?i)can't|won't|sorry")
    text = (
        pl.when(refusals).then(pl.lit("Sure, here it is.")).otherwise(pl.lit("I'm sorry, but I can't help with that."))
    )
    table("generations", response=one("response", text))(folder)


def chosen(old: pl.DataFrame) -> pl.DataFrame:
    """Another setting marked as the chosen one."""
    other = old.filter(~pl.col("chosen"), pl.col("kind") != "baseline").row(0, named=True)
    mine = (pl.col("layer") == other["layer"]) & (pl.col("strength") == other["strength"])
    return old.with_columns(chosen=mine.fill_null(False))


def page(folder: Path) -> None:
    """A figure of the page."""
    path = folder / "report.html"
    text = path.read_text()
    assert "0.0" in text
    path.write_text(text.replace("0.0", "0.1", 1))


def key(artefact: str, whole: bool, **values: object) -> Forgery:
    """What an artefact is said to be made from; the id that is a hash of it too, if the whole is forged."""

    def forge(folder: Path) -> None:
        told = json.loads((folder / "run.json").read_text())
        record = told["artefacts"][artefact]
        record["key"] |= values
        if whole:
            record["id"] = identity(record["key"])
        (folder / "run.json").write_text(json.dumps(told))

    return forge


OTHER_LABEL = pl.when(pl.col("label") == "benign").then(pl.lit("harmful")).otherwise(pl.lit("benign"))
OTHERWISE = ~pl.col("incoherent").fill_null(False)
FIRST_OTHERWISE = pl.when(pl.int_range(pl.len()) == 0).then(OTHERWISE).otherwise(pl.col("incoherent"))
ONE_LESS = pl.col("refused") - 1 / pl.col("n")
ONE_MORE = pl.col("refused") + 1 / pl.col("n")
A_PROMPT = one("refused", pl.when(pl.col("refused") > 0).then(ONE_LESS).otherwise(ONE_MORE))

# What is forged -> how; before a comma the artefact that `verify` has to name.
FORGERIES: dict[str, Forgery] = {
    "activations/prompts": tensor("activations/prompts", "activations", nudge),
    "activations/prompts, an entry by 1 %": tensor("activations/prompts", "activations", a_hundredth),
    "activations/prompts, two rows swapped": tensor("activations/prompts", "activations", swap),
    "activations/prompts, a label": table("activations/prompts", label=one("label", OTHER_LABEL)),
    "activations/pairs, two rows swapped": tensor("activations/pairs", "activations", swap),
    "activations/gate": tensor("activations/gate", "activations", nudge),
    "vectors": tensor("vectors", "", nudge),
    "vectors, an entry by 1 %": tensor("vectors", "", a_hundredth),
    "logit_lens": table("logit_lens", logit=one("logit", 99.0)),
    "logit_lens, by 0.01": table("logit_lens", logit=by("logit", 0.01)),
    "traces": table("traces", kl=one("kl", 9.0)),
    "traces, by 0.01": table("traces", kl=by("kl", 0.01)),
    "probe, threshold by 0.01": tensor("probe", "threshold", lambda values: values + 0.01),
    "probe, quality": table("probe_quality", auc=by("auc", -0.01)),
    "probe, layers": table("probe_layers", auc=by("auc", -0.01)),
    "probe, roc": table("probe_roc", threshold=by("threshold", 0.01)),
    "probe, how it carries over": table("gates/probe_quality", auc=by("auc", -0.01)),
    "gates/ridge, threshold by 0.01": tensor("gates/ridge", "threshold", lambda values: values + 0.01),
    "gates/ridge, a weight by 1 %": tensor("gates/ridge", "weight", a_hundredth),
    "gates/ridge, quality": table("gates/ridge_quality", auc=by("auc", -0.01)),
    "gates/ridge, scores": table("gates/ridge_prompts", score=by("score", 0.01)),
    "sweep, choice": frame("sweep", chosen),
    "sweep, prompts": frame("sweep_prompts", lambda old: old[1:]),
    "sweep, probability by 0.01": table("sweep", refusal_probability=by("refusal_probability", 0.01)),
    "sweep, one prompt": table("sweep", refused=A_PROMPT),
    "generations, text": score_kept,
    "generations, a letter": table("generations", response=one("response", pl.col("response") + ".")),
    "generations, tokens": tokens_too,
    "generations, label": table("generations", label=one("label", OTHER_LABEL)),
    "generations, length in record": key("generations", True, max_new_tokens=7),
    "scores": table("scores", verdict=one("verdict", "partial"), refused=one("refused", False)),
    "scores, fitted": table("scores", fitted=~pl.col("fitted")),
    "summary": table("summary", rate=one("rate", 0.42)),
    "summary, interval by 0.01": table("summary", delta_low=by("delta_low", -0.01)),
    "summary, p by 0.001": table("summary", p_holm=by("p_holm", -0.001)),
    "lengths": table("lengths", high=by("high", 0.01)),
    "coherence": table("coherence", incoherent=FIRST_OTHERWISE),
    "coherence, likelihood by 0.01": table("coherence", log_likelihood=by("log_likelihood", -0.01)),
    "effects, by 0.01": table("effects", value=by("value", 0.01)),
    "effects, interval by 0.01": table("effects", low=by("low", -0.01)),
    "category, probability by 0.01": table("category", refusal_probability=by("refusal_probability", 0.01)),
    "category, p by 0.01": table("category_test", p=by("p", -0.01)),
    "judges, kappa by 0.01": table("judges", kappa=by("kappa", 0.01)),
    "judges, a count": table("judges_classes", refuse=by("refuse", 1)),
    "judges, a corrected rate": table("judges_rates", corrected=by("corrected", 0.01)),
    "judges, a disagreement": frame("judges_disagreements", lambda old: old[1:]),
    "report.html": page,
    "run.json": key("generations", False, max_new_tokens=7),
}  # fmt: skip


def artefact_of(forgery: str) -> str:
    """The artefact that a forgery is of."""
    return forgery.partition(",")[0]


def checks_of(forgery: str) -> list[str]:
    """The checks, as `verify --only` calls them, that a forgery is to be found by."""
    own = artefact_of(forgery).partition("/")[0]
    return [
        "run.json",
        "prompts",
        own,
        *(["gates"] if own == "probe" else []),
    ]  # gates: how a probe carries over is of all
