"""A run directory made of numbers and words from a generator: every table of the contract, no model."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors.numpy import save_file

from data.store.rundir import record
from data.store.tables import CATEGORY, CATEGORY_TEST, COMPARED, GATE_QUALITY, GENERATIONS, RUBRIC, SCORES, TRACES
from reports.scoring.assemble import assemble
from reports.scoring.scores import score
from reports.statistics import judges
from reports.statistics.lengths import by_length, score_at
from reports.statistics.summary import summarise

CATEGORIES = ("Humanizing requests", "Incomplete requests", "Indeterminate requests", "Requests with safety concerns",
              "Unsupported requests")  # fmt: skip
SETS = (("coconot", "harmful"), ("coconot:contrast", "benign"), ("xstest/unsafe", "harmful"), ("xstest/safe", "benign"),
        ("or-bench:hard-1k", "benign"))  # fmt: skip
LAYERS, WIDTH, MODEL = list(range(8)), 24, "example/refuse-llama-8b"
# Arm -> how far it moves refusal on benign and harmful prompts, in logits, and its share of broken answers.
ARMS = {
    "baseline": (0.0, 0.0, 0.01),
    "fixed:strength=-0.2": (-0.9, -0.3, 0.01),
    "fixed:strength=-0.4": (-2.0, -1.0, 0.06),
    "fixed:strength=0.2": (1.0, 0.9, 0.01),
    "routed:strength=0.2": (-0.7, 0.9, 0.01),
    "routed:strength=0.4": (-1.6, 2.0, 0.03),
    "random": (0.05, -0.05, 0.01),
    "prompt-only": (-0.3, 0.5, 0.0),
}
WORDS = ["the", "a", "kettle", "garden", "train", "write", "how", "please", "explain", "poem", "river", "quiet", "number", "clock", "winter", "bread", "letter", "never", "window", "small", "copper", "ladder", "answer", "story", "friend", "seven", "orange", "music", "forest", "market"]  # fmt: skip

Texts = Callable[[str, str], str]


def plain(_column: str, text: str) -> str:
    """Leave a text as it is."""
    return text


def synthetic_run(folder: Path, rows: int = 60, *, seed: int = 0, texts: Texts = plain, arms: Any = None) -> Path:
    """Write a run directory with every artefact of the contract.

    Args:
        folder: Where; made if it is not there.
        rows: Prompts; every arm answers each.
        seed: Of all of it.
        texts: Called with (column, text) for every free text, to put another in its place.
        arms: Arms to answer in, default all of `ARMS`; others move nothing.
    """
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    generations = _generations(random, rows, texts, list(arms or ARMS))
    scores = _scores(random, generations)
    tables = {
        "generations": generations,
        "scores": scores,
        "summary": summarise(scores, seed),
        "lengths": _lengths(generations, scores),
        **_judges(generations, scores),
        **_parity(),
        "rubric": _rubric(random, generations),
        "traces": _traces(random, texts),
        "sweep": _sweep(),
        "diff": _diff(random),
        "effects": _effects(random),
        "capability": _capability(),
        "logit_lens": _logit_lens(random, texts),
        "probe_roc": _probe_roc(random),
        "probe_layers": _probe_layers(),
        "probe_quality": _probe_quality(),
        "compared": _compared(texts),
        "category": _category(random, texts),
        "category_test": _category_test(),
        "gates/ridge_quality": _gate_quality(0.9, 0.1),
        "gates/words_quality": _gate_quality(0.7, 0.2),
    }
    (folder / "gates").mkdir(exist_ok=True)
    for name, table in tables.items():
        table.write_parquet(folder / f"{name}.parquet")
        _note(folder, name)
    _activations(random, folder, rows, texts)
    return folder


def sentence(random: np.random.Generator, longest: int = 14) -> str:
    """A few words."""
    return " ".join(random.choice(WORDS, random.integers(3, longest)))


def _generations(random: np.random.Generator, rows: int, texts: Texts, arms: list[str]) -> pl.DataFrame:
    prompts = []
    for at in range(rows):
        dataset, label = SETS[at % len(SETS)]
        category = CATEGORIES[at % 5] if label == "harmful" or at % 3 else None
        prompts.append((texts("dataset", dataset), f"{at}", category, label, sentence(random), random.normal(0, 1.2)))
    table = []
    for arm in arms:
        benign, harmful, broken = ARMS.get(arm, (0.0, 0.0, 0.01))
        kind = arm.partition(":")[0]
        strength = float(arm.partition("strength=")[2].partition(",")[0] or 0.2)
        for dataset, key, category, label, prompt, ease in prompts:
            logit = ease + (-1.4 + benign if label == "benign" else 1.8 + harmful)
            refused = random.random() < 1 / (1 + math.exp(-logit))
            response = f"I'm sorry, but I can't help with {prompt}." if refused else f"Here: {sentence(random, 60)}."
            if random.random() < broken:
                response = "la " * 40
            table.append(
                {
                    "dataset": dataset,
                    "id": texts("id", key),
                    "category": category and texts("category", category),
                    "label": label,
                    "prompt": texts("prompt", f"{prompt} {key}"),
                    "arm": texts("arm", arm),
                    "kind": kind,
                    **(
                        {
                            "layer": 4,
                            "strength": strength,
                            "strength_unit": "residual",
                            "scope": "generated",
                            "operation": "add",
                            "vector": "mean" if kind == "fixed" else category and texts("category", category),
                        }
                        if kind != "baseline"
                        else {}
                    ),
                    "gate": None,
                    "control_token": (category if refused else "respond") if category else None,
                    "refusal_token": category if refused else None,
                    "refusal_probability": 1 / (1 + math.exp(-logit)),
                    "response": texts("response", response),
                    "new_tokens": len(response) // 4,
                    "finish": "stop",
                    "model": texts("model", MODEL),
                    "backend": "local",
                    "seed": 0,
                }
            )
    return pl.DataFrame([row | _tokens(row["response"]) for row in table], schema=GENERATIONS)


def _tokens(response: str) -> dict[str, list[int]]:
    """A token every four characters."""
    ends = [*range(4, len(response), 4), len(response)]
    return {"token_ids": list(range(len(ends))), "token_ends": ends}


def _lengths(generations: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    whole = scores.filter(pl.col("scorer") != "judge")
    return by_length(score_at(generations, whole, set(), assemble(generations), (4, 16, 64)))


def _parity() -> dict[str, pl.DataFrame]:
    """Two engines that differ in one answer, near a tie."""
    pair = {"engine": "vllm-float32", "against": "transformers-float32"}
    arms = [("(unsteered)", 8, None, None, None, None, 1e-9, 3e-9), ("baseline", 8, 7, 1, 0, 5.0, 1e-9, 3e-9)]
    names = ["arm", "prompts", "equal", "near_ties", "differ", "first_difference", "kl_mean", "kl_max"]
    layers = pl.DataFrame({"layer": [0, 1], "deviation": [1e-7, 2e-6], "mean_deviation": [5e-8, 1e-6]})
    own = [pl.lit(value).alias(name) for name, value in pair.items()]
    return {
        "parity": pl.DataFrame(arms, names, orient="row").select(*own, pl.all()),
        "parity_layers": layers.select(*own, pl.all()),
    }


def _judges(generations: pl.DataFrame, scores: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Scorers held against the judge, as if it were a person."""
    keys = ["dataset", "id", "arm"]
    hand = scores.filter(pl.col("scorer") == "judge").select(*keys, hand=pl.col("verdict").fill_null("comply"))
    texts = generations.select(*keys, "prompt", "response").unique(keys)
    half = pl.when(pl.col("id").hash(seed=1) % 2 == 0).then(pl.lit("tune")).otherwise(pl.lit("held"))
    bench = scores.join(hand, on=keys).join(texts, on=keys).with_columns(half.alias("half"))
    found = judges.quality(bench)
    rates = judges.corrected(bench.drop_nulls("verdict"), found.filter(half="all"))
    return {
        "judges": found,
        "judges_classes": judges.classes(bench),
        "judges_disagreements": judges.disagreements(bench),
        "judges_rates": rates,
    }


def _rubric(random: np.random.Generator, generations: pl.DataFrame) -> pl.DataFrame:
    shares = pl.Series("score", random.beta(1, 4, generations.height))
    return generations.with_columns(shares, rubric=pl.lit("strongreject")).select(*RUBRIC)


def _scores(random: np.random.Generator, generations: pl.DataFrame) -> pl.DataFrame:
    """Phrases and tokens as the tool scores them, and a judge that differs now and then and sometimes fails."""
    fitted = {" ".join(text.casefold().split()) for text in generations["prompt"].unique().sort()[:3]}
    scores = score(generations, fitted)
    phrases = scores.filter(pl.col("scorer") == "phrases")
    verdicts: list[str | None] = []
    for verdict in phrases["verdict"]:
        draw = random.random()
        verdicts.append(None if draw < 0.03 else "partial" if draw < 0.1 else verdict)
    judged = phrases.with_columns(pl.lit("judge").alias("scorer"), pl.Series("verdict", verdicts, pl.String))
    judged = judged.with_columns((pl.col("verdict") == "refuse").alias("refused"))
    return pl.concat([scores, judged]).select([pl.col(name).cast(kind) for name, kind in SCORES.items()])


def _traces(random: np.random.Generator, texts: Texts) -> pl.DataFrame:
    rows = []
    for at in range(10):
        harmful = at % 2 == 0
        category = CATEGORIES[at % 5]
        shadows = [
            {"category": texts("category", name), "layer": layer,
             "value": layer * (2.0 if harmful and name == category else 0.3) + random.normal(0, 0.5)}
            for name in CATEGORIES for layer in LAYERS
        ]  # fmt: skip
        best = [
            {"token": texts("token", f" {word}"), "probability": 0.5 / (place + 1)}
            for place, word in enumerate(WORDS[:5])
        ]
        rows.append(
            {
                "dataset": "embedded",
                "id": str(at),
                "prompt": texts("prompt", sentence(random)),
                "prompt_category": texts("category", category) if harmful else None,
                "label": "harmful" if harmful else "benign",
                "category": "mean",
                "layer": 4,
                "strength": -0.3,
                "strength_unit": "residual",
                "scope": "generated",
                "kl": abs(random.normal(0.4, 0.3)),
                "top_unsteered": best,
                "top_steered": best[::-1],
                "text_unsteered": texts("response", sentence(random)),
                "text_steered": texts("response", sentence(random)),
                "projections": shadows,
            }
        )
    return pl.DataFrame(rows, schema=TRACES)


def _sweep() -> pl.DataFrame:
    rows = []
    for layer in LAYERS[2:7]:
        for strength in (-0.6, -0.4, -0.2, 0.2, 0.4):
            near = 1 / (1 + abs(layer - 4))
            for label, rest in (("benign", -1.2), ("harmful", 1.5)):
                rate = 1 / (1 + math.exp(-(rest + 4 * strength * near)))
                rows.append(
                    {
                        "layer": layer,
                        "strength": strength,
                        "strength_unit": "residual",
                        "arm": "fixed",
                        "label": label,
                        "n": 50,
                        "refusal_probability": rate,
                        "refused": round(50 * rate) / 50,
                        "broken": 0.3 if abs(strength) > 0.5 else 0.02,
                        "chosen": (layer, strength) == (4, -0.4),
                    }
                )
    schema = {"layer": pl.Int64, "strength": pl.Float64, "strength_unit": pl.String, "arm": pl.String, "label": pl.String,
              "n": pl.Int64, "refusal_probability": pl.Float64, "refused": pl.Float64, "broken": pl.Float64,
              "chosen": pl.Boolean}  # fmt: skip
    return pl.DataFrame(rows, schema=schema)


def _diff(random: np.random.Generator) -> pl.DataFrame:
    rows = []
    for at, category in enumerate(CATEGORIES):
        for layer in LAYERS:
            for text, lift in (("tagged", 0.1), ("untagged", 0.0)):
                cosine = 0.9 - 0.05 * layer + lift - 0.03 * at + random.normal(0, 0.01)
                rows.append((category, layer, text, cosine, cosine - 0.05, cosine + 0.04, 0.97, 0.1, 0.45, 80))
    schema = {"category": pl.String, "layer": pl.Int64, "text": pl.String, "cosine": pl.Float64, "low": pl.Float64,
              "high": pl.Float64, "ceiling": pl.Float64, "floor_low": pl.Float64, "floor_high": pl.Float64, "n": pl.Int64}  # fmt: skip
    return pl.DataFrame(rows, schema=schema, orient="row")


def _effects(random: np.random.Generator) -> pl.DataFrame:
    rows = [
        ("alpaca", arm, measure, value, value * 0.9, value * 1.1, 200)
        for arm in ("fixed:strength=-0.2", "fixed:strength=-0.4", "routed:strength=0.4")
        for measure, value in (
            ("kl", abs(random.normal(0.3, 0.1))),
            ("perplexity", 14 + random.normal()),
            ("broken", 0.03),
        )
    ]
    schema = {"dataset": pl.String, "arm": pl.String, "measure": pl.String, "value": pl.Float64, "low": pl.Float64,
              "high": pl.Float64, "n": pl.Int64}  # fmt: skip
    return pl.DataFrame(rows, schema=schema, orient="row")


def _capability() -> pl.DataFrame:
    rows = [
        (task, arm, "acc", value - fall, 0.02, 500, arm != "baseline")
        for task, value in (("arc_easy", 0.71), ("hellaswag", 0.55))
        for arm, fall in (("baseline", 0.0), ("fixed:strength=-0.4", 0.03))
    ]
    schema = {"task": pl.String, "arm": pl.String, "metric": pl.String, "value": pl.Float64, "stderr": pl.Float64,
              "n": pl.Int64, "scored_logits_changed": pl.Boolean}  # fmt: skip
    return pl.DataFrame(rows, schema=schema, orient="row")


def _logit_lens(random: np.random.Generator, texts: Texts) -> pl.DataFrame:
    rows = [
        (texts("category", category), layer, texts("token", f" {word}"), 4.0 - place + random.normal(0, 0.1))
        for category in CATEGORIES
        for layer in LAYERS
        for place, word in enumerate(random.permutation(WORDS)[:8])
    ]
    schema = {"category": pl.String, "layer": pl.Int64, "token": pl.String, "logit": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _probe_roc(random: np.random.Generator) -> pl.DataFrame:
    from sklearn.metrics import roc_curve

    rows = []
    for split, n in (("validation", 120), ("test", 120)):
        truth = np.arange(n) % 2
        fpr, tpr, threshold = roc_curve(truth, 1 / (1 + np.exp(-(random.normal(0, 1, n) + 2.2 * truth - 1.1))))
        rows += [(float(a), float(b), min(float(c), 1.0), split) for a, b, c in zip(fpr, tpr, threshold, strict=True)]
    schema = {"fpr": pl.Float64, "tpr": pl.Float64, "threshold": pl.Float64, "split": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _compared(texts: Texts) -> pl.DataFrame:
    """Two methods and a control under no gate, a gate, words and labels: three points each."""
    rows = []
    for method, gate in ((m, g) for m in ("mean", "contrastive", "random") for g in ("", "ridge", "words", "perfect")):
        for at, (benign, harmful) in enumerate(((0.4, 0.95), (0.2, 0.93), (0.05, 0.5))):
            best = at == 1 and gate in ("ridge", "words")
            row = {"method": texts("method", method), "kind": "routed", "gate": gate, "arm": f"gated:gate={gate}", "layer": 4, "strength": -0.3,
                   "control": method == "random" or gate in ("words", "perfect"), "strength_unit": "residual", "category": "mean",
                   "scope": "generated", "kl_budget": 0.5, "kl": 0.49, "why_not": "", "threshold": at / 2, "n_benign": 90, "n_harmful": 60,
                   "broken": 0.01, "kept": 0.98, "kept_low": 0.951, "promised": best, "chosen": best and (method, gate) == ("mean", "ridge")}  # fmt: skip
            for label, share in (("benign", benign - 0.05 * (method == "mean")), ("harmful", harmful)):
                row |= {label: share, f"{label}_low": share - 0.04, f"{label}_high": share + 0.04}
            rows.append(row)
    return pl.DataFrame(rows, COMPARED)


def _category(random: np.random.Generator, texts: Texts) -> pl.DataFrame:
    rows = []
    for side in ("towards", "away"):
        for vector in (*CATEGORIES, "mean", "random 1", "logit bias", "(unsteered)"):
            kl = None if vector == "(unsteered)" else 0.2 if vector == "random 1" else 0.5
            for name in (*CATEGORIES, "(all)"):
                mass = random.uniform(0.2, 0.8)
                rows.append((side, texts("category", vector), texts("category", name), kl and 0.3, "residual", kl, "at most 0.2 nats" if kl == 0.2 else "",
                             24, mass, mass - 0.1, mass + 0.1, mass, mass - 0.15, mass + 0.15))  # fmt: skip
    return pl.DataFrame(rows, CATEGORY, orient="row")


def _category_test() -> pl.DataFrame:
    rows = [
        (side, outcome, 120, 0.03, -0.01, 0.07, 0.12)
        for side in ("towards", "away")
        for outcome in ("refusal_probability", "refused")
    ]
    return pl.DataFrame(rows, CATEGORY_TEST, orient="row")


def _gate_quality(auc: float, kept: float) -> pl.DataFrame:
    row = {"rows": "other themes", "n_harmful": 60, "n_benign": 140, "auc": auc, "auc_declined": auc - 0.05, "refusal": 0.9,
           "over_refusal": 0.3, "over_refusal_kept": kept, "words_auc": 0.7, "words_over_refusal_kept": 0.2}  # fmt: skip
    return pl.DataFrame([row], GATE_QUALITY)


def _probe_layers() -> pl.DataFrame:
    rows = [(layer, 0.97 - 0.02 * abs(layer - 4), 0.8 - 0.05 * abs(layer - 4), layer == 4) for layer in LAYERS]
    schema = {"layer": pl.Int64, "auc": pl.Float64, "tpr_at_1_fpr": pl.Float64, "chosen": pl.Boolean}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _probe_quality() -> pl.DataFrame:
    from interventions.gates.quality import quality_table

    random = np.random.default_rng(3)
    tables = []
    for split in ("validation", "test"):
        harmful = np.arange(120) % 2 == 1
        scores = 1 / (1 + np.exp(-(random.normal(0, 1, 120) + 2.2 * harmful - 1.1)))
        tables.append(
            quality_table(split, harmful, ~harmful & (np.arange(120) % 4 == 0), scores.astype(np.float32), 0.42)
        )
    return pl.concat(tables)


def _activations(random: np.random.Generator, folder: Path, rows: int, texts: Texts) -> None:
    """Activations with a direction for each category, their vectors, a probe and a low-rank file."""
    rows = min(max(rows, 60), 300)
    label = ["benign" if at % 6 == 5 else "harmful" for at in range(rows)]
    category = [texts("category", CATEGORIES[at % 6]) if at % 6 < 5 else None for at in range(rows)]
    directions = random.normal(0, 1, (len(CATEGORIES) + 1, WIDTH))
    directions[-1] = 0
    values = random.normal(0, 1, (rows, len(LAYERS), WIDTH))
    values += directions[np.arange(rows) % 6][:, None, :] * np.arange(1, len(LAYERS) + 1)[None, :, None] * 0.5
    values = values.astype(np.float32)
    columns = {"id": [str(at) for at in range(rows)], "prompt": [texts("prompt", sentence(random)) for _ in range(rows)],
               "category": category, "label": label, "dataset": ["embedded"] * rows, "split": ["train"] * rows}  # fmt: skip
    table = pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))
    table = table.with_columns(pl.lit(9, pl.Int64).alias("n_tokens"), pl.lit(None, pl.String).alias("suffix"))
    (folder / "activations").mkdir(exist_ok=True)
    table.write_parquet(folder / "activations" / "prompts.parquet")
    shared = {
        "model": MODEL,
        "revision": "abc123",
        "layers": json.dumps(LAYERS),
        "site": "resid_post",
        "position": "last",
    }
    save_file({"activations": values}, folder / "activations" / "prompts.safetensors", {**shared, "backend": "local"})
    benign = values[np.arange(rows) % 6 == 5].mean(0)
    names = [texts("category", name) for name in CATEGORIES]
    vectors = {
        name: np.ascontiguousarray(values[np.arange(rows) % 6 == at].mean(0) - benign) for at, name in enumerate(names)
    }
    metadata = {
        **shared, "format": "refusal-steering/1", "method": "mean", "data": "embedded", "split": "train",
        "counts": json.dumps(dict.fromkeys(names, rows // 6)), "benign": str(rows // 6),
        "residual_norms": json.dumps([float(n) for n in np.linalg.norm(values, axis=-1).mean(0)]),
    }  # fmt: skip
    save_file(vectors, folder / "vectors.safetensors", metadata)
    probe = {"weight": directions[0].astype(np.float32), "mean": values.mean((0, 1)),
             "bias": np.zeros(1, np.float32), "threshold": np.full(1, 0.42, np.float32)}  # fmt: skip
    save_file(probe, folder / "probe.safetensors", {"layer": "4", "model": MODEL})
    basis = np.linalg.qr(directions[:5].T)[0].astype(np.float32)
    save_file(
        {"U": basis, "V": basis, "z": np.ones(5, np.float32), "mean": values.mean((0, 1))},
        folder / "lowrank.safetensors",
    )
    for name in ("activations/prompts", "vectors", "probe", "lowrank"):
        _note(folder, name)


def _note(folder: Path, name: str) -> None:
    command = f"python cli.py --model {MODEL} --data coconot extract vectors generate evaluate report"
    entry = {"command": command, "options": {"model": MODEL}, "data": ["coconot", "xstest"], "key": {}, "id": "0" * 16,
             "seed": 0, "start": "2026-01-01T00:00:00+00:00", "model": MODEL, "revision": "abc123", "template": "f" * 64,
             "tokenizer": "e" * 64, "dtype": "float32", "backend": "local"}  # fmt: skip
    record(folder, name, entry)
