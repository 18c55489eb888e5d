"""Calculates, before runs are made, which difference how many seeds would detect."""

import math

import scipy

from lmtrain.comparison.statistics.noise.differences import FEWEST_OWN, UNCORRECTED
from lmtrain.comparison.statistics.noise.largest_difference import range_quantile
from lmtrain.comparison.statistics.significance import ALPHA, critical_t

POWER = 0.8
MAX_SEEDS = 100_000


def power(difference: float, sd: float, seeds: int, *, settings: int = 2, alpha: float = ALPHA) -> float:
    """Return the probability that a true difference of two settings is found with this number of seeds each.

    Args:
        difference: The true difference.
        sd: The standard deviation of the difference of two runs with the same seed.
        seeds: The number of seeds of each setting, the same for all; at least 2.
        settings: The number of settings that are compared at once.
        alpha: The level of all verdicts together.
    """
    shift = abs(difference) / sd * math.sqrt(seeds)
    df = (settings - 1) * (seeds - 1)
    limit = critical_t(df, alpha) if settings == 2 else range_quantile(alpha, settings, df) / math.sqrt(2)
    found = _beyond(limit, df, shift)
    if settings > 2 and seeds >= FEWEST_OWN:  # the pair's own noise has to confirm it
        limit = critical_t(seeds - 1, alpha / max(1.0, settings / UNCORRECTED))
        found = min(found, _beyond(limit, seeds - 1, shift))
    return found


def _beyond(limit: float, df: float, shift: float) -> float:
    return float(1 - scipy.special.nctdtr(df, shift, limit) + scipy.special.nctdtr(df, shift, -limit))


def seeds_needed(difference: float, sd: float, *, settings: int = 2, alpha: float = ALPHA) -> int | None:
    """Return the fewest seeds of each setting that find a true difference with a probability of 80%.

    The arguments are those of `power`. Return None if that is more than `MAX_SEEDS`, or if the difference is zero.
    """
    if sd == 0:
        return 2 if difference else None
    if not difference:
        return None
    # The number for a known noise is the starting point; the test also estimates the noise and needs a few more.
    normal = float(scipy.special.ndtri(1 - alpha / 2) + scipy.special.ndtri(POWER)) * sd / difference
    low = int(min(max(2.0, normal**2 // 1), MAX_SEEDS + 1))
    high = low
    while high <= MAX_SEEDS and power(difference, sd, high, settings=settings, alpha=alpha) < POWER:
        low, high = high + 1, 2 * high
    while low < high <= 2 * MAX_SEEDS:
        middle = (low + high) // 2
        if power(difference, sd, middle, settings=settings, alpha=alpha) < POWER:
            low = middle + 1
        else:
            high = middle
    return low if low <= MAX_SEEDS else None
