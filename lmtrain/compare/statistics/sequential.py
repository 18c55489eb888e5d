"""Tests differences so that one may look again after every new value, for as long as one likes (anytime-valid)."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

# The prior variance of the difference, in units of the noise. With 1, most is known soonest about a difference as
# large as the noise itself.
PRIOR_VARIANCE = 1.0
FEWEST_DIFFERENCES = 2  # one value says nothing about the noise


def log_e_value(differences: Sequence[float]) -> float:
    """Return the natural logarithm of the evidence that the mean of the differences is above zero.

    The e-value is a t-mixture: the ratio of the likelihoods of the t statistic, with half a normal prior on the mean in
    units of the noise and the right Haar prior on the noise (Pérez-Ortiz et al., *E-statistics, group invariance and
    anytime-valid testing*, Annals of Statistics 2024; Wang & Ramdas, *Anytime-valid t-tests and confidence sequences
    for Gaussian means with unknown variance*, 2023). If the mean is not above zero, the probability that the e-value
    is ever 1/α or more, after any number of looks, is at most α.

    Differences that are all equal have no noise to be compared with: the result is infinite if they are positive.
    """
    n = len(differences)
    if n < FEWEST_DIFFERENCES:
        return 0.0
    values = np.asarray(differences, dtype=float)
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    if sd == 0:
        return math.inf if mean > 0 else -math.inf if mean < 0 else 0.0
    t_squared = n * (mean / sd) ** 2
    shrinkage = n * PRIOR_VARIANCE / (1 + n * PRIOR_VARIANCE)
    correlation_squared = t_squared / (n - 1 + t_squared) * shrinkage
    two_sided = -0.5 * math.log1p(n * PRIOR_VARIANCE) - n / 2 * math.log1p(-correlation_squared)
    z = math.copysign(math.sqrt(n * correlation_squared / (1 - correlation_squared)), mean)
    return two_sided + math.log(2 * float(special.stdtr(n, z)) or math.ulp(0.0))


def half_width_at_any_time(differences: Sequence[float], alpha: float) -> float:
    """Return the half width of a confidence sequence for the mean of the differences.

    With a probability of at least 1 − `alpha`, the intervals hold after every number of values at once. Infinite for
    fewer than two values, and for so few that no interval excludes anything.
    """
    n = len(differences)
    if n < FEWEST_DIFFERENCES:
        return math.inf
    # The interval has the means at which the two-sided e-value stays below 1/alpha.
    growth = math.exp(-2 / n * (0.5 * math.log1p(n * PRIOR_VARIANCE) - math.log(alpha)))
    shrinkage = n * PRIOR_VARIANCE / (1 + n * PRIOR_VARIANCE)
    correlation_squared = (1 - growth) / shrinkage
    if correlation_squared >= 1:
        return math.inf
    t_squared = (n - 1) * correlation_squared / (1 - correlation_squared)
    return math.sqrt(t_squared / n) * float(np.std(np.asarray(differences, dtype=float), ddof=1))
