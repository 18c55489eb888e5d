"""The trend and the best value of a numeric setting agree with least squares, and their intervals hold."""

import math

import numpy as np
import pytest
from scipy import stats

from lmtrain.comparison.statistics.effects import Effect, effects
from lmtrain.comparison.statistics.group import ReplicateGroup
from lmtrain.comparison.statistics.response import is_logarithmic

RATES = [1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3]


def effect_of(levels: list[float], values: np.ndarray, sign: int = 1) -> Effect:
    """Return the effect of a setting from values (levels, seeds)."""
    groups = [
        ReplicateGroup(f"lr={level}", {"lr": level}, dict(enumerate(own)))
        for level, own in zip(levels, values.tolist(), strict=True)
    ]
    (effect,) = effects(groups, sign=sign).effects
    return effect


def test_the_scale_is_logarithmic_unless_the_values_are_evenly_spaced_or_not_positive() -> None:
    assert is_logarithmic([1e-4, 1e-3, 1e-2])
    assert is_logarithmic([1, 2, 4])
    assert not is_logarithmic([8, 16, 24])
    assert not is_logarithmic([0.1, 0.2, 0.3])
    assert not is_logarithmic([0, 0.01, 0.1])
    assert not is_logarithmic([-1, 1, 10])


def test_the_trend_is_the_slope_of_each_seed_with_the_t_interval_of_their_mean() -> None:
    values = np.random.default_rng(0).standard_normal((5, 4))
    found = effect_of(RATES, values).trend
    slopes = [stats.linregress(range(5), own).slope for own in values.T]
    interval = stats.t.interval(0.95, 3, loc=np.mean(slopes), scale=stats.sem(slopes))
    assert found is not None
    assert found.log
    assert found.slope == pytest.approx(np.mean(slopes))
    assert found.half_width == pytest.approx((interval[1] - interval[0]) / 2)


def test_words_and_two_numbers_have_no_trend() -> None:
    values = np.random.default_rng(0).standard_normal((3, 4))
    assert effect_of([1, 2], values[:2]).trend is None
    assert effect_of(["a", "b", "c"], values).trend is None  # type: ignore[list-item]


def test_the_optimum_is_that_of_the_parabola_through_the_means() -> None:
    x = np.log2(RATES)
    best = math.log2(5e-4)
    values = 0.1 * (x - best)[:, None] ** 2 + 0.02 * np.random.default_rng(2).standard_normal((5, 4))
    found = effect_of(RATES, values).optimum
    c, b, _ = np.polyfit(x, values.mean(axis=1), 2)
    assert found is not None
    assert found.best == pytest.approx(2 ** (-b / (2 * c)))
    assert found.low < 5e-4 < found.high
    assert found.high / found.low < 1.5
    # The ends of the interval are where the derivative's t statistic has its 5% limit.
    per_seed = np.array([np.polyfit(x, own, 2)[:2] for own in values.T])
    for end in (found.low, found.high):
        derivative = per_seed @ np.array([2 * math.log2(end), 1.0])
        assert stats.ttest_1samp(derivative, 0).pvalue == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize(
    ("values", "sign", "why"),
    [
        ([1.0, 2, 3, 4, 5], 1, "no optimum inside the range"),
        ([4.0, 1, 0, 1, 4], -1, "no optimum inside the range"),  # a lowest value, where the highest is best
        ([0.0, 1, 0, 1, 0], 1, "the means do not follow a parabola"),
    ],
)
def test_without_a_parabola_whose_end_is_inside_the_values_there_is_no_optimum(
    values: list[float], sign: int, why: str
) -> None:
    noise = 0.01 * np.random.default_rng(2).standard_normal((5, 5))
    found = effect_of(RATES, np.array(values)[:, None] + noise, sign).optimum
    assert found is not None
    assert found.why_not == why


@pytest.mark.slow
def test_noise_has_an_optimum_in_no_more_studies_than_the_level_allows() -> None:
    generator = np.random.default_rng(3)
    times = 300
    found = [effect_of(RATES, generator.standard_normal((5, 3))).optimum for _ in range(times)]
    assert sum(one is not None and not one.why_not for one in found) / times < 0.05 + 3 * math.sqrt(0.05 * 0.95 / times)


@pytest.mark.slow
@pytest.mark.parametrize("noisy", [1, 10])
def test_the_intervals_contain_the_truth_as_often_as_they_say(noisy: int) -> None:
    generator = np.random.default_rng(4)
    x, best = np.log2(RATES), math.log2(4e-4)
    truth = 2.0 * (x - best) ** 2
    slope = float(np.polyfit(x, truth, 1)[0])
    sd = np.array([1, 1, 1, 1, noisy])[:, None]
    held, trends, found = 0, 0, 0
    times = 300
    for _ in range(times):
        effect = effect_of(RATES, truth[:, None] + 0.3 * sd * generator.standard_normal((5, 4)))
        assert effect.trend is not None
        trends += abs(effect.trend.slope - slope) <= effect.trend.half_width
        if effect.optimum is not None and not effect.optimum.why_not:
            found += 1
            held += effect.optimum.low <= 4e-4 <= effect.optimum.high
    assert trends / times > 0.95 - 3 * math.sqrt(0.05 * 0.95 / times)
    assert found > times / 3
    assert held / found > 0.95 - 3 * math.sqrt(0.05 * 0.95 / found)
