"""Tests the anytime-valid test against numerical integration, and its promise by simulation."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from lmtrain.comparison.statistics.sequential import (
    bound_at_any_time,
    half_width_at_any_time,
    log_e_value,
    log_e_value_of_t,
    log_e_value_two_sided,
    running_log_e_values,
)


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
    for two_sided in (False, True):
        assert (running_log_e_values(values, two_sided=two_sided) >= math.log(20)).any(axis=1).mean() < 0.05


def test_a_difference_of_one_sd_is_found_with_few_seeds() -> None:
    values = np.random.default_rng(2).standard_normal((300, 60)) + 1
    needed = 1 + np.argmax(running_log_e_values(values) >= math.log(20), axis=1)
    assert needed.min() >= 4
    assert needed.mean() < 12


def test_the_interval_excludes_zero_where_the_two_sided_e_value_reaches_one_over_alpha() -> None:
    values = np.random.default_rng(3).standard_normal(9)
    shifted = values - values.mean() + half_width_at_any_time(values, 0.05)
    evidence = (math.exp(log_e_value(shifted)) + math.exp(log_e_value(-shifted))) / 2
    assert evidence == pytest.approx(20)


def test_equal_differences_are_no_more_evidence_than_their_number_allows() -> None:
    for n in (2, 4, 6):
        most = (n + 1) ** ((n - 1) / 2)  # the limit for a t statistic without bound
        assert math.exp(log_e_value_two_sided([-0.1] * n)) == pytest.approx(most)
        assert 1.8 * most < math.exp(log_e_value([0.1] * n)) < 2 * most
    assert log_e_value([-0.1] * 4) < -1.5
    assert log_e_value([0.0, 0.0]) == pytest.approx(-0.5 * math.log(3))
    assert log_e_value([0.5]) == 0
    assert half_width_at_any_time([0.5], 0.05) == math.inf
    assert bound_at_any_time([0.5, 0.6], 0.05) == math.inf


@pytest.mark.parametrize("two_sided", [False, True])
def test_the_evidence_after_each_look_is_that_of_the_values_so_far(two_sided: bool) -> None:
    values = 7 + 0.1 * np.random.default_rng(4).standard_normal((3, 12)) - 7
    values[1, :3] = 0.25
    values[2, :2] = 0
    function = log_e_value_two_sided if two_sided else log_e_value
    expected = [[function(row[:n]) for n in range(1, 13)] for row in values]
    assert running_log_e_values(values, two_sided=two_sided) == pytest.approx(np.asarray(expected), rel=1e-6)


def test_the_evidence_of_both_directions_is_the_mean_of_each() -> None:
    values = np.random.default_rng(5).standard_normal(7) + 0.4
    both = (math.exp(log_e_value(values)) + math.exp(log_e_value(-values))) / 2
    assert math.exp(log_e_value_two_sided(values)) == pytest.approx(both)


@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_the_lower_limit_is_zero_where_the_evidence_reaches_one_over_alpha(alpha: float) -> None:
    values = np.random.default_rng(6).standard_normal(11)
    shifted = values - values.mean() + bound_at_any_time(values, alpha)
    assert math.exp(log_e_value(shifted)) == pytest.approx(1 / alpha)


@pytest.mark.parametrize("n", [2, 4, 9])
def test_no_differences_give_more_evidence_than_an_infinite_t(n: int) -> None:
    most = float(log_e_value_of_t(np.asarray(math.inf), np.asarray(n)))
    nearly_equal = 1e3 + np.linspace(0, 1e-2, n)
    assert log_e_value(nearly_equal) == pytest.approx(most, rel=1e-6)
    assert log_e_value(np.linspace(1, 2, n)) < most
