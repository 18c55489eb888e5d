"""Calculates the distributions of the largest of many differences between means, by Gauss quadrature.

`scipy.stats` has them too, but takes seconds to import and up to half a second for a value.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import scipy

NORMAL_END = 8.0  # the standard normal density beyond is below 1e-14
TAIL = 1e-13  # of the distribution of the estimated noise that the integral leaves out on each side
PRECISION = 1e-6  # of a quantile, relative
MAX_STEPS = 100
LARGEST_DF = 1e6  # with more, the noise counts as known
Z, Z_WEIGHTS = (part * NORMAL_END for part in np.polynomial.legendre.leggauss(96))
Z_DENSITY = Z_WEIGHTS * np.exp(-0.5 * Z**2) / np.sqrt(2 * np.pi)
UNIT, UNIT_WEIGHTS = (np.polynomial.legendre.leggauss(40) + np.array([[1.0], [0.0]])) / 2  # from 0 to 1


def range_tail(q: float, k: int, df: float) -> float:
    """Return the probability that the studentized range of `k` equal means is above `q` (Tukey's test)."""
    ndtr = scipy.special.ndtr
    return _tail(q, df, lambda w: k * (Z_DENSITY * (ndtr(Z) - ndtr(Z - w[:, None])) ** (k - 1)).sum(1))


@lru_cache(maxsize=4096)
def range_quantile(alpha: float, k: int, df: float) -> float:
    """Return the value that the studentized range of `k` equal means exceeds with probability `alpha`."""
    return _quantile(
        alpha, lambda q: range_tail(q, k, df), *(2**0.5 * _t(a, df) for a in (alpha, 2 * alpha / (k * (k - 1))))
    )


def dunnett_tail(t: float, loads: Sequence[float], df: float) -> float:
    """Return the probability that any of several t statistics is above `t` in size (Dunnett's test).

    Args:
        t: The limit.
        loads: One number λ from 0 to 1 for each statistic; the statistics i and j correlate with λᵢ·λⱼ. For means of
            nᵢ values that are compared with one of n₀ values, λᵢ² = nᵢ / (nᵢ + n₀).
        df: The degrees of freedom of the noise.
    """
    kinds, counts = np.unique(np.round(loads, 3), return_counts=True)

    def inside(w: np.ndarray) -> np.ndarray:
        product = np.ones((len(w), len(Z)))
        for load, count in zip(kinds, counts, strict=True):
            rest = np.sqrt(1 - load**2)
            high, low = (scipy.special.ndtr((load * Z + side * w[:, None]) / rest) for side in (1, -1))
            product *= (high - low) ** count
        return np.asarray((Z_DENSITY * product).sum(1))

    return _tail(t, df, inside)


@lru_cache(maxsize=4096)
def dunnett_quantile(alpha: float, loads: tuple[float, ...], df: float) -> float:
    """Return the value that the largest of several t statistics exceeds in size with probability `alpha`."""
    limits = (_t(each, df) for each in (alpha, alpha / len(loads)))
    return _quantile(alpha, lambda t: dunnett_tail(t, loads, df), *limits)


def _tail(limit: float, df: float, inside: Callable[[np.ndarray], np.ndarray]) -> float:
    """Return 1 minus the mean of `inside(limit · s)`, where df·s² has a chi-squared distribution."""
    if limit <= 0:
        return 1.0
    if not np.isfinite(limit):
        return 0.0
    if df > LARGEST_DF:
        return float(np.clip(1 - inside(np.array([limit]))[0], 0, 1))
    low, high = (np.sqrt(2 * scipy.special.gammainccinv(df / 2, p) / df) for p in (1 - TAIL, TAIL))
    high = min(high, max(2 * NORMAL_END / limit, 1.001 * low))  # with a larger s, nothing is outside
    s = low + (high - low) * UNIT
    log_density = df * np.log(s) - df * s**2 / 2 - np.log(s) + df / 2 * np.log(df / 2) - scipy.special.gammaln(df / 2)
    density = 2 * np.exp(log_density) * (high - low) * UNIT_WEIGHTS
    return float(np.clip((density * (1 - inside(limit * s))).sum(), 0, 1))


def _quantile(alpha: float, tail: Callable[[float], float], low: float, high: float) -> float:
    """Return the root of tail(x) = alpha between two limits, by the Illinois form of the secant method."""
    at_low, at_high = tail(low) - alpha, tail(high) - alpha
    for _ in range(MAX_STEPS):
        if at_low <= 0 or high - low <= PRECISION * low:
            return low
        x = (low * at_high - high * at_low) / (at_high - at_low) if at_high < 0 else high
        at_x = tail(x) - alpha
        if abs(at_x) <= PRECISION * alpha or at_high >= 0:
            return x
        if at_x > 0:
            low, at_low, at_high = x, at_x, at_high / 2
        else:
            high, at_high, at_low = x, at_x, at_low / 2
    return x


def _t(alpha: float, df: float) -> float:
    """Return the two-sided critical value of Student's t."""
    return float(scipy.special.stdtrit(min(df, LARGEST_DF), 1 - alpha / 2))
