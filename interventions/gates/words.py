"""Bag of words: which words a prompt holds, no activations. The control that every other gate must beat.

x_w = 1 if the prompt holds word w; a logistic regression with L2 penalty, both classes counting the same.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

WORD = re.compile(r"\w+")
LEAST = 2  # prompts that a word must stand in
SOME = 2000  # prompts whose words are counted at once


def words_of(text: str) -> set[str]:
    """A prompt's words, in lower case."""
    return set(WORD.findall(text.lower()))


def vocabulary(texts: Sequence[str]) -> list[str]:
    """Words of at least two prompts, sorted."""
    counts = Counter(word for text in texts for word in words_of(text))
    return sorted(word for word, count in counts.items() if count >= LEAST)


def counted(texts: Sequence[str], vocabulary: Sequence[str]) -> np.ndarray:
    """Which words each text holds: (texts, words) float32, 0 or 1."""
    place = {word: at for at, word in enumerate(vocabulary)}
    x = np.zeros((len(texts), len(vocabulary)), np.float32)
    for row, text in enumerate(texts):
        x[row, [place[word] for word in words_of(text) if word in place]] = 1
    return x


def fit(
    texts: Sequence[str], vocabulary: Sequence[str], harmful: np.ndarray, c: float = 1.0
) -> tuple[np.ndarray, np.ndarray, float]:
    """Weight, mean (0) and bias."""
    from scipy.sparse import csr_array, vstack
    from sklearn.linear_model import LogisticRegression

    x = vstack(
        [csr_array(counted(texts[at : at + SOME], vocabulary).astype(np.float64)) for at in range(0, len(texts), SOME)]
    )
    model = LogisticRegression(C=c, class_weight="balanced", max_iter=2000).fit(x, harmful)
    return model.coef_[0], np.zeros(len(vocabulary)), float(model.intercept_[0])
