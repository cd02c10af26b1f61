"""The tables of a run directory: every column and its type, in one place; and how a table is written."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from data.contract import VERDICTS
from data.store.digests import making

Values = dict[str, Any]  # of a row, by column
Schema = dict[str, pl.DataType | type[pl.DataType]]

# Prompts as they are read, and `sweep_prompts`: what a setting was chosen on.
PROMPTS: Schema = {name: pl.String for name in ("id", "prompt", "category", "label", "dataset", "split")}
TOKENS = pl.List(pl.Struct({"token": pl.String, "probability": pl.Float64}))
TRACES = {
    "dataset": pl.String, "id": pl.String, "prompt": pl.String, "prompt_category": pl.String, "label": pl.String,
    "category": pl.String, "layer": pl.Int64, "strength": pl.Float64, "strength_unit": pl.String, "scope": pl.String,
    "kl": pl.Float64, "top_unsteered": TOKENS, "top_steered": TOKENS,
    "text_unsteered": pl.String, "text_steered": pl.String,
    "projections": pl.List(pl.Struct({"category": pl.String, "layer": pl.Int64, "value": pl.Float64})),
    "arm": pl.String, "kind": pl.String, "gate": pl.Float64, "max_new_tokens": pl.Int64, "rendered": pl.String,
}  # fmt: skip
GENERATIONS = {
    "dataset": pl.String, "id": pl.String, "category": pl.String, "label": pl.String, "prompt": pl.String,
    "arm": pl.String, "kind": pl.String, "layer": pl.Int64, "strength": pl.Float64, "strength_unit": pl.String,
    "scope": pl.String, "operation": pl.String, "vector": pl.String, "gate": pl.Float64,
    "control_token": pl.String, "refusal_token": pl.String, "refusal_probability": pl.Float64,
    "response": pl.String, "new_tokens": pl.Int64, "finish": pl.String,
    "model": pl.String, "backend": pl.String, "seed": pl.Int64,
    "token_ids": pl.List(pl.Int64), "token_ends": pl.List(pl.Int64),
}  # fmt: skip
SCORES = {
    "dataset": pl.String, "id": pl.String, "arm": pl.String, "kind": pl.String, "category": pl.String,
    "label": pl.String, "scorer": pl.String, "verdict": pl.String, "refused": pl.Boolean, "fitted": pl.Boolean,
    "incoherent": pl.Boolean,
}  # fmt: skip
SUMMARY = {
    "dataset": pl.String, "label": pl.String, "arm": pl.String, "kind": pl.String, "scorer": pl.String,
    "n": pl.Int64, "n_failed": pl.Int64, "n_overlap": pl.Int64, "refused": pl.Int64, "rate": pl.Float64,
    "low": pl.Float64, "high": pl.Float64, "partial": pl.Int64, "broken": pl.Int64, "answered": pl.Int64,
    "n_paired": pl.Int64, "delta": pl.Float64, "delta_low": pl.Float64, "delta_high": pl.Float64,
    "p": pl.Float64, "p_holm": pl.Float64,
    # Bootstrap over clusters, where there are any; the sample size for a named difference; and what `low` and `high` are:
    # `wilson`, or `bootstrap` of prompts or of themes.
    "n_clusters": pl.Int64, "cluster_low": pl.Float64, "cluster_high": pl.Float64, "delta_cluster_low": pl.Float64,
    "delta_cluster_high": pl.Float64, "n_needed": pl.Int64, "interval": pl.String,
    # Answers that are no refusal, no broken text, and nothing that the model would write; prompts that an arm answers, coherently, and
    # the baseline refuses.
    "incoherent": pl.Int64, "incoherent_low": pl.Float64, "incoherent_high": pl.Float64, "cured": pl.Int64,
}  # fmt: skip
COHERENCE: Schema = {
    **{name: SCORES[name] for name in ("dataset", "id", "arm", "kind", "label")}, "tokens": pl.Int64, "log_likelihood": pl.Float64,
    "floor": pl.Float64, "incoherent": pl.Boolean,
}  # fmt: skip
LENGTHS: Schema = {
    "tokens": pl.Int64, **{name: SUMMARY[name] for name in ("dataset", "label", "arm", "kind", "scorer", "n")}, "n_cut": pl.Int64,
    **{name: SUMMARY[name] for name in ("refused", "rate", "low", "high", "partial", "broken", "answered")},
    "step": pl.Float64, "step_low": pl.Float64, "step_high": pl.Float64,
}  # fmt: skip
SWEEP = {
    "layer": pl.Int64, "strength": pl.Float64, "strength_unit": pl.String, "arm": pl.String, "label": pl.String,
    "n": pl.Int64, "refusal_probability": pl.Float64, "refused": pl.Float64, "broken": pl.Float64, "chosen": pl.Boolean,
    "kind": pl.String, "category": pl.String, "scope": pl.String, "harmful": pl.Float64,
}  # fmt: skip
COMPARED = {
    "method": pl.String, "kind": pl.String, "gate": pl.String, "arm": pl.String, "control": pl.Boolean, "layer": pl.Int64,
    "strength": pl.Float64, "strength_unit": pl.String, "category": pl.String, "scope": pl.String,
    "kl_budget": pl.Float64, "kl": pl.Float64, "why_not": pl.String, "threshold": pl.Float64,
    "harmful_threshold": pl.Float64, "n_benign": pl.Int64, "benign": pl.Float64, "benign_low": pl.Float64, "benign_high": pl.Float64,
    "n_harmful": pl.Int64, "harmful": pl.Float64, "harmful_low": pl.Float64, "harmful_high": pl.Float64,
    "broken": pl.Float64, "kept": pl.Float64, "kept_low": pl.Float64, "promised": pl.Boolean, "chosen": pl.Boolean,
}  # fmt: skip
DIFF = {
    "category": pl.String, "layer": pl.Int64, "text": pl.String, "cosine": pl.Float64, "low": pl.Float64,
    "high": pl.Float64, "ceiling": pl.Float64, "floor_low": pl.Float64, "floor_high": pl.Float64, "n": pl.Int64,
    "halves": pl.Float64,
}  # fmt: skip
EFFECTS = {
    "dataset": pl.String, "arm": pl.String, "measure": pl.String, "value": pl.Float64, "low": pl.Float64,
    "high": pl.Float64, "n": pl.Int64,
}  # fmt: skip
CAPABILITY = {
    "task": pl.String, "arm": pl.String, "metric": pl.String, "value": pl.Float64, "stderr": pl.Float64, "n": pl.Int64,
    "scored_logits_changed": pl.Boolean,
}  # fmt: skip
LOGIT_LENS = {"category": pl.String, "layer": pl.Int64, "token": pl.String, "logit": pl.Float64}
GATE_QUALITY = {
    "rows": pl.String, "n_harmful": pl.Int64, "n_benign": pl.Int64, "auc": pl.Float64, "auc_declined": pl.Float64,
    "harmful_passed": pl.Float64, "benign_passed": pl.Float64, "refusal": pl.Float64, "over_refusal": pl.Float64,
    "over_refusal_kept": pl.Float64, "words_auc": pl.Float64, "words_over_refusal_kept": pl.Float64,
}  # fmt: skip
CATEGORY = {
    "side": pl.String, "vector": pl.String, "rows": pl.String, "strength": pl.Float64, "unit": pl.String, "kl": pl.Float64,
    "why_not": pl.String, "n": pl.Int64, "refusal_probability": pl.Float64, "probability_low": pl.Float64,
    "probability_high": pl.Float64, "refused": pl.Float64, "low": pl.Float64, "high": pl.Float64,
}  # fmt: skip
CATEGORY_TEST = {
    "side": pl.String, "outcome": pl.String, "n": pl.Int64, "difference": pl.Float64, "low": pl.Float64, "high": pl.Float64,
    "p": pl.Float64,
}  # fmt: skip
PROBE_ROC = {"split": pl.String, "fpr": pl.Float64, "tpr": pl.Float64, "threshold": pl.Float64}
PROBE_LAYERS = {"layer": pl.Int64, "auc": pl.Float64, "tpr_at_1_fpr": pl.Float64, "chosen": pl.Boolean}
PROBE_QUALITY = {
    "split": pl.String, "against": pl.String, "n_harmful": pl.Int64, "n_benign": pl.Int64, "auc": pl.Float64,
    "tpr_at_1_fpr": pl.Float64, "tpr": pl.Float64, "tpr_low": pl.Float64, "tpr_high": pl.Float64, "fpr": pl.Float64,
    "fpr_low": pl.Float64, "fpr_high": pl.Float64,
}  # fmt: skip
LOWRANK_TRAINING = {
    "epoch": pl.Int64, "split": pl.String, "label": pl.String, "n": pl.Int64, "loss": pl.Float64,
    "refusal_probability": pl.Float64, "kept": pl.Boolean,
}  # fmt: skip
RUBRIC: Schema = {
    "dataset": pl.String, "id": pl.String, "arm": pl.String, "kind": pl.String, "label": pl.String, "rubric": pl.String,
    "score": pl.Float64,
}  # fmt: skip
# A scorer held against labels by hand. `half`: `tune`, `held`, or `all` rows.
JUDGES: Schema = {
    "scorer": pl.String, "half": pl.String, "n": pl.Int64, "n_failed": pl.Int64, "wrong": pl.Int64, "error": pl.Float64,
    "low": pl.Float64, "high": pl.Float64, "kappa": pl.Float64, "kappa_low": pl.Float64, "kappa_high": pl.Float64,
    "n_refused": pl.Int64, "sensitivity": pl.Float64, "sensitivity_low": pl.Float64, "sensitivity_high": pl.Float64,
    "n_other": pl.Int64, "specificity": pl.Float64, "specificity_low": pl.Float64, "specificity_high": pl.Float64,
}  # fmt: skip
JUDGES_CLASSES: Schema = {
    "scorer": pl.String, "half": pl.String, "hand": pl.String, "n": pl.Int64, **{verdict: pl.Int64 for verdict in VERDICTS},
    "none": pl.Int64, "error": pl.Float64, "low": pl.Float64, "high": pl.Float64,
}  # fmt: skip
JUDGES_DISAGREEMENTS: Schema = {
    "scorer": pl.String, "half": pl.String, "dataset": pl.String, "id": pl.String, "arm": pl.String, "prompt": pl.String,
    "response": pl.String, "hand": pl.String, "verdict": pl.String,
}  # fmt: skip
JUDGES_RATES: Schema = {
    "scorer": pl.String, "label": pl.String, "arm": pl.String, "n": pl.Int64, "rate": pl.Float64, "low": pl.Float64,
    "high": pl.Float64, "corrected": pl.Float64, "corrected_low": pl.Float64, "corrected_high": pl.Float64, "hand": pl.Float64,
}  # fmt: skip
PAPER_ARM = {name: SUMMARY[name] for name in ("n", "rate", "low", "high", "broken", "delta", "delta_low", "delta_high")}

PARITY = {
    "engine": pl.String, "against": pl.String, "arm": pl.String, "prompts": pl.Int64, "equal": pl.Int64, "near_ties": pl.Int64,
    "differ": pl.Int64, "first_difference": pl.Float64, "kl_mean": pl.Float64, "kl_max": pl.Float64,
}  # fmt: skip
PARITY_LAYERS = {
    "engine": pl.String, "against": pl.String, "layer": pl.Int64, "deviation": pl.Float64, "mean_deviation": pl.Float64,
}  # fmt: skip
TABLES: dict[str, Schema] = {
    "traces": TRACES, "generations": GENERATIONS, "scores": SCORES, "summary": SUMMARY, "sweep": SWEEP, "compared": COMPARED, "diff": DIFF,
    "effects": EFFECTS, "capability": CAPABILITY, "logit_lens": LOGIT_LENS, "probe_roc": PROBE_ROC,
    "probe_layers": PROBE_LAYERS, "probe_quality": PROBE_QUALITY, "lowrank_training": LOWRANK_TRAINING,
    "sweep_prompts": PROMPTS, "lengths": LENGTHS, "coherence": COHERENCE, "category": CATEGORY, "category_test": CATEGORY_TEST, "rubric": RUBRIC, "parity": PARITY, "parity_layers": PARITY_LAYERS, "judges": JUDGES,
    "judges_classes": JUDGES_CLASSES, "judges_disagreements": JUDGES_DISAGREEMENTS, "judges_rates": JUDGES_RATES,
}  # fmt: skip
# Columns beyond the contract, which the file of another version may lack.
BEYOND = {
    "generations": ("token_ids", "token_ends"),
    "traces": ("prompt_category", "label", "arm", "kind", "gate", "max_new_tokens", "rendered"),
    "summary": ("n_clusters", "cluster_low", "cluster_high", "delta_cluster_low", "delta_cluster_high", "n_needed",
                "interval", "incoherent", "incoherent_low", "incoherent_high", "cured"),
    "scores": ("incoherent",),
    "sweep": ("kind", "category", "scope", "harmful"),
    "diff": ("halves",),
    "compared": ("harmful_threshold",),
}  # fmt: skip


def required(name: str) -> Schema:
    """The columns that the contract asks of a table, each with its type."""
    return {column: kind for column, kind in TABLES[name].items() if column not in BEYOND.get(name, ())}


def paper(published: Iterable[str], arms: Iterable[str]) -> Schema:
    """The columns of `paper`: a rate for each of the papers' arms, and for each arm of the run those of `PAPER_ARM`."""
    theirs = {f"published {arm}": pl.Float64 for arm in published}
    ours = {f"{arm} {name}": kind for arm in arms for name, kind in PAPER_ARM.items()}
    return {"dataset": pl.String, "label": pl.String, "n_published": pl.Int64, **theirs, **ours, "missing": pl.String}


ANSWERED = pl.col("n_benign") + pl.col("n_harmful")


def answered_most(compared: pl.DataFrame) -> pl.DataFrame:
    """The rows of `compared` whose settings answered every prompt: as many as any did, since some are left after a first round."""
    return compared.filter(ANSWERED.max() == ANSWERED)


def answered_some(compared: pl.DataFrame) -> tuple[pl.DataFrame, int, int]:
    """The rows of those that are left there; how many settings they are, each a method at a budget, and of how many."""
    left = compared.filter(ANSWERED.max() > ANSWERED)
    gone, every = (frame.select("method", "kl_budget").n_unique() for frame in (left, compared))
    return left, gone, every


def write_table(path: Path, frame: pl.DataFrame) -> None:
    """Write a table as parquet; the file appears whole."""
    with making(path) as unfinished:
        frame.write_parquet(unfinished)


def read_parquet(path: Path, columns: list[str] | None = None) -> pl.DataFrame:
    """Read one parquet file: the one of this very name, whatever `*`, `?`, `[` and `=` stand in it or its folders."""
    return pl.read_parquet(path.absolute(), columns=columns, glob=False, hive_partitioning=False)


def parquet_rows(path: Path) -> int:
    """How many rows a parquet file has, without reading them."""
    return pl.scan_parquet(path.absolute(), glob=False, hive_partitioning=False).select(pl.len()).collect().item()
