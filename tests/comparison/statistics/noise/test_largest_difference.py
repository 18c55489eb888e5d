"""The distributions of the largest difference agree with scipy and with published tables."""

import math

import pytest
from scipy import stats

from lmtrain.comparison.statistics.noise.largest_difference import (
    dunnett_quantile,
    dunnett_tail,
    range_quantile,
    range_tail,
)


@pytest.mark.parametrize(("k", "df"), [(2, 1), (3, 2), (3, 4), (30, 58)])
def test_the_studentized_range_agrees_with_scipy(k: int, df: int) -> None:
    q = range_quantile(0.05, k, df)
    assert q == pytest.approx(stats.studentized_range.ppf(0.95, k, df), rel=1e-5)
    for factor in (0.7, 1.5):
        theirs = float(stats.studentized_range.sf(factor * q, k, df))
        assert range_tail(factor * q, k, df) == pytest.approx(theirs, rel=1e-4, abs=1e-7)


def test_the_range_of_two_means_is_students_t() -> None:
    assert range_quantile(0.05, 2, 7) == pytest.approx(math.sqrt(2) * stats.t.ppf(0.975, 7), rel=1e-6)


@pytest.mark.parametrize(("k", "df", "critical"), [(2, 10, 2.57), (3, 12, 2.68), (9, 20, 2.95), (5, 60, 2.58)])
def test_the_critical_values_agree_with_dunnetts_table(k: int, df: int, critical: float) -> None:
    assert dunnett_quantile(0.05, (math.sqrt(0.5),) * k, df) == pytest.approx(critical, abs=0.006)  # Dunnett 1964


def test_dunnetts_test_agrees_with_scipy_for_unequal_groups() -> None:
    sizes, baseline = [3, 8, 5], 4
    loads = [math.sqrt(n / (n + baseline)) for n in sizes]
    rho = [[1.0 if i == j else a * b for j, b in enumerate(loads)] for i, a in enumerate(loads)]
    inside = stats.multivariate_t(shape=rho, df=16, seed=1).cdf([2.4] * 3, lower_limit=[-2.4] * 3, maxpts=200_000)
    assert dunnett_tail(2.4, loads, 16) == pytest.approx(1 - inside, abs=5e-4)


def test_the_ends_of_the_distributions() -> None:
    assert range_tail(0.0, 4, 5) == 1.0
    assert range_tail(math.inf, 4, 5) == 0.0
    assert range_tail(400.0, 3, 30) == pytest.approx(0.0, abs=1e-12)
    assert range_quantile(0.05, 3, 1e9) == pytest.approx(stats.studentized_range.ppf(0.95, 3, 1e5), rel=1e-4)
