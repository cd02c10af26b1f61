"""What steering did to harmless prompts and plain text, in numbers: what figures and intervals are made of."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Measured:
    """What is known of N prompts and P pieces of plain text in A arms, the baseline first.

    Attributes:
        arms: Their names.
        most: At most so many tokens of the unsteered answer were read.
        first: (N, A) KL(unsteered ‖ arm) of the first token, nats.
        answer: (N, A) its mean over the tokens of the unsteered answer, nats.
        broken: (N, A) whether the arm's own answer is none.
        nll: (P, A) −log p summed over a piece's scored tokens, nats.
        tokens: (P,) how many these are.
        passage: (P,) the passage each piece is of.
    """

    arms: Sequence[str]
    most: int
    first: np.ndarray
    answer: np.ndarray
    broken: np.ndarray
    nll: np.ndarray
    tokens: np.ndarray
    passage: np.ndarray
