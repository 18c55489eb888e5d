"""Tests whether a difference is larger than the noise between seeds, and calculates how many seeds would detect it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special  # scipy.stats has the same functions but takes a second to import

ALPHA = 0.05  # significance level of the tests; the intervals have confidence 1 − ALPHA
POWER = 0.8
MAX_SEEDS = 100_000
FEWEST_RANKED = 5

Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class SeedNoise:
    """The standard deviation between seeds and its degrees of freedom."""

    sd: float
    df: int


@dataclass(frozen=True)
class MeanDifference:
    """The first mean minus the second, with the half width of its 95% interval."""

    value: float
    half_width: float
    p: float
    test: str


def half_width(values: Values) -> float:
    """Return the half width of the 95% t interval of the mean; NaN for a single value."""
    if len(values) < 2:
        return math.nan
    return float(_critical_t(len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))


def pooled_noise(samples: Sequence[Values]) -> SeedNoise | None:
    """Return the noise of groups, assumed equal in all of them; None if no group has two values.

    The groups may have different means.
    """
    several = [np.asarray(values, dtype=float) for values in samples if len(values) > 1]
    df = sum(len(values) - 1 for values in several)
    squares = sum(float(np.sum((values - values.mean()) ** 2)) for values in several)
    return SeedNoise(math.sqrt(squares / df), df) if df else None


def welch_t_test(a: Values, b: Values) -> MeanDifference:
    """Compare two independent groups of at least two values each, whose noise may differ (Welch 1947)."""
    parts = [float(np.var(values, ddof=1)) / len(values) for values in (a, b)]
    error = math.sqrt(sum(parts))
    terms = sum(part**2 / (len(values) - 1) for part, values in zip(parts, (a, b), strict=True))
    df = sum(parts) ** 2 / terms if terms else float(len(a) + len(b) - 2)
    return _mean_difference(float(np.mean(a) - np.mean(b)), error, df, "Welch's t-test")


def paired_t_test(a: Values, b: Values) -> MeanDifference:
    """Compare two lists of values pair by pair, so that variation that a pair has in common cancels."""
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    error = float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    return _mean_difference(float(differences.mean()), error, len(differences) - 1, "paired t-test")


def pooled_t_test(a: Values, b: Values, noise: SeedNoise) -> MeanDifference:
    """Compare two groups, of which one has a single value, by the noise of all groups."""
    error = noise.sd * math.sqrt(1 / len(a) + 1 / len(b))
    return _mean_difference(float(np.mean(a) - np.mean(b)), error, noise.df, "t-test with the pooled noise")


def _mean_difference(value: float, error: float, df: float, test: str) -> MeanDifference:
    if error == 0:  # the seeds change nothing
        return MeanDifference(value, 0.0, 0.0 if value else 1.0, test)
    return MeanDifference(
        value, float(_critical_t(df) * error), float(2 * special.stdtr(df, -abs(value) / error)), test
    )


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation `r` (−1 to 1) of `n` values.

    `p` is calculated with Student's t, which is accurate from about ten values on.
    """

    r: float
    p: float
    n: int


def spearman(xs: Values, ys: Values) -> Correlation | None:
    """Return the rank correlation; None for fewer than five values, or if `xs` or `ys` is constant."""
    n = len(xs)
    if n < FEWEST_RANKED or len(set(xs)) == 1 or len(set(ys)) == 1:
        return None
    r = float(np.clip(np.corrcoef(mean_ranks(xs), mean_ranks(ys))[0, 1], -1, 1))
    t = abs(r) * math.sqrt((n - 2) / max(1 - r**2, 1e-300))
    return Correlation(r, float(2 * special.stdtr(n - 2, -t)), n)


def mean_ranks(values: Values) -> np.ndarray:
    """Return the ranks, from 1; equal values get the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place])


def holm_correction(ps: Values) -> np.ndarray:
    """Return p-values corrected for the number of tests (Holm 1979), in the order given."""
    ps = np.asarray(ps, dtype=float)
    order = np.argsort(ps, kind="stable")
    adjusted = np.empty(len(ps))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(ps[order] * np.arange(len(ps), 0, -1)))
    return adjusted


def power(difference: float, sd: float, seeds: int, *, pairs: bool = False, alpha: float = ALPHA) -> float:
    """Return the probability that a two-sided t-test detects a true difference with this number of seeds per group.

    `sd` is the noise between seeds or, for a paired test, the standard deviation of the differences within pairs.
    """
    df = (seeds - 1) * (1 if pairs else 2)
    shift = abs(difference) / sd * math.sqrt(seeds / (1 if pairs else 2))
    critical = _critical_t(df, alpha)
    return float(1 - special.nctdtr(df, shift, critical) + special.nctdtr(df, shift, -critical))


def seeds_needed(difference: float, sd: float, *, pairs: bool = False, alpha: float = ALPHA) -> int | None:
    """Return the fewest seeds per group that detect a true difference with a power of 80%.

    Return None if that is more than `MAX_SEEDS`, or if the difference is zero.
    """
    if sd == 0:
        return 2 if difference else None
    if not difference:
        return None
    # The number for a known noise is the starting point; the t-test also estimates the noise and needs a few more.
    normal = float(special.ndtri(1 - alpha / 2) + special.ndtri(POWER)) * sd / difference
    seeds = max(2.0, normal**2 * (1 if pairs else 2) // 1)
    while seeds <= MAX_SEEDS and power(difference, sd, int(seeds), pairs=pairs, alpha=alpha) < POWER:
        seeds += 1
    return int(seeds) if seeds <= MAX_SEEDS else None


def _critical_t(df: float, alpha: float = ALPHA) -> float:
    """Return the two-sided critical value of Student's t."""
    return float(special.stdtrit(df, 1 - alpha / 2))
