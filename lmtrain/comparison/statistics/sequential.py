"""Tests differences so that one may look again after every new value, for as long as one likes (anytime-valid)."""

import math
from collections.abc import Sequence

import numpy as np
import scipy

# The prior variance of the difference, in units of the noise. With 1, most is known soonest about a difference as
# large as the noise itself.
PRIOR_VARIANCE = 1.0
FEWEST_DIFFERENCES = 2  # one value says nothing about the noise
LEAST = 1e-300  # stands for zero in a logarithm or below a fraction


def log_e_value(differences: Sequence[float]) -> float:
    """Return the natural logarithm of the evidence that the mean of the differences is above zero.

    The e-value is a t-mixture: the ratio of the likelihoods of the t statistic, with half a normal prior on the mean in
    units of the noise and the right Haar prior on the noise (Pérez-Ortiz et al., *E-statistics, group invariance and
    anytime-valid testing*, Annals of Statistics 2024; Wang & Ramdas, *Anytime-valid t-tests and confidence sequences
    for Gaussian means with unknown variance*, 2023). If the mean is not above zero, the probability that the e-value
    is ever 1/α or more, after any number of looks, is at most α.

    Differences that are all equal count as a t statistic without bound, whose evidence is finite: values that are
    rounded, such as an accuracy, may be equal by chance.
    """
    n = len(differences)
    if n < FEWEST_DIFFERENCES:
        return 0.0
    return float(_one_sided(np.asarray(t_statistic(differences)), np.asarray(n)))


def log_e_value_two_sided(differences: Sequence[float]) -> float:
    """Return the logarithm of the evidence that the mean of the differences is not zero, in either direction.

    It is the mean of the e-values of both directions, and holds at any time as they do.
    """
    n = len(differences)
    if n < FEWEST_DIFFERENCES:
        return 0.0
    return float(_two_sided(np.asarray(t_statistic(differences)), np.asarray(n)))


def running_log_e_values(differences: np.ndarray, *, two_sided: bool = False) -> np.ndarray:
    """Return the evidence after each value of the last axis, as an array of the same shape: what every look shows."""
    n = np.arange(1, differences.shape[-1] + 1)
    mean = np.cumsum(differences, axis=-1) / n
    # The squares are summed around the first value, so that a large common part does not hide the noise.
    shifted = differences - differences[..., :1]
    squares = np.cumsum(shifted**2, axis=-1) - n * (np.cumsum(shifted, axis=-1) / n) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        sd = np.sqrt(np.maximum(squares, 0) / (n - 1))
        t = np.where(mean == 0, 0.0, np.sqrt(n) * mean / sd)
    found = _two_sided(np.nan_to_num(t, posinf=math.inf, neginf=-math.inf), n) if two_sided else log_e_value_of_t(t, n)
    return np.where(n < FEWEST_DIFFERENCES, 0.0, found)


def log_e_value_of_t(t: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Return the evidence of `log_e_value` for each t statistic of `n` differences, at least two.

    That of an infinite t is the most that so many differences can give.
    """
    return _one_sided(np.nan_to_num(t, posinf=math.inf, neginf=-math.inf), n)


def half_width_at_any_time(differences: Sequence[float], alpha: float) -> float:
    """Return the half width of a confidence sequence for the mean of the differences.

    With a probability of at least 1 − `alpha`, the intervals hold after every number of values at once. Infinite for
    fewer than two values, and for so few that no interval excludes anything. The interval excludes zero where the
    two-sided e-value is above 1/`alpha`.
    """
    n = len(differences)
    if n < FEWEST_DIFFERENCES:
        return math.inf
    # The interval has the means at which the two-sided e-value stays below 1/alpha.
    growth = math.exp(-2 / n * (0.5 * math.log1p(n * PRIOR_VARIANCE) - math.log(alpha)))
    correlation_squared = (1 - growth) / _shrinkage(n)
    if correlation_squared >= 1:
        return math.inf
    t_squared = (n - 1) * correlation_squared / (1 - correlation_squared)
    return math.sqrt(t_squared / n) * float(np.std(np.asarray(differences, dtype=float), ddof=1))


def bound_at_any_time(differences: Sequence[float], alpha: float) -> float:
    """Return how far below the mean of the differences the true mean may lie, at any time, with confidence 1 − `alpha`.

    This is one-sided: the true mean is above the mean minus this, and above zero where `log_e_value` reaches 1/`alpha`.
    """
    n = len(differences)
    wanted = -math.log(alpha)
    if n < FEWEST_DIFFERENCES or _one_sided(np.asarray(math.inf), np.asarray(n)) <= wanted:
        return math.inf
    low, high = 0.0, 1.0
    while _one_sided(np.asarray(high), np.asarray(n)) < wanted:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _one_sided(np.asarray(middle), np.asarray(n)) < wanted else (low, middle)
    return high * float(np.std(np.asarray(differences, dtype=float), ddof=1)) / math.sqrt(n)


def t_statistic(differences: Sequence[float]) -> float:
    """Return Student's t of the mean against zero; infinite if the differences are equal but not zero."""
    values = np.asarray(differences, dtype=float)
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    if mean == 0:
        return 0.0
    # The differences of equal numbers may differ by rounding errors.
    if sd <= 1e-12 * abs(mean):
        return math.copysign(math.inf, mean)
    return math.sqrt(len(values)) * mean / sd


def _shrinkage(n: float | np.ndarray) -> float | np.ndarray:
    return n * PRIOR_VARIANCE / (1 + n * PRIOR_VARIANCE)


def _correlation_squared(t: np.ndarray, n: np.ndarray) -> np.ndarray:
    return np.asarray(_shrinkage(n) / (1 + (n - 1) / np.maximum(t**2, LEAST)))


def _two_sided(t: np.ndarray, n: np.ndarray) -> np.ndarray:
    return np.asarray(-0.5 * np.log1p(n * PRIOR_VARIANCE) - n / 2 * np.log1p(-_correlation_squared(t, n)))


def _one_sided(t: np.ndarray, n: np.ndarray) -> np.ndarray:
    squared = _correlation_squared(t, n)
    z = np.copysign(np.sqrt(n * squared / (1 - squared)), t)
    return np.asarray(_two_sided(t, n) + np.log(np.maximum(2 * scipy.special.stdtr(n, z), LEAST)))
