"""Tests the anytime-valid test against numerical integration, and its promise by simulation."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from lmtrain.compare.statistics.sequential import half_width_at_any_time, log_e_value


@pytest.mark.parametrize("n", [2, 3, 7, 20])
@pytest.mark.parametrize("shift", [-1.0, 0.0, 0.5])
def test_the_e_value_is_the_ratio_of_likelihoods_of_the_t_statistic(n: int, shift: float) -> None:
    differences = np.random.default_rng(n).standard_normal(n) + shift
    t = math.sqrt(n) * differences.mean() / differences.std(ddof=1)

    def mixture(effect: float) -> float:
        ratio = stats.nct.pdf(t, n - 1, effect * math.sqrt(n)) / stats.t.pdf(t, n - 1)
        return float(2 * stats.norm.pdf(effect) * ratio)

    expected, _ = integrate.quad(mixture, 0, 8)
    assert math.exp(log_e_value(differences)) == pytest.approx(expected, rel=1e-6)


def test_looking_after_every_seed_is_rarely_wrong() -> None:
    values = np.random.default_rng(1).standard_normal((2000, 40))
    wrong = sum(any(log_e_value(row[:n]) >= math.log(20) for n in range(2, 41)) for row in values)
    assert wrong / 2000 < 0.05


def test_a_difference_of_one_sd_is_found_with_few_seeds() -> None:
    values = np.random.default_rng(2).standard_normal((300, 60)) + 1
    needed = [next(n for n in range(2, 61) if log_e_value(row[:n]) >= math.log(20)) for row in values]
    assert np.mean(needed) < 12


def test_the_interval_excludes_zero_where_the_two_sided_e_value_reaches_one_over_alpha() -> None:
    values = np.random.default_rng(3).standard_normal(9)
    shifted = values - values.mean() + half_width_at_any_time(values, 0.05)
    evidence = (math.exp(log_e_value(shifted)) + math.exp(log_e_value(-shifted))) / 2
    assert evidence == pytest.approx(20)


def test_equal_differences_have_no_noise() -> None:
    assert log_e_value([0.1, 0.1]) == math.inf
    assert log_e_value([-0.1, -0.1]) == -math.inf
    assert log_e_value([0.0, 0.0]) == 0
    assert log_e_value([0.5]) == 0
    assert half_width_at_any_time([0.5], 0.05) == math.inf
