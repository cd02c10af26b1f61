"""Two engines against each other: what each says of the same prompts, and where they differ."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch

from data.errors import UserError
from data.store.tables import PARITY, PARITY_LAYERS
from data.store.tensors import load_tensors, save_tensors
from interventions.model.model import Model
from interventions.reading.budget import DECODED, Budget, default_batch_tokens
from interventions.reading.residual import Source
from interventions.steering.arms import Arm
from interventions.steering.batches import answer_rows, plan_answers, variants_of
from interventions.steering.effects import forced_variants
from interventions.steering.plans import Tools, plan_arm
from interventions.steering.texts import stop_tokens

FORMAT = "refusal-steering-parity"
AT_ONCE = 8  # prompts whose whole distributions are held at once
ENDED = -1  # in the place of tokens behind an answer's end
PAIR = ("engine", "against")  # columns that say which two
LAYERS, ARMS = ({name: kind for name, kind in schema.items() if name not in PAIR} for schema in (PARITY_LAYERS, PARITY))

Margin = Callable[
    [int, int, list[int], int, int], float
]  # row, arm, tokens before, and two tokens -> log p of one less that of the other


@dataclass(frozen=True)
class Measured:
    """What an engine says of N prompts in A arms.

    Attributes:
        engine: Its name, with the type of the weights and how many devices share a tensor.
        key: What the prompts, arms and their tools are told by: of another key, nothing is compared.
        arms: The arms' names.
        states: (N, layers, d_model) float32, the last prompt token's.
        first: (N, A + 1, vocabulary) float32 log probabilities of the first generated token, unsteered first.
        tokens: (N, A, steps) greedy answers, `ENDED` behind their ends.
    """

    engine: str
    key: str
    arms: list[str]
    states: torch.Tensor
    first: torch.Tensor
    tokens: torch.Tensor

    def save(self, path: Path) -> None:
        """Write safetensors."""
        tensors = {"states": self.states, "first": self.first, "tokens": self.tokens}
        told = {"format": FORMAT, "engine": self.engine, "key": self.key, "arms": json.dumps(self.arms)}
        save_tensors(path, {name: tensor.contiguous() for name, tensor in tensors.items()}, told)

    @classmethod
    def load(cls, path: Path) -> "Measured":
        """Read safetensors.

        Raises:
            UserError: The file is missing or damaged.
        """
        tensors, told = load_tensors(path, "what an engine said", FORMAT, ("engine", "key", "arms"))
        try:
            return cls(
                told["engine"],
                told["key"],
                json.loads(told["arms"]),
                tensors["states"],
                tensors["first"],
                tensors["tokens"].long(),  # read as float32, as all are
            )
        except (KeyError, ValueError):
            raise UserError(f"{path}: what an engine said is damaged: run parity --replace") from None


def engine_name(model: Model) -> str:
    """Such as `transformers-float32`, `vllm-bfloat16-tp2`."""
    engine = model.backend.engine
    if engine is None:
        return "-".join(["transformers", model.dtype, *model.held.values()])
    ranks = engine.record.get("tensor_parallel")
    return f"vllm-{model.dtype}" + (f"-tp{ranks}" if ranks and ranks > 1 else "") + ("-served" if ranks is None else "")


def measure(
    model: Model, prompts: pl.DataFrame, tools: Tools, arms: Sequence[Arm], max_new_tokens: int, key: str
) -> Measured:
    """Activations, first distributions and answers of prompts by whatever engine the model is open in.

    Args:
        model: An open model.
        prompts: N of them, with `prompt`, `category` and `label`.
        tools: What the arms draw on.
        arms: A of them.
        max_new_tokens: At most so many tokens an answer.
        key: As `Measured` has it.
    """
    tools.check(model)
    texts, own = prompts["prompt"].to_list(), prompts.select("category", "label").to_dicts()
    plans = [plan_arm(model, arm, tools, own) for arm in arms]
    gates = tools.shipped(model, plans, prompts.to_dicts())
    tokens = default_batch_tokens(model)
    rows = list(range(len(texts)))
    states = Source.of(model, texts, (), "last").read(model, [rows], range(model.n_layers), tokens)[0]
    size = model.module.config.get_text_config().vocab_size
    budget, steps = Budget(DECODED * tokens), max_new_tokens
    first = torch.zeros(len(rows), len(arms) + 1, size)
    answers = torch.full((len(rows), len(arms), steps), ENDED)
    place = {id(plan): at for at, plan in enumerate(plans)}
    for encoded, mine in variants_of(model, texts, plans, steps):
        at = [place[id(plan)] for plan in mine]
        for some in plan_answers(encoded, len(mine), steps, budget):
            found = answer_rows(model, encoded, some, mine, gates, steps, budget)
            answers[torch.tensor(some)[:, None], torch.tensor(at)] = ended(found.tokens, stop_tokens(model))
        for some in (rows[here : here + AT_ONCE] for here in range(0, len(rows), AT_ONCE)):
            top = answer_rows(model, encoded, some, mine, gates, 1, budget, top_k=size).top
            assert top is not None
            dense = torch.zeros(*top[0].shape[:2], size, dtype=torch.float64).scatter_(-1, top[0], top[1].double())
            logs = dense.clamp(min=torch.finfo(torch.float64).tiny).log().float()
            first[torch.tensor(some)[:, None], torch.tensor([at_arm + 1 for at_arm in at])] = logs[:, 1:]
            if not any(plan.arm.does.instructs for plan in mine):
                first[some, 0] = logs[:, 0]
    return Measured(engine_name(model), key, [arm.name for arm in arms], states, first, answers)


def ended(tokens: torch.Tensor, stops: set[int]) -> torch.Tensor:
    """Answers (…, steps) with `ENDED` behind their first stop token."""
    stopped = (
        torch.isin(tokens, torch.tensor(sorted(stops), dtype=tokens.dtype))
        if stops
        else torch.zeros_like(tokens, dtype=torch.bool)
    )
    behind = stopped.long().cumsum(-1) - stopped.long() > 0
    return torch.where(behind, ENDED, tokens)


def margins(model: Model, prompts: pl.DataFrame, tools: Tools, arms: Sequence[Arm]) -> Margin:
    """How much more probable transformers' model finds one token than another, in an arm, behind the tokens before: nats."""
    texts, own = prompts["prompt"].to_list(), prompts.select("category", "label").to_dicts()
    plans = [plan_arm(model, arm, tools, own) for arm in arms]
    gates = tools.shipped(model, plans, prompts.to_dicts())

    def margin(row: int, arm: int, before: list[int], one: int, other: int) -> float:
        variants = variants_of(model, texts, [plans[arm]])
        nll = [
            forced_variants(model, variants, [row], [[*before, token]], "nll", gates)[0, 0, len(before)]
            for token in (one, other)
        ]
        return float(nll[1] - nll[0])

    return margin


def compare(
    reference: Measured, other: Measured, tie: float, margin: Margin | None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Where two engines differ: `LAYERS`, the residual stream's deviation a layer, and `ARMS`, answers and first distributions an arm.

    A layer's deviation is the largest over prompts of ‖h′ − h‖ / ‖h‖. KL is that of the other's first distribution from the
    reference's, nats. Two answers that differ do so near a tie where the reference finds their first two different tokens less than
    `tie` nats apart; without a `margin` none is known to.

    Raises:
        UserError: They are of other prompts or arms.
    """
    if (reference.key, reference.arms, reference.states.shape) != (other.key, other.arms, other.states.shape):
        raise UserError(f"what {reference.engine} said is of other prompts, arms or vectors: run parity for it again")
    apart = (other.states.double() - reference.states).norm(dim=-1) / reference.states.double().norm(dim=-1)
    layers = [
        (layer, float(worst), float(mean))
        for layer, (worst, mean) in enumerate(zip(apart.amax(0), apart.mean(0), strict=True))
    ]
    kl = divergence(reference.first, other.first)
    told: list[tuple[str | int | float | None, ...]] = [("(unsteered)", len(apart), *[None] * 4, *summed(kl[:, 0]))]
    for arm, name in enumerate(reference.arms):
        own, theirs = reference.tokens[:, arm], other.tokens[:, arm]
        odd = (own != theirs).any(-1).nonzero()[:, 0].tolist()
        places = {row: int((own[row] != theirs[row]).nonzero()[0]) for row in odd}
        near = 0
        if margin is not None:
            for row, at in places.items():
                pair = int(own[row, at]), int(theirs[row, at])
                near += ENDED not in pair and abs(margin(row, arm, own[row, :at].tolist(), *pair)) < tie
        middle = float(torch.tensor(list(places.values())).double().median()) if places else None
        told.append((name, len(own), len(own) - len(odd), near, len(odd) - near, middle, *summed(kl[:, arm + 1])))
    return pl.DataFrame(layers, LAYERS, orient="row"), pl.DataFrame(told, ARMS, orient="row")


def summed(values: torch.Tensor) -> tuple[float, float]:
    """Mean and largest."""
    return float(values.mean()), float(values.max())


def divergence(reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(reference ‖ other) = Σ p (log p − log q) of log probabilities (N, A, vocabulary), a row at a time: (N, A), nats."""
    found = [(p.double().exp() * (p.double() - q.double())).sum(-1) for p, q in zip(reference, other, strict=True)]
    return torch.stack(found).clamp(min=0)


def verdict(layers: pl.DataFrame, arms: pl.DataFrame, tolerance: float) -> list[str]:
    """What lies beyond a tolerance, in words; nothing where all is within."""
    found: list[str] = []
    worst: Any = layers.sort("deviation").row(-1, named=True)
    if not worst["deviation"] <= tolerance:  # nor where it is no number
        found.append(
            f"the residual stream of layer {worst['layer']} deviates by {worst['deviation']:.2g}, more than {tolerance:g}"
        )
    found += [
        f"arm {row['arm']}: {row['differ']} of {row['prompts']} answers differ, and not near a tie"
        for row in arms.filter(pl.col("differ") > 0).to_dicts()
    ]
    return found
