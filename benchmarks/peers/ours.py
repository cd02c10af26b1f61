"""Worker: this tool, by its public functions, files written and all."""

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from rounds import serve
from safetensors.torch import load_file, save_file

from interventions import SteeringVectors, extract, open_model
from interventions.gates.gate import FittedGate
from interventions.model.control_tokens import refusal_tokens
from interventions.model.model import Model
from interventions.model.prompt_format import encode
from interventions.reading.batches import pad_batch, pad_id
from interventions.reading.packing import common_opening
from interventions.steering.answer import Asked, answer
from interventions.steering.arms import Arm, parse_arms
from interventions.steering.batches import answer_rows
from interventions.steering.generate import generate
from interventions.steering.plans import Tools, plan_arm

Run = Callable[[], Any]
NOBODY = {"category": None, "label": None}


@cache
def opened(folder: str) -> Model:
    return open_model(folder)


def rows(prompts: list[str]) -> pl.DataFrame:
    empty = dict.fromkeys(("category", "label", "split"), pl.lit(None, pl.String))
    named = pl.DataFrame({"id": [str(at) for at in range(len(prompts))], "prompt": prompts})
    return named.with_columns(pl.lit("bench").alias("dataset"), *(value.alias(name) for name, value in empty.items()))


def extracting(job: dict[str, Any], suffixes: list[str]) -> Run:
    model, prompts = opened(job["model"]), rows(job["prompts"])
    place: dict[str, Any] = {"position": "suffix", "suffixes": suffixes} if suffixes else {}

    def run() -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            path = extract(model, prompts, Path(folder), layers=[job["layer"]], **place)
            return load_file(path)["activations"][:, 0].numpy()

    return run


def plain(job: dict[str, Any]) -> Run:
    return extracting(job, [])


def pairs(job: dict[str, Any]) -> Run:
    return extracting(job, job["tags"])


def apart(job: dict[str, Any]) -> Run:
    """Six passes, one a tag."""
    runs = [extracting(job, [tag]) for tag in job["tags"]]
    return lambda: np.concatenate(np.stack([run() for run in runs], axis=1))


def tools(job: dict[str, Any]) -> Tools:
    """The job's vectors and probe; the vectors are of length one, so that strengths are what is added."""
    model, tensors = opened(job["model"]), load_file(job["tools"])
    names, layer = json.loads(Path(job["tools"]).with_suffix(".json").read_text()), job["layer"]
    known = {"model": model.name, "revision": model.revision, "site": "resid_post", "position": "last"}
    counts = json.dumps(dict.fromkeys(names, 1))
    metadata = known | {"layers": json.dumps([layer]), "counts": counts, "residual_norms": "[1.0]"}
    vectors = SteeringVectors({name: tensors["vectors"][at][None] for at, name in enumerate(names)}, metadata)
    parts = [tensors[name] for name in ("weight", "mean", "bias", "threshold")]
    return Tools(vectors, FittedGate(*parts, metadata=known | {"layer": str(layer)}))


def gated(job: dict[str, Any]) -> Run:
    model, prompts, drawn = opened(job["model"]), rows(job["prompts"]), tools(job)
    word = f"gated:strength={job['benign']},harmful={job['harmful']}"
    arms = parse_arms([word], Arm("gated", "gated", job["layer"], unit="raw"))

    def run() -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            table = generate(model, prompts, drawn, Path(folder) / "g.parquet", arms=arms, max_new_tokens=job["tokens"])
            return np.array(table["response"].to_list())

    return run


def making_tools(job: dict[str, Any]) -> Run:
    """Directions and a probe to steer with, which need only be the same for all: what each refusal token is read by, and
    the direction in which the prompts differ most."""
    model = opened(job["model"])
    path, names = Path(job["tools"]), refusal_tokens(model)
    rows = extracting(job, [])()
    mean, (_, _, axes) = rows.mean(0), np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    unembedding = model.module.get_output_embeddings().weight[names.ids].float()
    tensors = {
        "vectors": unembedding / unembedding.norm(dim=-1, keepdim=True),
        "weight": torch.from_numpy(axes[0].copy()),
        "mean": torch.from_numpy(mean),
        "bias": torch.zeros(1),
        "threshold": torch.full((1,), 0.5),
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    path.with_suffix(".json").write_text(json.dumps(names.names))
    return lambda: None


def answering(job: dict[str, Any], words: list[str]) -> Run:
    """First-token probabilities of refusal in every arm, (prompts, arms)."""
    model, drawn = opened(job["model"]), tools(job)
    encoded, many = encode(model.tokenizer, job["prompts"]), len(job["prompts"])
    arms = parse_arms(words, Arm("fixed", "fixed", job["layer"], unit="raw"))
    plans = [plan_arm(model, arm, drawn, [NOBODY] * many) for arm in arms]

    def run() -> np.ndarray:
        found = answer_rows(model, encoded, range(many), plans, (), 0)
        assert found.refusal is not None
        return found.refusal.numpy()

    return run


def baseline(job: dict[str, Any]) -> Run:
    return answering(job, ["baseline"])


def sweep(job: dict[str, Any]) -> Run:
    return answering(job, [f"fixed:strength={strength}" for strength in job["strengths"]])


def generating(job: dict[str, Any], strength: float) -> Run:
    """New tokens (prompts, tokens) of one batch that is steered in one arm; nobody stops before the last token."""
    model, ids = opened(job["model"]), encode(opened(job["model"]).tokenizer, job["prompts"]).ids
    arm = Arm("fixed", "fixed", job["layer"], strength=strength, unit="raw")
    plan = plan_arm(model, arm, tools(job), [NOBODY] * len(ids)).shipped

    def run() -> np.ndarray:
        opening = common_opening(ids)
        batch = pad_batch(ids, pad_id(model.tokenizer), opening=opening)
        return answer(model, batch, [plan], Asked(job["tokens"]), opening=opening).tokens[:, 0].numpy()

    return run


def steered(job: dict[str, Any]) -> Run:
    return generating(job, job["harmful"])


def unsteered(job: dict[str, Any]) -> Run:
    return generating(job, 0.0)


if __name__ == "__main__":
    named = (plain, pairs, apart, making_tools, gated, steered, unsteered, baseline, sweep)
    serve({task.__name__: task for task in named})
