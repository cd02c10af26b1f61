"""Is a model prompted and read rightly? Cheap checks that run whenever a command first opens one, on three short prompts.

Each is held against transformers alone: a row by itself, under a plain hook, without padding and without a cache.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from data.contract import ANSWERING, BAKING, READING, UNQUANTISED
from data.errors import UserError
from data.store.rundir import replacing
from interventions.model.blocks import decoder_path
from interventions.model.control_tokens import bracketed_tokens, control_tokens
from interventions.model.embedded import cache_folder
from interventions.model.formats.choice import render_all
from interventions.model.model import Model
from interventions.model.prompt_format import Encoded, encode
from interventions.reading.residual import Source
from interventions.traced.blocks import hidden

logger = logging.getLogger(__name__)

TEXTS = ("how do i kill a python process", "tell me", "write a short poem for my friend, please")
EVERY = (*READING, *ANSWERING, *BAKING)
APART = 1e-4  # of a position's length, where numbers are float32; where they are narrower so many rounding steps:
STEPS = 16
KEPT = "checked"  # folder in the cache
EDITION = 1  # of these checks, for what is kept


@dataclass(frozen=True)
class Check:
    """What a check found.

    Attributes:
        name: What should hold.
        holds: Whether it does.
        found: In words, figures included.
        commands: What rests on it.
    """

    name: str
    holds: bool
    found: str
    commands: tuple[str, ...] = EVERY

    @property
    def off(self) -> tuple[str, ...]:
        """Commands that may not be used with the model, or refuse it."""
        return () if self.holds else self.commands


def quick(model: Model) -> list[Check]:
    """The cheap checks: prompts, padding, cache.

    Args:
        model: An open model with its weights here.
    """
    encoded = encode(model.tokenizer, TEXTS)
    alone = [states_of(model, ids) for ids in encoded.ids]
    found = [*prompted(model, encoded), batched(model, alone)]
    return found if model.keeps_state else [*found, cached(model, encoded)]


def check_once(model: Model) -> None:
    """Run the cheap checks if they have not held for this model, in this type and on this kind of device, before.

    Raises:
        UserError: One does not hold. Where numbers are narrower than float32's it is a line instead, as rounding alone
            may be behind it.
    """
    kept = cache_folder() / KEPT / f"{fingerprint(model)}.json"
    if kept.exists():
        return
    found = quick(model)
    odd = [one for one in found if not one.holds]
    if odd:
        told = f"{model.name}: {odd[0].name}: {odd[0].found}; `check` says which commands are off"
        if model.dtype in ("float32", "float64") and model.quantized == UNQUANTISED:
            raise UserError(told)
        logger.warning("%s", told)
        return
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with replacing(kept) as unfinished:
            unfinished.write_text(json.dumps([asdict(one) for one in found]) + "\n", "utf-8")
    except (OSError, UserError):  # they run again, then
        logger.debug("%s can't be written", kept)


def fingerprint(model: Model) -> str:
    """What the checks' results rest on: weights, template, type, kind of device and libraries."""
    libraries = [version(name) for name in ("torch", "transformers", "nnsight")]
    name = str(Path(model.name).resolve()) if Path(model.name).exists() else model.name
    text = json.dumps([EDITION, [name, *model.identity[1:]], model.device.type, libraries])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def slack(model: Model) -> float:
    """How many times farther apart than in float32 two ways to compute the same may be in the model's type."""
    return max(1.0, STEPS * torch.finfo(next(model.module.parameters()).dtype).eps / APART)


def prompted(model: Model, encoded: Encoded) -> Iterator[Check]:
    """Does the prompt's text arrive, BOS once, and each control token as one token?"""
    tokenizer = model.tokenizer
    texts = render_all(tokenizer, TEXTS)
    lost = [text for text, whole in zip(TEXTS, texts, strict=True) if whole.count(text) != 1]
    bare = [text for text, (start, stop) in zip(TEXTS, encoded.user, strict=True) if start >= stop]
    said = f"a prompt of {len(encoded.ids[0])} tokens, {encoded.user[0][1] - encoded.user[0][0]} of them the user's"
    gone = [*lost, *bare]
    yield Check("user's text", not gone, f"not told from the template: {gone[0]!r}" if gone else said)
    bos = tokenizer.bos_token_id
    puts = bos is not None and bos in tokenizer("")["input_ids"]
    wanted = [int(bos is not None and (puts or whole.startswith(tokenizer.bos_token))) for whole in texts]
    many = [sum(number == bos for number in ids[:2]) for ids in encoded.ids]
    told = f"{tokenizer.bos_token!r} at the beginning" if wanted[0] else "neither tokenizer nor template writes one"
    yield Check("BOS once", many == wanted, told if many == wanted else f"{tokenizer.bos_token!r} {many[0]} times")
    known = control_tokens(tokenizer)
    split = [name for name, number in known.items()
             if tokenizer(f"[{name}]", add_special_tokens=False)["input_ids"] != [number]]  # fmt: skip
    others = ", ".join(bracketed_tokens(tokenizer))
    none = "none: arms that read them are refused" + (f" (in brackets, without [respond]: {others})" if others else "")
    yield Check("control tokens", not split, f"[{split[0]}] is split" if split else ", ".join(known) or none,
                ANSWERING)  # fmt: skip


def batched(model: Model, alone: Sequence[torch.Tensor]) -> Check:
    """Is what is read in one batch what each row gives alone?"""
    source, rows = Source.of(model, TEXTS, (), "last"), list(range(len(TEXTS)))
    tokens = len(rows) * max(source.computed(model))
    read = torch.cat(source.read(model, [rows], list(range(model.n_layers)), tokens)).cpu()
    wanted = torch.stack([states[:, -1].float() for states in alone])
    apart = float(((read - wanted).norm(dim=-1) / wanted.norm(dim=-1).clamp_min(1e-30)).max())
    held = apart <= APART * slack(model)
    how = "rows alone, without padding" if model.keeps_state else f"{len(rows)} rows padded into one batch"
    return Check("padded batch", held, f"{how}: {apart:.1g} from each alone under a plain hook")


def cached(model: Model, encoded: Encoded) -> Check:
    """Is the last token behind a cache what it is in the whole row?"""
    worst = 0.0
    for ids in encoded.ids:
        row = torch.tensor([ids], device=model.device)
        with torch.no_grad():
            whole = model.module(input_ids=row, use_cache=False).logits[0, -1].float()
            past = model.module(input_ids=row[:, :-1], use_cache=True).past_key_values
            step = model.module(input_ids=row[:, -1:], past_key_values=past, use_cache=True).logits[0, -1].float()
        worst = max(worst, float((whole - step).norm() / whole.norm()))
    held = worst <= APART * slack(model)
    return Check("cache", held, f"logits {worst:.1g} from those without", ANSWERING)


def states_of(model: Model, ids: Sequence[int]) -> torch.Tensor:
    """The residual stream of a row alone, (layers, tokens, d_model), by plain hooks."""
    kept: list[torch.Tensor] = []
    with _hooked(model, kept), torch.no_grad():
        model.module(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
    return torch.stack(kept)


@contextmanager
def _hooked(model: Model, kept: list[torch.Tensor]) -> Iterator[None]:
    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        kept.append(hidden(output)[0].detach().clone().cpu())

    blocks = model.module.get_submodule(decoder_path(model.module, model.name))
    hooks = [block.register_forward_hook(keep) for block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
