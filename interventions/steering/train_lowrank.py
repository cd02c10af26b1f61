"""Training a low-rank map: gradients through the model, where the model is, epoch by epoch on disk.

The published loss (arXiv 2603.13359), both terms at the first generated token: −log Σ p(refusal tokens) on harmful
prompts + KL(unsteered ‖ steered) on benign ones. It is trained at strength 1, so that a positive strength goes towards
refusal and a negative one away from it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from data import fingerprint, for_split
from data.contract import BATCH_TOKENS, LOWRANK_EPOCHS, LOWRANK_RATE
from data.errors import UserError
from data.store.journal import Journal
from data.store.progress import progress
from data.store.tables import LOWRANK_TRAINING
from data.store.tensors import load_tensors, save_tensors
from interventions.backends.backend import JOB_BYTES
from interventions.backends.ndif.result import expect
from interventions.methods.lowrank import LowRank
from interventions.methods.vectors import SteeringVectors
from interventions.model.control_tokens import refusal_tokens
from interventions.model.kinds import check_cache
from interventions.model.model import Model
from interventions.model.placing.quantised import check_unquantised
from interventions.model.prompt_format import encode
from interventions.reading.batches import pad_batch, pad_id, plan_batches
from interventions.traced.lowrank import Exercise, trained

STATE_FORMAT = "refusal-steering/lowrank-training/1"
TRAINED = {"fixed": ("U", "z"), "input": ("U", "V")}
ROWS_A_BATCH, BATCHES_A_JOB = 32, 16
MEASURES = ("harmful_loss", "benign_loss", "harmful_probability", "benign_probability")


@dataclass(frozen=True)
class LabelledBatches:
    """What a map is trained on, or measured on.

    Attributes:
        batches: Left-padded batches.
        harmful: For each batch (rows,) bool.
        targets: Ids of the refusal tokens.
    """

    batches: list[dict[str, torch.Tensor]]
    harmful: list[torch.Tensor]
    targets: torch.Tensor

    @property
    def counts(self) -> tuple[int, int]:
        """Harmful and benign rows."""
        harmful = sum(int(rows.sum()) for rows in self.harmful)
        return harmful, sum(map(len, self.harmful)) - harmful

    def part(self, numbers: Sequence[int]) -> list[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        """Some batches, with who is harmful."""
        return [(self.batches[number], self.harmful[number]) for number in numbers]


@dataclass(frozen=True)
class Stage:
    """A few batches of one epoch: what one job does."""

    epoch: int
    split: str
    numbers: tuple[int, ...]


def train_lowrank(
    model: Model,
    start: LowRank,
    vectors: SteeringVectors,
    prompts: pl.DataFrame,
    folder: Path,
    *,
    epochs: int = LOWRANK_EPOCHS,
    rate: float = LOWRANK_RATE,
    batch_tokens: int = BATCH_TOKENS,
    split: str = "train",
    held_out: str = "validation",
    seed: int = 0,
) -> tuple[LowRank, pl.DataFrame]:
    """Train with AdamW and keep the epoch with the lowest loss on held-out rows; a killed run goes on where it was.

    It has as many parameters as the command of this name has options: each is one of them, by its own name.

    Args:
        model: An open model with refusal tokens.
        start: The map to begin with, of `start_lowrank`.
        vectors: The vectors it started from: their coordinates are the scale that z is trained at.
        prompts: Labelled rows in the shape of `data.load_all`.
        folder: Keeps what a killed run has done.
        epochs: Passes through the rows.
        rate: Learning rate, as a share of each parameter's root mean square at the start (of z: of the vectors'
            coordinates), since residual streams of two models differ a hundredfold.
        batch_tokens: Padded tokens a batch, of at most 32 rows.
        split: Rows to train on.
        held_out: Rows to choose the epoch by; without any that aren't trained on, the last epoch is kept.
        seed: Of the order of batches.

    Returns:
        The map, and the loss and refusal probability of each epoch, split and label; training losses are those met
        on the way, epoch 0 is the start.

    Raises:
        UserError: No refusal tokens, no harmful or no benign row, quantised weights, or a map of another model.
    """
    check_unquantised(model, "lowrank")
    if model.backend.sandbox:
        raise UserError(
            "lowrank needs gradients, which NDIF gives to trusted keys alone: run it with --local, or ask NDIF to trust your key"
        )
    start.check(model)
    targets = refusal_tokens(model).ids
    if not targets:
        raise UserError(
            f"model {model.name!r} has no refusal tokens to train towards; use a model that was taught them"
        )
    labelled = prompts.filter(pl.col("label").is_not_null())
    rows = for_split(labelled, split)
    held = for_split(labelled, held_out).join(rows, on=["dataset", "id"], how="anti")
    passes = {
        "train": labelled_batches(model, rows, targets, batch_tokens),
        "held-out": labelled_batches(model, held, targets, batch_tokens),
    }
    if min(passes["train"].counts) == 0:
        raise UserError(f"split {split!r} needs harmful and benign rows to train a low-rank map on")
    stages = list(_stages(passes, epochs, seed))
    rates = {name: rate * _scale(start, vectors, name) for name in TRAINED[start.metadata["mode"]]}
    key = _key(
        model, start, [rows, held], {"epochs": epochs, "rates": rates, "batch_tokens": batch_tokens, "seed": seed}
    )
    state = _State.load(folder / ".lowrank.safetensors", key, start)
    with progress(len(stages), state.stage, "lowrank", model.backend.watch, unit="job") as bar:
        while state.stage < len(stages):
            stage = stages[state.stage]
            found = _run(model, state, passes[stage.split], stage, rates, folder)
            state = state.after(stage, found)
            state.save(folder / ".lowrank.safetensors", key)
            bar.update(1)
    best = state.best(epochs)
    history = state.history(best)
    trained = replace(
        start,
        **{name: state.tensors[f"{name}@{best}"] for name in rates},
        metadata=start.metadata | {"epochs": str(epochs), "kept_epoch": str(best), "rate": f"{rate:g}",
                                   "harmful": str(passes["train"].counts[0]), "benign": str(passes["train"].counts[1])},
    )  # fmt: skip
    (folder / ".lowrank.safetensors").unlink(missing_ok=True)
    return trained, history


def labelled_batches(model: Model, rows: pl.DataFrame, targets: Sequence[int], batch_tokens: int) -> LabelledBatches:
    """Batches of prompts of alike lengths, harmful and benign ones together as they come."""
    check_cache(model.module, model.name)
    encoded = encode(model.tokenizer, rows["prompt"].to_list())
    harmful = (rows["label"] == "harmful").to_list()
    plan = plan_batches([len(ids) for ids in encoded.ids], batch_tokens, ROWS_A_BATCH)
    return LabelledBatches(
        [pad_batch([encoded.ids[row] for row in batch], pad_id(model.tokenizer)) for batch in plan],
        [torch.tensor([harmful[row] for row in batch]) for batch in plan],
        torch.tensor(list(targets)),
    )


def steps(
    model: Model,
    layer: int,
    parameters: Mapping[str, torch.Tensor],
    batches: LabelledBatches,
    numbers: Sequence[int],
    *,
    rates: dict[str, float],
    learn: bool,
) -> dict[str, Any]:
    """One AdamW step for each of some batches, or with `learn` off their losses alone; one job.

    The loss of a batch is its share of the whole pass's, times the number of batches: over an epoch the gradients
    are those of mean(harmful rows) + mean(benign rows), whatever batch a row is in.

    Args:
        model: An open model.
        layer: The block to steer.
        parameters: `U`, `V`, `z`, `mean`, and of those that are trained AdamW's `NAME.step`, `NAME.exp_avg`,
            `NAME.exp_avg_sq`.
        batches: All batches.
        numbers: Which of them.
        rates: Learning rate of each trained parameter: `U` and `z` for mode `fixed`, `U` and `V` for `input`.
        learn: Whether to step.

    Returns:
        `tensors`, the parameters after it; `sums` of `MEASURES` over rows; and of the last batch's loss `gradients`.
    """
    work = Exercise(batches.part(numbers), batches.targets, batches.counts, rates, "fixed" if "z" in rates else "input",
                    len(batches.batches), learn)  # fmt: skip
    found = trained(model.nnsight, model.backend.nnsight(model.nnsight), model.layers[layer], parameters, work)
    for name in rates:
        expect(found["tensors"].get(name), parameters[name].shape, f"{name} of the low-rank map")
    return found


@dataclass(frozen=True)
class _State:
    """Where training is.

    Attributes:
        start: The map it began with.
        stage: The next stage's number.
        tensors: The trained parameters and AdamW's memory; `NAME@EPOCH`, what they were at an epoch's end.
        sums: `epoch split` -> rows of each label, then the sums of `MEASURES`.
    """

    start: LowRank
    stage: int
    tensors: dict[str, torch.Tensor]
    sums: dict[str, list[float]]

    @classmethod
    def load(cls, path: Path, key: str, start: LowRank) -> "_State":
        """What an earlier run left, or the start."""
        if path.exists():
            tensors, metadata = load_tensors(path, "training state", STATE_FORMAT)
            if metadata.get("key") == key:
                return cls(start, int(metadata["stage"]), tensors, json.loads(metadata["sums"]))
        own = {name: getattr(start, name) for name in TRAINED[start.metadata["mode"]]}
        return cls(start, 0, own | {f"{name}@0": value for name, value in own.items()}, {})

    def save(self, path: Path, key: str) -> None:
        """Write it whole."""
        noted = {"format": STATE_FORMAT, "key": key, "stage": str(self.stage), "sums": json.dumps(self.sums)}
        save_tensors(path, {name: value.clone() for name, value in self.tensors.items()}, noted)  # none may be shared

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        """What `steps` needs."""
        fixed = {name: getattr(self.start, name) for name in ("U", "V", "z", "mean")}
        return fixed | {name: value for name, value in self.tensors.items() if "@" not in name}

    def after(self, stage: Stage, found: dict[str, Any]) -> "_State":
        """The state once a stage is done."""
        tensors = self.tensors
        if stage.split == "train":
            tensors = tensors | found["tensors"]
            for name in TRAINED[self.start.metadata["mode"]]:
                tensors = tensors | {f"{name}@{stage.epoch}": found["tensors"][name]}
        name = f"{stage.epoch} {stage.split}"
        added = [*found["counts"], *found["sums"]]
        sums = [a + b for a, b in zip(self.sums.get(name, [0.0] * len(added)), added, strict=True)]
        return _State(self.start, self.stage + 1, tensors, self.sums | {name: sums})

    def best(self, epochs: int) -> int:
        """The epoch with the lowest loss on held-out rows; the last without any."""
        found: dict[int, float] = {}
        for epoch in range(epochs + 1):
            harmful, benign, *sums = self.sums.get(f"{epoch} held-out", (0, 0))
            if harmful and benign:
                found[epoch] = sums[0] / harmful + sums[1] / benign
        return min(found, key=lambda epoch: found[epoch], default=epochs)

    def history(self, best: int) -> pl.DataFrame:
        """Loss (harmful: −log p; benign: KL; nats) and refusal probability, one row an epoch, split and label."""
        rows = []
        for name, sums in self.sums.items():
            epoch, split = name.split()
            for at, label in enumerate(("harmful", "benign")):
                n = sums[at]
                means = (sums[2 + at] / n, sums[4 + at] / n) if n else (None, None)
                rows.append((int(epoch), split, label, int(n), *means, int(epoch) == best))
        return pl.DataFrame(rows, LOWRANK_TRAINING, orient="row")


def _stages(passes: dict[str, LabelledBatches], epochs: int, seed: int) -> Iterator[Stage]:
    """Every job in order: the held-out rows at the start, then for each epoch the batches, shuffled, and these again."""
    for epoch in range(epochs + 1):
        order = np.random.default_rng([seed, epoch]).permutation(len(passes["train"].batches)).tolist()
        turns = [("train", order)] if epoch else []
        turns.append(("held-out", list(range(len(passes["held-out"].batches)))))
        for split, numbers in turns:
            for at in range(0, len(numbers), BATCHES_A_JOB):
                yield Stage(epoch, split, tuple(numbers[at : at + BATCHES_A_JOB]))


def _run(
    model: Model, state: _State, batches: LabelledBatches, stage: Stage, rates: dict[str, float], folder: Path
) -> dict[str, Any]:
    """A stage through the backend; a far one's job is collected by whoever takes over."""
    journal = Journal(folder / ".lowrank.journal", {"state": _digest(state.tensors), "stage": state.stage}, [[0]])

    def work(_group: tuple[int, ...]) -> dict[str, Any]:
        learn = stage.split == "train"
        return steps(model, state.start.layer, state.parameters, batches, stage.numbers, rates=rates, learn=learn)

    ((_, found),) = model.backend.each(journal, work, JOB_BYTES)
    journal.remove()
    harmful = [batches.harmful[number] for number in stage.numbers]
    n = sum(int(rows.sum()) for rows in harmful)
    return dict(found) | {"counts": [n, sum(map(len, harmful)) - n]}


def _scale(start: LowRank, vectors: SteeringVectors, name: str) -> float:
    """Root mean square of what a parameter is like: its entries, or for z the vectors' coordinates Vᵀv."""
    values = getattr(start, name).double()
    if name == "z":
        stacked = torch.stack([vectors.at(start.layer, category) for category in vectors.categories], dim=1)
        values = start.V.double().T @ stacked.double()
    return float(values.pow(2).mean().sqrt())


def _key(model: Model, start: LowRank, rows: Sequence[pl.DataFrame], options: dict[str, Any]) -> str:
    """What training rests on."""
    noted = {
        "model": model.identity,
        "start": [_digest({name: getattr(start, name) for name in ("U", "V", "z", "mean")}), start.metadata],
        "rows": [fingerprint(part) for part in rows],
        **options,
    }
    return sha256(json.dumps(noted, sort_keys=True).encode()).hexdigest()


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
