"""A small network on the residual stream at several layers and positions, which tells the kinds of harm apart.

z = (x − mean)/spread; logits = outer · relu(weight · z + inner) + classes, one for benign prompts and one a category of harmful
ones; score = sigmoid(log Σ exp harmful logits − benign logit). One linear direction has to serve every kind of harm at once: prompts that
ask for what can't be known lie elsewhere than prompts that are dangerous. It takes thousands of rows to be better than ridge.

Trained on z's first 1,024 principal components, divided by √1024/8, with AdamW on the cross-entropy (smoothed by 0.05), harmful and benign rows counting the
same, 30 % of the components and of the hidden units dropped; the learning rate goes up and down once. Components and spread are folded into
the weight. The same machine and number of threads give the same network; others one that is as good.
"""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.nn import Linear, functional

from interventions.gates.features import Features, Kind, fitted, scaled
from interventions.gates.gate import FittedGate
from interventions.traced.gating import Network, Read

HIDDEN, BATCH, EPOCHS, LEAST_STEPS = 128, 128, 20, 600
COMPONENTS, FOUND_ON = 1024, 8000  # principal components, and rows at most that they are found on
DROPPED, SMOOTHED = 0.3, 0.05
RATE, DECAY, SCALE = 1e-3, 0.3, 8.0
LAST, MEAN = (8, 11, 14, 17, 20, 23, 26, 29), (4, 9, 14, 19)  # of 30 blocks
RARE = 20  # harmful rows that make a class of their own


def reads_of(n_layers: int) -> list[Read]:
    """What it reads of a model of so many blocks."""
    return scaled("last", LAST, n_layers) + scaled("mean", MEAN, n_layers)


def classes_of(harmful: np.ndarray, categories: Sequence[str | None]) -> tuple[np.ndarray, list[str]]:
    """(rows,) 0 for benign rows, else the row's category's number; and the names from 1 on. Rare ones share a class, named ''.

    Args:
        harmful: (rows,) bool.
        categories: (rows,) each row's, or nothing known of any.
    """
    names = np.array([category or "" for category in categories] or [""] * len(harmful))
    kept, counts = np.unique(names[harmful], return_counts=True)
    large = [str(name) for name, count in zip(kept, counts, strict=True) if name and count >= RARE]
    place = {name: at for at, name in enumerate(large, 1)}
    rest = len(large) + 1
    classes = np.where(harmful, [place.get(name, rest) for name in names.tolist()], 0)
    return classes, large + ([""] if (classes == rest).any() else [])


def fit(features: Features, rows: np.ndarray, harmful: np.ndarray, _themes: Sequence[str]) -> FittedGate:
    """On some rows."""
    reads = reads_of(features.n_layers)
    x = np.concatenate([features.residual(read, rows).astype(np.float32) for read in reads], axis=1)
    categories = [features.categories[int(row)] for row in rows] if features.categories else []
    classes, names = classes_of(harmful, categories)
    mean, spread = x.mean(0), x.std(0)
    scale = np.divide(1, spread, out=np.zeros_like(spread), where=spread > 0)
    x -= mean
    x *= scale
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        basis = components(z := torch.from_numpy(x))
        basis = basis * SCALE / np.sqrt(basis.shape[1])
        first, last = trained(z @ basis, torch.from_numpy(classes), len(names) + 1)
    whole = fitted(
        np.zeros(1), mean, 0.0, form="network", reads=json.dumps(reads), classes=json.dumps(names, ensure_ascii=False)
    )
    weight = first.weight.detach() @ basis.T * torch.from_numpy(scale)
    return replace(
        whole,
        weight=weight.contiguous(),
        network=Network(*(part.detach() for part in (first.bias, last.weight, last.bias))),
    )


def components(z: torch.Tensor) -> torch.Tensor:
    """(x, components) the directions in which rows (rows, x) differ most; all of them where rows or dimensions are no more than that."""
    some = z[torch.randperm(len(z))[:FOUND_ON]]
    return torch.svd_lowrank(some, q=COMPONENTS, niter=2)[2] if min(some.shape) > COMPONENTS else torch.eye(z.shape[1])


def trained(x: torch.Tensor, classes: torch.Tensor, n_classes: int) -> tuple[Linear, Linear]:
    """Both layers.

    Args:
        x: (rows, x) float32.
        classes: (rows,) int64; 0 is benign.
        n_classes: How many there are.
    """
    count, share = len(x), (classes > 0).float().mean()
    balance = torch.where(classes > 0, 0.5 / share, 0.5 / (1 - share))
    each = -(-count // BATCH)
    epochs = max(EPOCHS, -(-LEAST_STEPS // each))
    first, last = Linear(x.shape[1], HIDDEN), Linear(HIDDEN, n_classes)
    optimizer = torch.optim.AdamW([*first.parameters(), *last.parameters()], lr=RATE, weight_decay=DECAY)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, epochs * each)
    for _ in range(epochs):
        for some in torch.randperm(count).split(BATCH):
            hidden = first(functional.dropout(x[some], DROPPED)).relu()
            logits = last(functional.dropout(hidden, DROPPED))
            loss = functional.cross_entropy(logits, classes[some], reduction="none", label_smoothing=SMOOTHED)
            optimizer.zero_grad()
            (loss * balance[some]).mean().backward()
            optimizer.step()
            rate.step()
    return first, last


KIND = Kind(fit, lambda model: reads_of(model.n_layers))
