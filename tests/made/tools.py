"""What arms draw on, at random: vectors, a probe, a low-rank map; arms of every kind; and what gates are fitted to."""

import json
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from interventions.gates.features import Features
from interventions.gates.gate import FittedGate
from interventions.methods.edits.fitted import TENSORS, FittedMethod
from interventions.methods.lowrank import LowRank
from interventions.methods.vectors import SteeringVectors
from interventions.steering.arms import Arm, parse_arms
from interventions.steering.compared.candidates import Candidate, candidates
from interventions.steering.plans import Tools

OWN_KINDS = [
    "affine:strength=0.5", "affine:layers=1-2,strength=-1,unit=unit,category=weapons", "affine:route=routed,layers=all,scope=generated",
    "false-refusal", "false-refusal:layers=1-2,lambda=0.3,scope=generated", "alphasteer:strength=4", "alphasteer:strength=-4,scope=all",
    "alphasteer:layers=all,scope=generated", "angular", "angular:strength=0.5,angle=40,layers=1-3,scope=generated",
    "angular:strength=1,adaptive=yes,scope=prompt",
]  # fmt: skip
COMPARED_METHODS = ("mean", "contrastive", "ablate", "angular", "affine")
COMPARED_ARM = Arm("fixed", "fixed", 2)  # what compared arms leave open
NOTHING_KNOWN = {"category": None, "label": None}
EVERY_ROUTE = [
    "baseline", "fixed:category=weapons", "routed", "gated:benign=-6,harmful=4", "wrong-category:route=gated",
    "random:seed=3,route=gated", "ablate:route=routed", "logit-bias:strength=-4", "logit-bias:route=gated,strength=-3",
    "logit-bias:category=respond,strength=5",
]  # fmt: skip
EVERY_EDIT = [
    "fixed:category=weapons", "fixed:scope=prompt-last,layer=1", "fixed:scope=prompt", "fixed:scope=all,strength=3", "routed",
    "gated:benign=-6,harmful=4", "gated:scope=all,benign=2,harmful=-2", "ablate", "logit-bias:strength=-4", "prompt-only:text=tell me",
    "fixed:operation=clamp,strength=2", "lowrank",
]  # fmt: skip


def each(rule):
    """A rule for one text as what reads many at once."""
    return lambda texts: [rule(text) for text in texts]


def arms_of(words=EVERY_ROUTE) -> list[Arm]:
    """Arms of block 2, five units against the vector where they say nothing else."""
    return parse_arms(words, Arm("x", "fixed", 2, strength=-5.0, unit="unit"))


def vectors_of(model, seed=1, categories=("weapons", "feelings")) -> SteeringVectors:
    """A random vector a category and layer."""
    torch.manual_seed(seed)
    names = list(categories)
    tensors = {name: torch.randn(model.n_layers, model.d_model) for name in names}
    metadata = {
        "format": "refusal-steering/1", "model": model.name, "revision": "", "site": "resid_post", "position": "last",
        "layers": json.dumps(list(range(model.n_layers))), "counts": json.dumps(dict.fromkeys(names, 1)),
        "residual_norms": json.dumps([10.0] * model.n_layers), "method": "mean", "data": "x",
    }  # fmt: skip
    return SteeringVectors(tensors, metadata)


def probe_of(model, layer=2, seed=4) -> FittedGate:
    """A random direction that finds about half of all prompts harmful."""
    torch.manual_seed(seed)
    metadata = {"model": model.name, "layer": str(layer), "site": "resid_post", "position": "last"}
    parts = (torch.randn(model.d_model) / 30, torch.randn(model.d_model) / 5, torch.zeros(1), torch.tensor([0.5]))
    return FittedGate(*parts, metadata)


def methods_of(model) -> dict[str, FittedMethod]:
    """Tensors at random of every method that has its own."""
    random = torch.Generator().manual_seed(6)
    found = {}
    for method, names in TENSORS.items():
        tensors = {name: torch.randn(model.n_layers, model.d_model, generator=random) for name in names}
        if method == "angular":
            tensors = {"plane": torch.linalg.qr(torch.randn(model.d_model, 2, generator=random))[0].T.contiguous()}
        for name in {"towards", "away"} & tensors.keys():
            tensors[name] = tensors[name] / 30
        metadata = {"method": method, "model": model.name, "revision": "", "site": "resid_post", "position": "last",
                    "layers": json.dumps(list(range(model.n_layers)))}  # fmt: skip
        found[method] = FittedMethod(tensors, metadata)
    return found


def lowrank_of(model, layer=2) -> LowRank:
    """A random map of rank two."""
    random = torch.Generator().manual_seed(5)
    parts = {name: torch.randn(model.d_model, 2, generator=random) / 4 for name in ("U", "V")}
    parts["mean"] = torch.randn(model.d_model, generator=random)
    metadata = {"layer": str(layer), "mode": "input", "model": model.name, "site": "resid_post"}
    return LowRank(**parts, z=torch.zeros(2), metadata=metadata)


@dataclass(frozen=True)
class Columns(Features):
    """Features whose residual stream is the same numbers, (prompts, x), at every layer and position."""

    values: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

    def residual(self, read, rows):
        return self.values[rows]


def candidates_of(model) -> list[Candidate]:
    """Methods to compare, of which one has vectors of its own, and controls."""
    tools = Tools(vectors_of(model), probe_of(model), methods=methods_of(model))
    other = replace(tools, vectors=vectors_of(model, seed=9))
    by_method = {name: other if name == "contrastive" else tools for name in COMPARED_METHODS}
    return candidates(model, COMPARED_ARM, by_method, tools)
