"""Decoding where a cache can't be kept between passes: the model's own loop grows it, and each step is edited in it.

A process beside the model's gets a copy of what a pass puts out, so that a cache would travel with every token. Here
the prompts' cache travels once for each arm, and then the model goes on by itself. Rows that have finished stay.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from interventions.traced.blocks import Batch, Block, Blocks, Network, hidden
from interventions.traced.caching import cached, keys_values
from interventions.traced.decoding import Decoded, Decoding, first_position
from interventions.traced.edits import LATER, WIDE, ArmPlan, Unsteered, apply_edit, first_alike, row_edits, with_bias


def generated(
    network: Network,
    head: Block,
    blocks: Blocks,
    batch: Batch,
    cache: DynamicCache,
    plans: Sequence[ArmPlan],
    seen: Unsteered,
    how: Decoding,
) -> Decoded:
    """Figures and tokens of arms that decode together; the same as `decoding.decoded` gives.

    Args:
        network: The nnsight model.
        head: What puts out the logits.
        blocks: Those that the arms edit.
        batch: On the model's device.
        cache: Of every column but the last. Arms of a wide scope compute all columns anew.
        plans: The arms.
        seen: What the unsteered look gave.
        how: How to decode.
    """
    (rows, width), many, wide = batch["input_ids"].shape, len(plans), plans[0].scope in WIDE
    edits = row_edits(plans, seen, how.gates, [number for number, _ in blocks], batch["input_ids"].device)
    alive, back = first_alike(plans, edits).unique(return_inverse=True)
    whose = alive // many
    later = [at for at in blocks if any(plan.scope in LATER and at[0] in plan.layers for plan in plans)]
    past = cached([] if wide else keys_values(cache), apart=True)
    past.batch_select_indices(whose.cpu())  # its layers may lie on several devices
    inputs = {name: batch[name][whose] for name in ("input_ids", "attention_mask")}
    biased, first = any(plan.bias is not None for plan in plans), []
    with network.generate(**settings(how), past_key_values=past) as tracer:
        with tracer.invoke(inputs):
            for step in tracer.iter[: how.steps]:
                for number, block in later if step else blocks:
                    apply_edit(hidden(block.output), edits.layers[number], alive, step == 0, step == 0 and wide)
                if step == 0:
                    put_out = head.output
                    last = logits_of(put_out)[:, -1, :]
                    first.append(with_bias(last.float().to(whose.device), plans, seen, how.gates, alive))
                    if biased:
                        last[:] = first[0].to(last.dtype)
        with tracer.invoke():
            found = tracer.result
    logits = first[0]
    tokens = torch.zeros(len(alive), how.steps, dtype=torch.long, device=logits.device)
    tokens[:, : found.shape[1] - width] = found[:, width:].to(tokens.device)
    tokens[:, 0] = logits.argmax(-1)
    figures = first_position(logits, seen, how, whose, back.view(rows, many))
    vector, strength = (part.view(rows, many).cpu() for part in (edits.vector, edits.strength))
    return Decoded(tokens[back].view(rows, many, -1).cpu(), vector, strength, figures)


def settings(how: Decoding) -> dict[str, Any]:
    """What the model's own loop is told: greedy, and nothing of what a checkpoint's generation settings would add."""
    return {
        "max_new_tokens": how.steps,
        "eos_token_id": how.ending.tolist() or None,
        "pad_token_id": 0,
        "do_sample": False,
        "num_beams": 1,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "min_new_tokens": 0,
    }


def logits_of(put_out: Any) -> torch.Tensor:
    """Logits (rows, positions, vocabulary) in what an unembedding, or a whole model, puts out."""
    return put_out if isinstance(put_out, torch.Tensor) else put_out.logits
