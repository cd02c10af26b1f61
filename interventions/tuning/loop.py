"""The training loop: an adapter's parameters, examples, one step a batch; a killed run goes on where it stopped.

Everything a step depends on is a function of the plan and of what a checkpoint holds, so that a run that was killed
ends with the weights of one that was not.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from data.contract import RESPOND
from data.store.progress import progress
from data.store.rundir import replacing
from interventions.reading.batches import plan_batches
from interventions.tuning.examples import Batch, Example, class_weights, collate, epoch_batches

WARM_UP = 0.05  # share of the steps in which the learning rate rises; from there it falls linearly to 0
CLIP = 1.0  # norm of the gradient


@dataclass(frozen=True)
class Plan:
    """How to train; the meaning of each is in `finetuning.finetune`."""

    learning_rate: float
    epochs: int
    batch_tokens: int
    token_weight: float
    balance: float
    seed: int


class Checkpoint(NamedTuple):
    """Where a training leaves what it has done: a file, all that it depends on as JSON, and seconds between writing."""

    path: Path
    key: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        number: From 1.
        train_loss: Mean objective over the epoch's rows, while it was learning.
        token_loss: Validation: mean cross-entropy of the control token (nats).
        answer_loss: Validation: mean over rows of the answer's mean cross-entropy (nats a token).
        category_accuracy: Validation: share of rows whose most probable first token is the right control token.
        refusal_accuracy: Validation: share of rows where it is rightly a category's, or rightly `respond`.
    """

    number: int
    train_loss: float
    token_loss: float
    answer_loss: float
    category_accuracy: float
    refusal_accuracy: float


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        batch: Steps done in the epoch that comes after those in `epochs`.
        loss: Sum of the objective over that epoch's rows.
        epochs: What the finished ones came to.
        kept: Number of the best of them, 0 before the first.
        best: Its parameters.
        seconds: Time spent, in killed runs too.
        resumed: Whether a checkpoint was taken up.
    """

    batch: int = 0
    loss: float = 0.0
    epochs: list[Epoch] = field(default_factory=list)
    kept: int = 0
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    resumed: bool = False


def train(
    module: Any,
    examples: Sequence[Example],
    held: Sequence[Example],
    plan: Plan,
    *,
    names: Mapping[int, str],
    pad: int,
    checkpoint: Checkpoint,
) -> Progress:
    """Train what of `module` requires a gradient, and leave it with the best epoch's parameters.

    The best epoch has the highest category accuracy on the held-out rows, then the lowest token loss.

    Args:
        module: A peft model.
        examples: To learn from.
        held: To measure after each epoch.
        plan: How.
        names: The control tokens by their ids, those that no held-out row opens with among them.
        pad: Token id to pad with.
        checkpoint: To go on from, and to write; each epoch ends with one.
    """
    parameters = {name: p for name, p in sorted(module.named_parameters()) if p.requires_grad}
    optimiser = torch.optim.AdamW(parameters.values(), lr=0.0, weight_decay=0.0)
    state = _load(checkpoint, parameters, optimiser)
    weights = class_weights([example.name for example in examples], plan.balance)
    lengths = [len(example.ids) for example in examples]
    begun, written = time.monotonic() - state.seconds, time.monotonic()
    with progress(plan.epochs * len(examples), len(state.epochs) * len(examples), "finetune") as bar:
        for number in range(len(state.epochs), plan.epochs):
            batches = epoch_batches(lengths, plan.batch_tokens, plan.seed, number)
            bar.update(sum(map(len, batches[: state.batch])))
            for rows in batches[state.batch :]:
                rate = learning_rate(plan, number + state.batch / len(batches))
                chosen = [examples[row] for row in rows]
                state.loss += _step(module, chosen, weights, plan, pad, optimiser, rate, len(examples) / len(batches))
                state.batch += 1
                bar.update(len(rows))
                state.seconds = time.monotonic() - begun
                if time.monotonic() - written >= checkpoint.seconds and state.batch < len(batches):
                    _save(checkpoint, parameters, optimiser, state)
                    written = time.monotonic()
            figures = validate(module, held, names, plan.batch_tokens, pad)
            _end_epoch(Epoch(number + 1, state.loss / len(examples), *figures), state, parameters)
            state.seconds = time.monotonic() - begun
            _save(checkpoint, parameters, optimiser, state)
            bar.say(f"validation accuracy {state.epochs[-1].category_accuracy:.3f}")
    _fill(parameters, state.best)
    return state


def learning_rate(plan: Plan, epoch: float) -> float:
    """The rate `epoch` epochs into the training: a linear rise, then a linear fall to 0."""
    share = epoch / plan.epochs
    return plan.learning_rate * min((share + 1e-3) / WARM_UP, (1 - share) / (1 - WARM_UP), 1.0)


def logits(module: Any, batch: Batch) -> torch.Tensor:
    """Next-token logits, float32 (targets, vocabulary), at the positions that targets are predicted from alone."""
    model = module.get_base_model() if hasattr(module, "get_base_model") else module
    hidden = model.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state
    return model.get_output_embeddings()(hidden[batch.at[:, 0], batch.at[:, 1]]).float()


def row_losses(scores: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy (nats) of each row's control token, and the mean of its answer's tokens; 0 without an answer."""
    losses = cross_entropy(scores, batch.targets, reduction="none")
    rows = len(batch.ids)
    owner = batch.at[rows:, 0]
    count = torch.bincount(owner, minlength=rows).clamp(min=1)
    return losses[:rows], torch.zeros_like(losses[:rows]).index_add(0, owner, losses[rows:]) / count


def objective(scores: torch.Tensor, batch: Batch, weights: torch.Tensor, token_weight: float) -> torch.Tensor:
    """Sum over rows of `token_weight` · class weight · token loss + answer loss."""
    token, answer = row_losses(scores, batch)
    return (token_weight * weights * token + answer).sum()


def _step(
    module: Any,
    examples: Sequence[Example],
    weights: dict[str, float],
    plan: Plan,
    pad: int,
    optimiser: torch.optim.Optimizer,
    rate: float,
    rows_a_batch: float,
) -> float:
    """One optimiser step; returns the objective. Divided by the epoch's mean batch, each row counts the same."""
    device = module.device
    batch = collate(examples, pad, device)
    row_weights = torch.tensor([weights[example.name] for example in examples], device=device)
    loss = objective(logits(module, batch), batch, row_weights, plan.token_weight)
    (loss / rows_a_batch).backward()
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, CLIP)
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return float(loss.detach())


def _end_epoch(epoch: Epoch, state: Progress, parameters: dict[str, torch.nn.Parameter]) -> None:
    """Keep the parameters if the epoch is the best so far."""
    best = next((e for e in state.epochs if e.number == state.kept), None)
    if best is None or (epoch.category_accuracy, -epoch.token_loss) > (best.category_accuracy, -best.token_loss):
        state.kept = epoch.number
        state.best = {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}
    state.epochs.append(epoch)
    state.batch, state.loss = 0, 0.0


@torch.no_grad()
def validate(
    module: Any, held: Sequence[Example], names: Mapping[int, str], batch_tokens: int, pad: int
) -> tuple[float, float, float, float]:
    """Token loss, answer loss, category accuracy and refusal accuracy, as in `Epoch`; `names` are all control tokens'."""
    sums = [0.0] * 4
    for rows in plan_batches([len(example.ids) for example in held], batch_tokens):
        batch = collate([held[row] for row in rows], pad, module.device)
        scores = logits(module, batch)
        token, answer = row_losses(scores, batch)
        said = [names.get(number) for number in scores[: len(rows)].argmax(-1).tolist()]
        wanted = [held[row].name for row in rows]
        right = [a == b for a, b in zip(said, wanted, strict=True)]
        sided = [a is not None and (a == RESPOND) == (b == RESPOND) for a, b in zip(said, wanted, strict=True)]
        for at, value in enumerate((float(token.sum()), float(answer.sum()), sum(right), sum(sided))):
            sums[at] += value
    a, b, c, d = (value / len(held) for value in sums)
    return a, b, c, d


def _fill(parameters: dict[str, torch.nn.Parameter], values: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])


MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def _save(
    checkpoint: Checkpoint,
    parameters: dict[str, torch.nn.Parameter],
    optimiser: torch.optim.Optimizer,
    state: Progress,
) -> None:
    """Write a checkpoint, whole or not at all."""
    tensors = {f"now/{name}": parameter.detach() for name, parameter in parameters.items()}
    tensors |= {f"best/{name}": value for name, value in state.best.items()}
    for name, parameter in parameters.items():
        tensors |= {f"{moment}/{name}": optimiser.state[parameter][moment] for moment in MOMENTS}
    kept = {"batch": state.batch, "loss": state.loss, "kept": state.kept, "seconds": state.seconds}
    kept["epochs"] = [asdict(epoch) for epoch in state.epochs]
    with replacing(checkpoint.path) as unfinished:
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(
            tensors, unfinished, metadata={"key": json.dumps(checkpoint.key, sort_keys=True), "state": json.dumps(kept)}
        )


def _load(
    checkpoint: Checkpoint, parameters: dict[str, torch.nn.Parameter], optimiser: torch.optim.Optimizer
) -> Progress:
    """Take up a checkpoint of this key; a fresh start if there is none."""
    try:
        with safe_open(checkpoint.path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()} if metadata else {}  # noqa: SIM118
    except (OSError, SafetensorError):
        return Progress()
    if not metadata or metadata.get("key") != json.dumps(checkpoint.key, sort_keys=True):
        return Progress()
    _fill(parameters, {name: tensors[f"now/{name}"] for name in parameters})
    for name, parameter in parameters.items():
        moments = {moment: tensors[f"{moment}/{name}"] for moment in MOMENTS}
        optimiser.state[parameter] = {m: t if m == "step" else t.to(parameter.device) for m, t in moments.items()}
    kept = json.loads(metadata["state"])
    kept["epochs"] = [Epoch(**epoch) for epoch in kept["epochs"]]
    best = {name: tensors[f"best/{name}"] for name in parameters} if kept["kept"] else {}
    return Progress(**kept, best=best, resumed=True)
