"""What gates say of prompts."""

import numpy as np
import polars as pl

from interventions.model.model import Model
from interventions.model.prompt_format import encode
from interventions.reading.budget import DECODED, Budget, default_batch_tokens
from interventions.steering.arms import Arm
from interventions.steering.batches import answer_rows, plan_answers
from interventions.steering.plans import Tools, plan_arm


def gate_scores(
    model: Model, prompts: pl.DataFrame, tools: Tools, layer: int, batch_tokens: int | None = None
) -> dict[str, np.ndarray]:
    """Each gate's score of every prompt, (rows,) float32, but for `perfect`.

    Args:
        model: An open model.
        prompts: Rows in the shape of `data.load_all`.
        tools: The gates, and vectors at `layer`.
        layer: Of arms that steer by none of them.
        batch_tokens: Padded tokens a batch, default 2048, on a GPU as many as its memory holds.
    """
    names = [name for name in tools.every_gate if name != "perfect"]
    if not names:
        return {}
    unlabelled = [{"category": None, "label": None}] * prompts.height
    plans = [plan_arm(model, Arm(name, "gated", layer, route="gated", gate=name), tools, unlabelled) for name in names]
    gates = tools.shipped(model, plans, prompts.to_dicts())
    encoded = encode(model.tokenizer, prompts["prompt"].to_list())
    budget = Budget(DECODED * (batch_tokens or default_batch_tokens(model)))
    scores = np.zeros((prompts.height, len(tools.every_gate)), np.float32)
    for rows in plan_answers(encoded, len(plans), 0, budget):
        found = answer_rows(model, encoded, rows, plans, gates, 0, budget)
        assert found.gates is not None  # whoever asks of gates gets their scores
        scores[rows] = found.gates.numpy()
    return {name: scores[:, at] for at, name in enumerate(tools.every_gate) if name in names}
