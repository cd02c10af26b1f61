"""What is right, by other means than the code under test: plain PyTorch hooks on one row, transformers, numpy and scipy.

Nothing here imports the project. A `model` is whatever has a `module` (transformers' own) and a `tokenizer`; arms, vectors,
probes and maps are read for their numbers alone. Rows go one at a time, without padding, packing or a cache that is shared.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from scipy.special import log_softmax, rel_entr

TIE = 1e-3  # logits nearer to one another than this may change places between one order of summing and another
ESCAPES = 50  # of so many rows at most one may rest on a tie

# Models.


def blocks(model) -> Any:
    """The blocks whose outputs are the residual stream."""
    depth = model.module.config.get_text_config().num_hidden_layers
    return next(part for part in model.module.modules() if isinstance(part, torch.nn.ModuleList) and len(part) == depth)


def stream(output) -> torch.Tensor:
    """The residual stream in a block's output, whichever way the block hands it on."""
    return output[0] if isinstance(output, tuple) else output


def changing(change) -> Any:
    """A plain hook: a module's output is what `change` makes of it."""

    def hook(_module, _inputs, output):
        new = change(stream(output))
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return hook


@contextmanager
def changed(model, layer, change) -> Iterator[None]:
    """While it lasts, a block's output is what `change` makes of it."""
    handle = blocks(model)[layer].register_forward_hook(changing(change))
    try:
        yield
    finally:
        handle.remove()


def hooked(model, ids, layers) -> torch.Tensor:
    """The residual stream behind some blocks, (layers, tokens, d_model)."""
    kept = {}

    def keep(at):
        return lambda _module, _inputs, output: kept.update({at: stream(output)[0].clone()})

    handles = [blocks(model)[at].register_forward_hook(keep(at)) for at in layers]
    try:
        last_logits(model, ids)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack([kept[at] for at in layers])


def last_logits(model, ids) -> torch.Tensor:
    """Logits of the token that follows, float64."""
    with torch.no_grad():
        return model.module(input_ids=torch.tensor([ids])).logits[0, -1].double()


def control_ids(model) -> dict[str, int]:
    """Added tokens in brackets, name -> id, in the order of their ids: all of them, so for made-up models alone."""
    known = sorted(model.tokenizer.get_added_vocab().items(), key=lambda pair: pair[1])
    return {token[1:-1]: number for token, number in known if token.startswith("[") and token.endswith("]")}


def refusal_ids(model) -> list[int]:
    """Those of the tokens that name a category."""
    return [number for name, number in control_ids(model).items() if name != "respond"]


def stop_ids(model) -> set[int]:
    """Where transformers' own `generate` stops."""
    ends = model.module.generation_config.eos_token_id
    return set(ends if isinstance(ends, list) else [ends])


def cut(model, tokens) -> list[int]:
    """An answer without its stop token and what stands behind it."""
    end = next((at for at, token in enumerate(tokens) if token in stop_ids(model)), len(tokens))
    return tokens[:end]


def said(model, tokens) -> tuple[str | None, str]:
    """The control token that an answer opens with, if it does, and its text."""
    kept = cut(model, tokens)
    names = {number: name for name, number in control_ids(model).items()}
    text = model.tokenizer.decode(kept, skip_special_tokens=True)
    return (names.get(kept[0]) if kept else None), text


def reopened(folder):
    """The folder as transformers alone opens it; nothing may be missing or left over."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    opened: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    module, told = opened
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert AutoTokenizer.from_pretrained(folder).chat_template
    return module.eval()


# Steering.


def edited(hidden, delta=None, unit=None, low=None) -> torch.Tensor:
    """The edit, written down once more: on (positions, d_model)."""
    new = hidden.clone()
    if unit is not None:
        new = new - (hidden @ unit)[:, None] * unit
    if low is not None:
        new = new + ((hidden - low["mean"]) @ low["V"]) @ low["U"].T
    return new if delta is None else new + delta


def plain(model, ids, layer, scope, steps, **edit) -> tuple[list[int], torch.Tensor]:
    """The answer of transformers' own `generate` under a plain hook, and its first logits, float64."""
    calls = {"n": 0}

    def change(hidden):
        first = calls["n"] == 0
        calls["n"] += 1
        if first or scope in ("generated", "all"):
            at = slice(None) if scope in ("prompt", "all") else slice(-1, None)
            hidden[0, at] = edited(hidden[0, at], **edit)
        return hidden

    row = torch.tensor([ids])
    with changed(model, layer, change), torch.no_grad():
        out = model.module.generate(
            input_ids=row, attention_mask=torch.ones_like(row), max_new_tokens=steps, do_sample=False,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    return out.sequences[0, len(ids) :].tolist(), out.logits[0][0].double()


def forced(model, ids, given, layer, scope, bias=None, **edit) -> np.ndarray:
    """Log-probabilities (tokens, vocabulary) of what each given token is drawn from: one forward pass, a plain hook."""
    last = len(ids) - 1
    places = {
        "prompt-last": slice(last, last + 1), "prompt": slice(0, last + 1), "generated": slice(last, None), "all": slice(None),
    }[scope]  # fmt: skip

    def change(hidden):
        hidden[0, places] = edited(hidden[0, places], **edit)
        return hidden

    with changed(model, layer, change), torch.no_grad():
        logits = model.module(input_ids=torch.tensor([[*ids, *given[:-1]]])).logits[0, last:].double()
    if bias is not None:
        logits[0, bias[0]] += bias[1]
    return log_softmax(logits.numpy(), axis=-1)


def everywhere(model, ids, changes, scope, steps) -> tuple[list[int], torch.Tensor]:
    """`plain` with a change a layer: `changes` maps layers to functions of (positions, d_model); first logits too."""
    calls = dict.fromkeys(changes, 0)

    def changer(layer):
        def change(hidden):
            first, calls[layer] = calls[layer] == 0, calls[layer] + 1
            if first or scope in ("generated", "all"):
                at = slice(None) if scope in ("prompt", "all") else slice(-1, None)
                hidden[0, at] = changes[layer](hidden[0, at])
            return hidden

        return change

    row = torch.tensor([ids])
    with ExitStack() as stack, torch.no_grad():
        for layer in changes:
            stack.enter_context(changed(model, layer, changer(layer)))
        out = model.module.generate(
            input_ids=row, attention_mask=torch.ones_like(row), max_new_tokens=steps, do_sample=False,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    return out.sequences[0, len(ids) :].tolist(), out.logits[0][0].double()


def forced_everywhere(model, ids, given, changes, scope) -> np.ndarray:
    """`forced` with a change a layer."""
    last = len(ids) - 1
    parts = {
        "prompt-last": (slice(last, last + 1), slice(0, 0)), "prompt": (slice(0, last + 1), slice(0, 0)),
        "generated": (slice(last, last + 1), slice(last + 1, None)), "all": (slice(0, last + 1), slice(last + 1, None)),
    }[scope]  # fmt: skip

    def changer(layer):
        def change(hidden):
            prompt, later = parts
            hidden[0, prompt] = changes[layer](hidden[0, prompt])
            for at in range(hidden.shape[1])[later]:  # as if each had just been generated
                hidden[0, at : at + 1] = changes[layer](hidden[0, at : at + 1])
            return hidden

        return change

    with ExitStack() as stack, torch.no_grad():
        for layer in changes:
            stack.enter_context(changed(model, layer, changer(layer)))
        logits = model.module(input_ids=torch.tensor([[*ids, *given[:-1]]])).logits[0, last:].double()
    return log_softmax(logits.numpy(), axis=-1)


def forced_arm(model, arm, tools, ids, given) -> np.ndarray:
    """The arm's log-probabilities of a row, its route and gate spelled out; `ids` are the plain prompt's."""
    _, strength, edit = edit_of(model, arm, tools, ids)
    bias = None
    if arm.kind == "logit-bias":
        bias, edit = (refusal_ids(model), strength), {}
    return forced(model, ids, given, arm.layer, arm.scope, bias, **edit)


def divergence(p, q) -> np.ndarray:
    """KL(p ‖ q) of log-probabilities, nats."""
    return rel_entr(np.exp(p), np.exp(q)).sum(-1)


# Routes and gates.


def look(model, ids, probe) -> tuple[torch.Tensor, float]:
    """What a route may know of a prompt: its logits, and the probe's score."""
    state = hooked(model, ids, [probe.layer])[0, -1]
    return last_logits(model, ids), float(torch.sigmoid((state - probe.mean) @ probe.weight + probe.bias))


def expected(model, arm, vectors, logits, score) -> tuple[str | None, float, dict[str, Any]]:
    """Vector, strength and edit of one row, spelled out."""
    control = control_ids(model)
    names = [name for name in control if name != "respond"]
    best = max(names, key=lambda name: float(logits[control[name]]))
    strength = arm.strength
    if arm.route == "gated":
        strength = arm.harmful if score >= 0.5 else arm.strength
    name = arm.category if arm.route == "fixed" else best
    if arm.kind == "wrong-category":
        order = vectors.categories
        name = order[(order.index(best) + 1) % len(order)]
    if not arm.steers:
        return None, strength, {}
    vector = vectors.at(arm.layer, name)
    unit = vector / vector.norm()
    if arm.kind == "random":
        generator = torch.Generator().manual_seed(arm.seed)
        unit = torch.randn(len(vector), generator=generator, dtype=torch.float64)
        unit = (unit / unit.norm()).float()
    return name, strength, {"unit": unit} if arm.operation == "ablate" else {"delta": strength * unit}


def edit_of(model, arm, tools, ids) -> tuple[torch.Tensor, float, dict[str, Any]]:
    """Logits of the unsteered row, the arm's strength on it, and its edit as a plain hook takes it."""
    logits, score = look(model, ids, tools.probe)
    _, strength, edit = expected(model, arm, tools.vectors, logits, score)
    if arm.kind in ("baseline", "prompt-only"):
        return logits, strength, {}
    if arm.kind == "lowrank":
        return logits, strength, {"low": {name: getattr(tools.lowrank, name) for name in ("U", "V", "mean")}}
    if arm.operation == "clamp":
        return logits, strength, edit | {"unit": edit["delta"] / strength}
    return logits, strength, edit


# Near enough.


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether vectors are equal to float32's precision, each to its own length."""
    return bool(((a - b).norm(dim=-1) <= 1e-5 * b.norm(dim=-1)).all())


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """How far one tensor is from another, to the other's length."""
    return float((got - wanted).norm() / wanted.norm())


def are_best(rows: Sequence[tuple[Sequence[int], torch.Tensor]]) -> None:
    """Each row's tokens are those of its largest logits, in their order.

    A token may stand where another one belongs if their logits are a tie; rows that rest on that are counted, and more than
    one in fifty are too many. Few rows allow none.
    """
    assert rows, "nothing was compared"
    escaped = []
    for at, (tokens, logits) in enumerate(rows):
        wanted = logits.topk(len(tokens))
        if list(tokens) == wanted.indices.tolist():
            continue
        apart = (logits[list(tokens)] - wanted.values).abs().max()
        assert len(set(tokens)) == len(tokens) and apart < TIE, (at, list(tokens), wanted)
        escaped.append(at)
    assert len(escaped) * ESCAPES <= len(rows), f"rows {escaped} of {len(rows)} rest on ties"


def same_activations(one: Path, two: Path, name: str = "prompts") -> None:
    """To the bit; and the same metadata, but for where it ran."""
    found = []
    for folder in (one, two):
        with safe_open(folder / f"{name}.safetensors", "pt") as file:
            found.append(
                {key: value for key, value in (file.metadata() or {}).items() if key not in ("backend", "model")}
            )
    assert found[0] == found[1]
    a, b = (load_file(folder / f"{name}.safetensors")["activations"] for folder in (one, two))
    assert torch.equal(a, b)
    assert pl.read_parquet(one / f"{name}.parquet").equals(pl.read_parquet(two / f"{name}.parquet"))


def same_answers(one: pl.DataFrame, two: pl.DataFrame) -> None:
    assert one.drop("backend").equals(two.drop("backend"))


def same_tables(one: Path, two: Path, loose: float = 1e-4, but: Sequence[str] = ()) -> None:
    """Every table of two run directories, but for where they were made: words and whole numbers equal, others close."""
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*.parquet"))
    names = [name for name in names if name not in but]
    for name in names:
        here, there = (pl.read_parquet(folder / name).drop("backend", "seconds", strict=False) for folder in (one, two))
        assert here.columns == there.columns and here.height == there.height, name
        for column, kind in here.schema.items():
            flat = [values_in(table[column].to_list()) for table in (here, there)]
            if kind.is_float() or kind.is_nested():
                pairs = zip(*flat, strict=True)
                assert all(
                    a == b or (isinstance(a, float) and abs(a - b) <= loose * max(1, abs(a))) for a, b in pairs
                ), (name, column)
            else:
                assert here[column].equals(there[column]), (name, column)


def values_in(value: Any) -> list[Any]:
    """The plain values of nested lists and dictionaries, in order."""
    if isinstance(value, (list, dict)):
        return [part for one in (value.values() if isinstance(value, dict) else value) for part in values_in(one)]
    return [value]
