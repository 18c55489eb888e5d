"""Tells when more pairs of a challenger and its baseline are not worth their cost, because they would hardly decide."""

import math
from collections.abc import Sequence

import numpy as np
import scipy

from lmtrain.comparison.statistics.sequential import log_e_value_of_t

OPTIMISM = 0.9  # the true gain is taken to be the upper limit of a one-sided interval with this confidence
FEWEST_PAIRS = 3  # two pairs say too little about the noise


def best_reachable_log_e_value(differences: Sequence[float], budget: int) -> float:
    """Return the evidence after `budget` pairs if the remaining ones are as good as can be hoped from these.

    Infinite before there are `FEWEST_PAIRS` pairs. To stop a challenger when this is less than the evidence that it
    needs can only lose a true gain; it never makes a false one.
    """
    n = len(differences)
    if n < FEWEST_PAIRS:
        return math.inf
    values = np.asarray(differences, dtype=float)
    return float(reachable(values.mean(), values.std(ddof=1), np.asarray(n), budget))


def reachable(mean: np.ndarray, sd: np.ndarray, n: np.ndarray, budget: int) -> np.ndarray:
    """Return the same for arrays of means and standard deviations of `n` differences."""
    hoped = mean + scipy.special.stdtrit(n - 1, OPTIMISM) * sd / np.sqrt(n)
    final = (n * mean + np.maximum(budget - n, 0) * hoped) / np.maximum(budget, n)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(final == 0, 0.0, np.sqrt(np.maximum(budget, n)) * final / sd)
    return log_e_value_of_t(t, np.maximum(budget, n))
