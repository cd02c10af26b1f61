"""Edits of the residual stream: where they apply, and how one is written into a running model."""

import warnings
from collections.abc import Sequence

import nnsight
import torch

from interventions.models import Model

SCOPES = {
    "prompt-last": "the last prompt token only",
    "prompt": "every prompt token",
    "generated": "every position that a token is generated from: the last prompt token and each generated one "
    "(the papers' scope)",
    "all": "every prompt token and each generated one",
}


def next_token_logits(
    model: Model,
    batch: dict[str, torch.Tensor],
    layer: int,
    delta: torch.Tensor | None,
    scope: str,
    read_layers: Sequence[int] = (),
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One forward pass, steered or not.

    Args:
        model: An open model.
        batch: Left-padded batch of `encoding.pad_batch`.
        layer: The block whose output is edited.
        delta: (rows, d_model), added to row by row; None steers nothing.
        scope: A key of `SCOPES`.
        read_layers: Ascending blocks to read the last position of, with the edit in place.

    Returns:
        Next-token logits, float32 (rows, vocabulary), and the residual stream (rows, layers, d_model) or None.
    """
    wanted = sorted({*read_layers, layer})
    blocks = {number: model.layers[number] for number in wanted}
    everywhere = scope in ("prompt", "all")
    keep = set(read_layers)
    network = model.nnsight
    with torch.no_grad(), network.trace(batch, backend=model.door.backend(network), logits_to_keep=1):
        states = []
        for number, block in blocks.items():
            output = block.output
            hidden = output[0] if isinstance(output, tuple) else output
            if delta is not None and number == layer:
                if everywhere:
                    hidden += delta[:, None, :].to(hidden.device, hidden.dtype)
                else:
                    hidden[:, -1, :] += delta.to(hidden.device, hidden.dtype)
            if number in keep:
                states.append(hidden[:, -1, :].float().cpu())
        stacked = nnsight.save(torch.stack(states, dim=1) if states else torch.zeros(0))
        logits = nnsight.save(network.output.logits[:, -1, :].float().cpu())
    return logits, stacked if read_layers else None


def generate_ids(
    model: Model,
    batch: dict[str, torch.Tensor],
    layer: int,
    delta: torch.Tensor | None,
    scope: str,
    max_new_tokens: int,
) -> torch.Tensor:
    """Greedy continuation of a batch, each row with its own edit at each step that `scope` covers.

    Args:
        model: An open model.
        batch: Left-padded batch of `encoding.pad_batch`.
        layer: The block whose output is edited.
        delta: (rows, d_model); None generates unsteered.
        scope: A key of `SCOPES`.
        max_new_tokens: At most so many tokens.

    Returns:
        New tokens (rows, steps) on the CPU; rows that end early are padded.
    """
    options = {"max_new_tokens": max_new_tokens, "do_sample": False, "backend": model.door.backend(model.nnsight)}
    prompt_tokens = batch["input_ids"].shape[1]
    block = model.layers[layer]
    if delta is None:
        with torch.no_grad(), model.nnsight.generate(**options) as tracer:
            with tracer.invoke(batch):
                pass
            with tracer.invoke():
                ids = nnsight.save(tracer.result)
        return ids[:, prompt_tokens:].cpu()
    everywhere = scope in ("prompt", "all")
    once = scope in ("prompt-last", "prompt")
    # The result stands in an invoke of its own: code after an open loop never runs.
    # nnsight warns that an open loop ended where the generation did, which is what it is for.
    warnings.filterwarnings("ignore", message=".*was never reached: the loop asked for a step.*")
    with torch.no_grad(), model.nnsight.generate(**options) as tracer:
        with tracer.invoke(batch):
            for _step in tracer.iter[:1] if once else tracer.iter[:]:
                output = block.output
                hidden = output[0] if isinstance(output, tuple) else output
                if everywhere:
                    hidden += delta[:, None, :].to(hidden.device, hidden.dtype)
                else:
                    hidden[:, -1, :] += delta.to(hidden.device, hidden.dtype)
        with tracer.invoke():
            ids = nnsight.save(tracer.result)
    return ids[:, prompt_tokens:].cpu()
