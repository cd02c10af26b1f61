"""Confidence intervals that more than one room needs."""

from math import nan


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion (Wilson 1927), from scipy; NaN where n is 0."""
    from scipy.stats import binomtest

    if n == 0:
        return nan, nan
    low, high = binomtest(successes, n).proportion_ci(method="wilson")
    return float(low), float(high)
