"""How many prompts a difference needs: the power of the exact McNemar test, as it is reported."""

from functools import lru_cache
from math import ceil

import numpy as np

from data.contract import DIFFERENCE

POWER, ALPHA = 0.8, 0.05


def mcnemar_power(n: int, disagreement: float, difference: float, alpha: float = ALPHA) -> float:
    """Power of the exact two-sided McNemar test on `n` pairs.

    The number of discordant pairs is binomial, and so is, given it, how many of them go one way: the power is the mean,
    over the first, of the second's probability in the rejection region (Duffy 1984, Biometrics 40:1005).

    Args:
        n: Pairs.
        disagreement: Share of pairs where the two arms differ.
        difference: Of the two proportions; at most `disagreement` in size.
        alpha: Level of the test.
    """
    from scipy.stats import binom

    discordant = np.arange(n + 1)
    weight = binom.pmf(discordant, n, disagreement)
    seen = weight > 1e-12
    discordant, weight = discordant[seen], weight[seen]
    # The largest count in the lower tail that is rejected: twice its probability is at most alpha.
    edge = binom.ppf(alpha / 2, discordant, 0.5)
    edge = np.where(2 * binom.cdf(edge, discordant, 0.5) <= alpha, edge, edge - 1)
    one_way = (disagreement + abs(difference)) / (2 * disagreement)
    rejected = binom.cdf(edge, discordant, one_way) + binom.sf(discordant - edge - 1, discordant, one_way)
    return float(weight @ np.where(edge >= 0, rejected, 0))


def prompts_needed(
    disagreement: float, difference: float = DIFFERENCE / 100, power: float = POWER, alpha: float = ALPHA
) -> int | None:
    """Prompts with which the exact McNemar test finds a difference with the wished power.

    A difference takes at least as much disagreement: less, as seen in a small sample, is read as that much. The search
    begins at the normal approximation (Connor 1987, Biometrics 43:207), which is too few for the exact test.

    Args:
        disagreement: Share of pairs where the two arms differ, as seen.
        difference: To find, of the two proportions, between 0 and 1; its sign doesn't matter.
        power: Between 0 and 1.
        alpha: Level of the test.

    Returns:
        Their number; null for a difference of 0, or beyond 1.
    """
    difference = abs(difference)
    if not 0 < difference <= 1:
        return None
    return _needed(round(max(disagreement, difference), 6), difference, power, alpha)


@lru_cache(maxsize=4096)
def _needed(disagreement: float, difference: float, power: float, alpha: float) -> int:
    from statsmodels.stats.power import normal_sample_size_one_tail

    spread = max(disagreement - difference**2, 0) ** 0.5
    low = ceil(normal_sample_size_one_tail(difference, power, alpha / 2, disagreement**0.5, spread)) - 1
    high = ceil(low * 1.1) + 4
    while mcnemar_power(high, disagreement, difference, alpha) < power:
        low, high = high, ceil(high * 1.1) + 4
    while high - low > 1:  # power rises with n but for small teeth; what is found has the power that was wished for
        middle = (low + high) // 2
        low, high = (low, middle) if mcnemar_power(middle, disagreement, difference, alpha) >= power else (middle, high)
    return high
