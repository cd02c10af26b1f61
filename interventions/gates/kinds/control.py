"""The model's own hesitation: logistic regression on the control tokens' log-probabilities after the prompt.

x = log p of every control token at the first generated position, unsteered; standardised, L2 penalty with C = 1, both
classes counting the same. The prefill gives it anyway.
"""

import json
from collections.abc import Sequence

import numpy as np

from data.errors import UserError
from interventions.fitting.linear import fit_logistic
from interventions.gates.features import Features, Kind, fitted
from interventions.gates.gate import FittedGate

C = 1.0


def fit(features: Features, rows: np.ndarray, harmful: np.ndarray, _themes: Sequence[str]) -> FittedGate:
    """On some rows.

    Raises:
        UserError: The model has no control tokens.
    """
    if features.log_probabilities is None or not features.tokens:
        raise UserError(
            "the gate control reads the refusal tokens, and the model has none; use --gate ridge, or a model tuned with them"
        )
    parts = fit_logistic(features.log_probabilities[rows], harmful, C)
    return fitted(*parts, tokens=json.dumps(list(features.tokens), ensure_ascii=False))


KIND = Kind(fit, reads_tokens=True)
