"""Describes how the result follows a numeric setting: its trend, and where it is best."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from lmtrain.comparison.statistics.factorial import Estimate, f_test, t_degrees
from lmtrain.comparison.statistics.significance import ALPHA
from lmtrain.files.numbers import is_number

FEWEST_FOR_TREND = 3
FEWEST_FOR_OPTIMUM = 4
FEWEST_FOR_FIT = 5  # with four values, one degree of freedom is left: too little to judge a parabola
MAX_EXPONENT = 300.0  # of an interval's end on a log2 scale: beyond it, the interval says nothing
EVEN = 0.01  # relative difference of steps that count as even


@dataclass(frozen=True)
class Trend:
    """The mean change of the result per step of a setting, by least squares.

    Attributes:
        slope: The change per doubling of the setting if `log`, otherwise per unit.
        half_width: That of the slope's interval.
        log: True if the setting is taken on a logarithmic scale.
    """

    slope: float
    half_width: float
    log: bool


@dataclass(frozen=True)
class Optimum:
    """The best value of a setting, from a parabola through the means; a text in `why_not` if there is none.

    `low` and `high` are the ends of its interval (Fieller 1954). They may lie outside the values that were tried.
    """

    best: float
    low: float
    high: float
    why_not: str = ""


def is_logarithmic(levels: Sequence[float]) -> bool:
    """Return whether numbers are better seen on a logarithmic scale: they are positive and not evenly spaced."""
    steps = np.diff(sorted(levels))
    return min(levels) > 0 and bool(np.ptp(steps) > EVEN * np.max(steps))


def numbers_of(levels: Sequence[Any]) -> list[float] | None:
    """Return the levels as floats; None if some are no numbers or there are too few for a trend."""
    if len(levels) < FEWEST_FOR_TREND or not all(is_number(level) for level in levels):
        return None
    return [float(level) for level in levels]


def trend(levels: Sequence[float], means: Estimate, alpha: float = ALPHA) -> Trend | None:
    """Return the trend of the means (one per level) over the levels; None without noise to compare with."""
    x, log = _scale(levels)
    slope = means.of(_least_squares(x, 1)[1:])
    width = _half_width(slope, alpha)
    return None if width is None else Trend(float(slope.values[0]), width, log)


def optimum(levels: Sequence[float], means: Estimate, sign: int, scale: float, alpha: float = ALPHA) -> Optimum | None:
    """Return where the result is best; None for fewer than four levels or without noise to compare with.

    Args:
        levels: The setting's values.
        means: The mean for each.
        sign: 1 if lower results are better, −1 if higher ones are.
        scale: The size of the results, of which the noise must be more than a rounding error.
        alpha: The interval has the confidence 1 − alpha.
    """
    if len(levels) < FEWEST_FOR_OPTIMUM or not means.parts:
        return None
    x, log = _scale(levels)
    if len(levels) >= FEWEST_FOR_FIT:
        design = np.vander(x, 3)
        left = np.linalg.svd(design.T)[2][3:]  # orthonormal contrasts that vanish for every parabola
        test = f_test(means.of(left), scale)
        if test is not None and test.p < ALPHA:
            return Optimum(math.nan, math.nan, math.nan, "the means do not follow a parabola")
    # The derivative at x is b + 2cx: its estimate is zero at the optimum, and the interval has all x where it may be.
    derivative = means.of(_least_squares(x, 2)[1:] * np.array([[1.0], [2.0]]))
    b, c = map(float, derivative.values)
    bounds = _fieller(derivative, alpha)
    limit = MAX_EXPONENT if log else math.inf
    if sign * c <= 0 or bounds is None or not min(x) <= -b / c <= max(x) or max(map(abs, bounds)) > limit:
        return Optimum(math.nan, math.nan, math.nan, "no optimum inside the range")
    best, low, high = (float(2.0**value if log else value) for value in (-b / c, *bounds))
    return Optimum(best, low, high)


def _scale(levels: Sequence[float]) -> tuple[np.ndarray, bool]:
    log = is_logarithmic(levels)
    return (np.log2(levels) if log else np.asarray(levels, dtype=float)), log


def _least_squares(x: np.ndarray, degree: int) -> np.ndarray:
    """Return weights (degree + 1, levels) that give a polynomial's coefficients, constant first."""
    middle, width = float(np.mean(x)), float(np.ptp(x))
    z = (x - middle) / width  # better conditioned
    inner = np.linalg.pinv(np.vander(z, degree + 1, increasing=True))
    if degree == 1:
        return np.asarray(np.array([[1.0, -middle / width], [0.0, 1 / width]]) @ inner)
    back = [
        [1.0, -middle / width, (middle / width) ** 2],
        [0.0, 1 / width, -2 * middle / width**2],
        [0.0, 0.0, 1 / width**2],
    ]
    return np.asarray(np.array(back) @ inner)


def _half_width(contrast: Estimate, alpha: float) -> float | None:
    if not contrast.parts:
        return None
    df = t_degrees(contrast)
    return float(scipy.special.stdtrit(df, 1 - alpha / 2)) * math.sqrt(float(contrast.covariance[0, 0]))


def _fieller(derivative: Estimate, alpha: float) -> tuple[float, float] | None:
    """Return the ends of the interval of all x for which b + cx may be zero; None if it is not bounded."""
    b, c = map(float, derivative.values)
    (v_bb, v_bc), (_, v_cc) = derivative.covariance
    df = min(t_degrees(derivative.of(weights)) for weights in (np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])))
    t_squared = float(scipy.special.stdtrit(df, 1 - alpha / 2)) ** 2
    # (b + cx)² ≤ t² var(b + cx) is a quadratic in x: p x² + 2 q x + r ≤ 0.
    p, q, r = c**2 - t_squared * v_cc, b * c - t_squared * v_bc, b**2 - t_squared * v_bb
    if p <= 0:
        return None
    root = math.sqrt(max(0.0, q**2 - p * r))
    return (-q - root) / p, (-q + root) / p
