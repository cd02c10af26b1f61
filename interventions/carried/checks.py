"""Does this tool read, steer and bake a model rightly? All that commands do with one, held against plain hooks.

The plain way is transformers' module alone: one row at a time, no padding, no cache, a hook on the steered block.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from data.contract import ANSWERING, BAKING, SCOPES, SITE
from data.errors import UserError
from interventions.carried.bake import ablated, added
from interventions.methods.lens import logit_lens
from interventions.methods.vectors import FORMAT, SteeringVectors
from interventions.model.blocks import decoder_path
from interventions.model.kinds import check_cache
from interventions.model.model import Model
from interventions.model.prompt_format import Encoded, encode
from interventions.reading.checks import EVERY, TEXTS, Check, quick, slack, states_of
from interventions.steering.answer import Answers
from interventions.steering.arms import Arm, baseline
from interventions.steering.batches import answer_rows
from interventions.steering.plans import Tools, plan_arm
from interventions.steering.texts import stop_tokens
from interventions.traced.blocks import hidden

CATEGORY = "check"
LENS = ("vectors",)  # which is made without it
STRENGTH = 0.5  # of the residual stream's mean length: it changes answers
NEW, TOP = 8, 5  # tokens an answer; most probable first tokens whose probabilities are compared
TIE = 1e-3  # logits nearer to one another may change places between one order of summing and another
SAME = 1e-3  # probabilities


def every_check(model: Model, wanted: Collection[str] = EVERY) -> list[Check]:
    """All checks of an open model that some commands rest on, the cheap ones first.

    Args:
        model: With its weights here.
        wanted: The commands.

    Raises:
        UserError: Its weights are elsewhere.
    """
    if not model.backend.has_module:
        raise UserError("check holds a model against plain hooks on its weights, which are elsewhere: run it with --local and "
                        "--engine transformers; parity holds engines against each other")  # fmt: skip
    shape = f"{model.n_layers} at {decoder_path(model.module, model.name)}, each putting out (rows, tokens, {model.d_model})"
    weights, held = (
        model.module.num_parameters(),
        "".join(f", of linear layers in {bits}" for bits in model.held.values()),
    )
    opened = [Check("weights", True, f"{weights:,} numbers in {model.dtype}{held}, every one out of the checkpoint"),
              Check("blocks", True, shape)]  # fmt: skip
    found, vectors = [*opened, *quick(model)], made_up(model)
    if set(ANSWERING) & set(wanted):
        found += answered(model, vectors)
    if LENS[0] in wanted:
        found += lens(model, vectors)
    found += baked(model, vectors, [command for command in BAKING if command in wanted])
    return [one for one in found if set(one.commands) & set(wanted)]


def made_up(model: Model) -> SteeringVectors:
    """A random direction a layer, and what the residual stream's lengths are."""
    states = torch.cat([states_of(model, ids)[:, -1:].float() for ids in encode(model.tokenizer, TEXTS).ids], dim=1)
    direction = torch.randn(model.n_layers, model.d_model, generator=torch.Generator().manual_seed(0))
    metadata = {
        "format": FORMAT, "model": model.name, "revision": "", "site": SITE, "position": "last", "method": "random",
        "layers": json.dumps(list(range(model.n_layers))), "counts": json.dumps({CATEGORY: 1}), "data": "",
        "residual_norms": json.dumps(states.norm(dim=-1).mean(1).tolist()),
    }  # fmt: skip
    return SteeringVectors({CATEGORY: direction}, metadata)


def answered(model: Model, vectors: SteeringVectors) -> Iterator[Check]:
    """Are answers, unsteered and in each scope, those of a plain hook on whole rows?"""
    try:
        check_cache(model.module, model.name)
    except UserError as refusal:
        yield Check("answers", False, f"refused: {refusal}", ANSWERING)
        return
    layer, rows, tools = model.default_layer(), list(range(len(TEXTS))), Tools(vectors)
    arms = [
        baseline(layer),
        *(Arm(scope, "fixed", layer, CATEGORY, STRENGTH, unit="residual", scope=scope) for scope in SCOPES),
    ]
    plans = [plan_arm(model, arm, tools, [{"category": None, "label": None}] * len(rows)) for arm in arms]
    encoded = encode(model.tokenizer, TEXTS, room=NEW)
    delta = vectors.delta(layer, CATEGORY, STRENGTH, "residual")
    found = answer_rows(model, encoded, rows, plans, [], NEW, top_k=TOP)
    for at, arm in enumerate(arms):
        name = "answers" if at == 0 else f"steered, {arm.scope}"
        yield _compared(model, name, encoded, found, at, layer, arm.scope, None if at == 0 else delta)


def _compared(model: Model, name: str, encoded: Encoded, found: Answers, arm: int, layer: int, scope: str,
              delta: torch.Tensor | None) -> Check:  # fmt: skip
    """An arm's first probabilities and tokens against those of a plain hook."""
    assert found.top is not None
    more, stops, worst, odd, compared = slack(model), stop_tokens(model), 0.0, 0, 0
    for row, ids in enumerate(encoded.ids):
        tokens = found.tokens[row, arm].tolist()
        end = next((at for at, token in enumerate(tokens) if token in stops), len(tokens) - 1) + 1
        logits = forced(model, ids, tokens[:end], layer, scope, delta)
        shares = logits[0].double().softmax(-1)
        ids_of, shares_of = (part[row, arm + 1].cpu() for part in found.top)
        worst = max(worst, float((shares[ids_of] - shares_of.double()).abs().max()))
        behind = logits.max(-1).values - logits[torch.arange(end), torch.tensor(tokens[:end])]
        odd, compared = odd + int((behind > TIE * more).sum()), compared + end
    held = not odd and worst <= SAME * more
    told = (
        f"{compared - odd} of {compared} tokens and first probabilities to {worst:.1g} those of a plain hook, no cache"
    )
    return Check(name, held, told, ANSWERING)


def forced(model: Model, ids: Sequence[int], given: Sequence[int], layer: int, scope: str,
           delta: torch.Tensor | None) -> torch.Tensor:  # fmt: skip
    """Logits (tokens, vocabulary) that each given token is drawn from: one pass over the whole row, a plain hook."""
    last = len(ids) - 1
    places = {"prompt-last": slice(last, last + 1), "prompt": slice(0, last + 1), "generated": slice(last, None), "all": slice(None)}[scope]  # fmt: skip
    row = torch.tensor([[*ids, *given[:-1]]], device=model.device)
    with _adding(model, layer, places, delta), torch.no_grad():
        return model.module(input_ids=row, use_cache=False).logits[0, last:].float().cpu()


@contextmanager
def _adding(model: Model, layer: int, places: slice, delta: torch.Tensor | None) -> Iterator[None]:
    def add(_module: Any, _inputs: Any, output: Any) -> Any:
        new = hidden(output).clone()
        if delta is not None:
            new[0, places] += delta.to(new)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    block = model.module.get_submodule(f"{decoder_path(model.module, model.name)}.{layer}")
    handle = block.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def lens(model: Model, vectors: SteeringVectors) -> Iterator[Check]:
    """Can vectors be read as tokens?"""
    try:
        many = logit_lens(model, vectors, top_k=1).height
    except UserError as refusal:
        yield Check("logit lens", False, f"refused: {refusal}", LENS)
    else:
        yield Check("logit lens", many == model.n_layers, f"a token for each of {many} layers", LENS)


def baked(model: Model, vectors: SteeringVectors, commands: Sequence[str]) -> Iterator[Check]:
    """Is a baked model the steered one? Nothing is written."""
    layer = model.default_layer()
    for command in commands:
        try:
            if command == BAKING[0]:
                found = added(model, layer, vectors.delta(layer, CATEGORY, STRENGTH, "residual"))
            else:
                found = ablated(model, vectors.at(layer, CATEGORY))
        except UserError as refusal:
            yield Check(command, False, f"refused: {refusal}", (command,))
        else:
            yield Check(command, True, f"{found.record['apart']:.1g} from steering on eight prompts", (command,))


def off(checks: Sequence[Check]) -> list[str]:
    """Commands that do not go with the model, in the order in which they are known."""
    told = {name for one in checks for name in one.off}
    return [name for name in EVERY if name in told]
