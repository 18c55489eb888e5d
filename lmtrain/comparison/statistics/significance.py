"""Defines the results of statistical tests, and the tests that need no model of the noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # loads scipy.special when a function of it is first called, and never scipy.stats, which takes seconds

ALPHA = 0.05  # the level of all verdicts of a table together; its intervals hold together with 1 − ALPHA
FEWEST_RANKED = 5

Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class SeedNoise:
    """The standard deviation between seeds and its degrees of freedom."""

    sd: float
    df: int


@dataclass(frozen=True)
class MeanDifference:
    """The first mean minus the second.

    Attributes:
        value: The difference.
        half_width: The half width of its interval; the intervals of a table hold together with 95%.
        p: The p-value of this difference alone, not corrected for the others of the table.
        test: The name of the test.
        standard_error: The standard error of the value; NaN if the test has none.
        df: The degrees of freedom of the standard error; NaN if the test has none.
    """

    value: float
    half_width: float
    p: float
    test: str
    standard_error: float = math.nan
    df: float = math.nan


def half_width(values: Values) -> float:
    """Return the half width of the 95% t interval of the mean; NaN for a single value."""
    if len(values) < 2:
        return math.nan
    return float(critical_t(len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))


def critical_t(df: float, alpha: float = ALPHA) -> float:
    """Return the two-sided critical value of Student's t."""
    return float(scipy.special.stdtrit(df, 1 - alpha / 2))


def two_sided_p(t: float, df: float) -> float:
    """Return the two-sided p-value of Student's t."""
    return float(2 * scipy.special.stdtr(df, -abs(t)))


def pooled_noise(samples: Sequence[Values]) -> SeedNoise | None:
    """Return the noise of groups, assumed equal in all of them; None if no group has two values.

    The groups may have different means.
    """
    several = [np.asarray(values, dtype=float) for values in samples if len(values) > 1]
    df = sum(len(values) - 1 for values in several)
    squares = sum(float(np.sum((values - values.mean()) ** 2)) for values in several)
    return SeedNoise(math.sqrt(squares / df), df) if df else None


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
    return Correlation(r, two_sided_p(t, n - 2), n)


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
