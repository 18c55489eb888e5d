"""Tests the number of seeds of a planned comparison: where its noise comes from, and its promise by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from lmtrain.comparison.looking.plan_sentences import SeedCost, seeds_to_plan, sentences_of
from lmtrain.comparison.statistics.group import ReplicateGroup
from lmtrain.comparison.statistics.noise.planned_seeds import MAX_PLANNED, PairNoise, pair_noise, planned_seeds
from lmtrain.comparison.statistics.noise.power import power


def groups(values: np.ndarray) -> list[ReplicateGroup]:
    return [ReplicateGroup(str(place), {}, dict(enumerate(row))) for place, row in enumerate(values)]


def test_the_noise_of_two_settings_is_that_of_their_own_differences() -> None:
    values = np.random.default_rng(0).standard_normal((2, 6)) + 9 * np.random.default_rng(1).standard_normal(6)
    noise = pair_noise(groups(values))
    assert noise is not None
    assert noise.sd == pytest.approx(np.std(values[0] - values[1], ddof=1))
    assert (noise.df, noise.paired) == (5, True)


def test_the_noise_of_more_settings_is_the_mean_over_their_pairs() -> None:
    values = np.random.default_rng(2).standard_normal((4, 5))
    noise = pair_noise(groups(values))
    variances = [np.var(values[a] - values[b], ddof=1) for a in range(4) for b in range(a)]
    assert noise is not None
    assert noise.sd == pytest.approx(math.sqrt(np.mean(variances)))
    assert noise.df == 12


def test_without_common_seeds_the_noise_of_both_is_added() -> None:
    values = np.random.default_rng(3).standard_normal((2, 4))
    first, second = groups(values)
    second = ReplicateGroup("b", {}, {seed + 10: value for seed, value in second.values.items()})
    noise = pair_noise([first, second])
    assert noise is not None
    assert noise.sd == pytest.approx(math.sqrt(np.var(values, axis=1, ddof=1).sum()))
    assert (noise.df, noise.paired) == (6, False)
    alone = pair_noise([first])
    assert alone is not None
    assert alone.sd == pytest.approx(math.sqrt(2) * np.std(values[0], ddof=1))
    assert pair_noise([ReplicateGroup("c", {}, {1: 2.0})]) is None


def test_the_interval_of_the_noise_is_from_the_chi_square_distribution() -> None:
    low, high = PairNoise(0.3, 7, 2, paired=True).limits(0.9)
    assert low == pytest.approx(0.3 * math.sqrt(7 / stats.chi2.ppf(0.95, 7)))
    assert high == pytest.approx(0.3 * math.sqrt(7 / stats.chi2.ppf(0.05, 7)))


@pytest.mark.parametrize(("pilot", "settings", "difference"), [(3, 2, 1.0), (5, 2, 0.7), (4, 3, 1.0), (8, 4, 0.6)])
def test_the_upper_number_keeps_its_promise_and_the_middle_one_is_said_honestly(
    pilot: int, settings: int, difference: float
) -> None:
    """The true SD of a difference is 1; each of many first sweeps estimates it, and plans by its own estimate."""
    df = (pilot - 1) * (settings - 1)
    estimates = np.sqrt(stats.chi2.ppf((np.arange(100) + 0.5) / 100, df) / df)
    kept, middle, said = [], [], []
    for sd in estimates:
        plan = planned_seeds(difference, PairNoise(float(sd), df, settings, paired=True), settings)
        found = [power(difference, 1, n or MAX_PLANNED, settings=settings) for n in (plan.middle, plan.high)]
        middle_power, high_power = (1.0 if math.isnan(one) else one for one in found)
        kept.append(high_power)
        middle.append(middle_power)
        said.append(plan.power_of_middle)
    assert np.mean(kept) > 0.8
    assert np.mean(np.array(kept) >= 0.8) >= 0.9
    assert np.mean(said) == pytest.approx(np.mean(middle), abs=0.04)


def test_the_upper_number_detects_the_difference_in_simulated_experiments() -> None:
    generator = np.random.default_rng(5)
    detected = []
    for _ in range(200):
        first = generator.standard_normal((2, 5)) / math.sqrt(2)
        plan = seeds_to_plan(groups(first), 1.0, 2)
        assert plan is not None
        differences = generator.standard_normal(plan.high or MAX_PLANNED) + 1.0
        detected.append(stats.ttest_1samp(differences, 0).pvalue < 0.05)
    assert np.mean(detected) >= 0.8 - 3 * math.sqrt(0.8 * 0.2 / 200)


def test_a_difference_that_is_too_small_gets_no_absurd_number() -> None:
    plan = planned_seeds(1e-5, PairNoise(0.02, 4, 2, paired=True), 2)
    assert (plan.low, plan.middle, plan.high, plan.any_time) == (None, None, None, None)
    (sentence,) = sentences_of(plan, SeedCost(60, 1e6))
    assert sentence.startswith("more than 1,000 seeds each: a difference of 1e-05 between 2 settings cannot be found")
    assert seeds_to_plan(groups(np.ones((2, 3))), 0.1, 2) is None
    assert "no number of seeds can be planned" in sentences_of(None, SeedCost(60, 1e6))[0]


def test_a_range_has_its_cost() -> None:
    plan = planned_seeds(0.02, PairNoise(0.02, 4, 2, paired=True), 2)
    sentences = sentences_of(plan, SeedCost(2 * 60, 2e6))
    assert (plan.low, plan.middle, plan.high) == (7, 10, 32)
    assert sentences[0].startswith("to detect a difference of 0.02 between 2 settings: 7 to 32 seeds each; ")
    assert sentences[2] == "10 to 32 seeds each are 20 to 64 runs, 20m00s to 1h04m one after another, 20M to 64M tokens"
    assert plan.middle <= (plan.any_time or 0) <= plan.high
