"""Is a baked model the steered one? Both run on the same prompts; every block's output and the logits are compared."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from data.prompts import sample
from interventions.model.blocks import decoder_path
from interventions.model.model import Model
from interventions.model.prompt_format import encode
from interventions.traced.blocks import hidden

PROMPTS = 8
MOST = 1e-4  # of a position's length; where numbers are narrower than float32's, so many of their rounding steps:
STEPS = 8
FELT = 1e-2  # of what steering changes, since what is hardly felt must be right too

Change = Callable[[torch.Tensor], torch.Tensor]


class Run(NamedTuple):
    """What a model computes of one prompt: each block's output (layers, tokens, d_model) and logits (tokens, vocabulary)."""

    blocks: torch.Tensor
    logits: torch.Tensor


class Found(NamedTuple):
    """What a baked model computes, how far that is from the steered one, and whether that is near enough.

    Attributes:
        baked: Of each prompt.
        plain: The same of the model as it was.
        most: The largest distance, as a share of a position's length.
        near: Whether all are small, against that and against what steering changes.
    """

    baked: list[Run]
    plain: list[Run]
    most: float
    near: bool

    def share(self, layer: int, delta: torch.Tensor) -> float:
        """How much of `delta` arrives behind block `layer`, as the mean over positions; 1 for none."""
        moved = torch.cat(
            [(a.blocks[layer] - b.blocks[layer]).double() for a, b in zip(self.baked, self.plain, strict=True)]
        )
        wanted = delta.to(moved)
        return float((moved @ wanted).mean() / wanted.square().sum()) or 1.0

    def left(self, unit: torch.Tensor) -> float:
        """The largest share of a position's length that lies along a direction."""
        states = torch.cat([run.blocks.double().flatten(0, 1) for run in self.baked])
        return float(((states @ unit.to(states)).abs() / states.norm(dim=-1)).max())


@dataclass(frozen=True)
class Proof:
    """The prompts, and what the model computes of them without steering and with it."""

    model: Model
    rows: list[list[int]]
    plain: list[Run]
    steered: list[Run]

    @classmethod
    def of(cls, model: Model, paths: Sequence[str], change: Change) -> "Proof":
        """Of the eight shortest prompts of the embedded sample; steered is what `change` makes of modules' outputs."""
        texts = sorted(sample.read("embedded")["prompt"], key=len)[:PROMPTS]
        rows = encode(model.tokenizer, texts).ids
        plain = _runs(model, model.module, rows)
        with _changing([model.module.get_submodule(path) for path in paths], change):
            return cls(model, rows, plain, _runs(model, model.module, rows))

    def compare(self, baked: Any) -> Found:
        """Run a module of the model's family, and hold it against the steered model."""
        found = _runs(self.model, baked, self.rows)
        rounding = rounding_of(self.model)
        most, near = 0.0, True
        for got, wanted, before in zip(found, self.steered, self.plain, strict=True):
            for a, b, c in zip(got, wanted, before, strict=True):
                off, length = (a - b).norm(dim=-1), b.norm(dim=-1).clamp_min(1e-30)
                most = max(most, float((off / length).max()))
                felt = torch.maximum(FELT * (b - c).norm(dim=-1), rounding * length)
                near = near and bool((off <= felt).all())
        return Found(found, self.plain, most, near and most <= max(MOST, rounding))


def rounding_of(model: Model) -> float:
    """Some rounding steps of the type that a model computes in."""
    return torch.finfo(next(model.module.parameters()).dtype).eps * STEPS


def _runs(model: Model, module: Any, rows: Sequence[Sequence[int]]) -> list[Run]:
    """Each row alone."""
    kept: list[torch.Tensor] = []
    blocks = module.get_submodule(decoder_path(module, model.name))
    hooks = [block.register_forward_hook(lambda _m, _i, out: kept.append(hidden(out)[0].float())) for block in blocks]
    found = []
    try:
        for row in rows:
            kept.clear()
            with torch.no_grad():
                logits = module(input_ids=torch.tensor([row], device=model.device), use_cache=False).logits[0].float()
            found.append(Run(torch.stack([states.to(logits.device) for states in kept]), logits))
    finally:
        for hook in hooks:
            hook.remove()
    return found


@contextmanager
def _changing(modules: Sequence[Any], change: Change) -> Iterator[None]:
    """While it lasts, what these modules put out is what `change` makes of it."""

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        new = change(hidden(output))
        return (new, *output[1:]) if isinstance(output, tuple) else new

    hooks = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
