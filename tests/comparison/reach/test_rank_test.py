"""Tests the times to reach a value against scipy's Kaplan–Meier estimate and exact rank tests, and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from lmtrain.comparison.reach.rank_test import (
    PAIRED,
    UNPAIRED,
    ReachTimes,
    compare_times,
    median,
    median_interval,
    permutation_p,
    rank_scores,
    reach_by_setting,
    survival,
    turnbull,
)

TINY = 1e-9  # a time known exactly is an interval of this length


def censored_sample(generator: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return times rounded so that some are equal, and whether each is the end of a run instead."""
    times, ends = generator.exponential(100, n).round(), generator.uniform(20, 300, n).round()
    return np.minimum(times, ends) + 1, times > ends


def intervals_of(times: np.ndarray, censored: np.ndarray) -> list[tuple[float, float]]:
    return [(t, math.inf) if c else (t - TINY, t) for t, c in zip(times.tolist(), censored.tolist(), strict=True)]


@pytest.mark.parametrize("seed", range(5))
def test_known_and_censored_times_give_the_kaplan_meier_estimate(seed: int) -> None:
    times, censored = censored_sample(np.random.default_rng(seed), 30)
    expected = stats.ecdf(stats.CensoredData.right_censored(times, censored)).sf
    found = survival(*turnbull(intervals_of(times, censored)), expected.quantiles)
    seen = expected.probabilities > 0 if censored[np.argmax(times)] else slice(None)
    assert found[seen] == pytest.approx(expected.probabilities[seen], abs=1e-6)
    below = expected.quantiles[expected.probabilities <= 0.5]
    assert median(intervals_of(times, censored))[1] == pytest.approx(below[0] if len(below) else math.inf)


def test_bracketed_times_maximise_the_likelihood() -> None:
    """The gradient of the log likelihood is at most n in every cell, and n where there is probability."""
    generator = np.random.default_rng(0)
    left = generator.integers(0, 20, 40)
    intervals = [(float(a), float(a + b)) for a, b in zip(left, generator.integers(1, 8, 40), strict=True)]
    cells, shares = turnbull(intervals)
    inside = np.array([[low <= a and b <= high for a, b in cells] for low, high in intervals])
    gradient = (inside / (inside @ shares)[:, None]).sum(0)
    assert shares.sum() == pytest.approx(1)
    assert np.all(gradient <= 40 * 1.001)
    assert gradient[shares > 1e-4] == pytest.approx(40, rel=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_known_times_give_the_exact_test_of_mann_and_whitney(seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.lognormal(5, 0.3, 6), generator.lognormal(5.3, 0.3, 5)
    scores = rank_scores(intervals_of(np.append(a, b), np.zeros(11, bool)))
    assert scores.mean() == pytest.approx(0, abs=1e-6)
    expected = stats.mannwhitneyu(a, b, method="exact").pvalue
    assert permutation_p(scores[:6], scores[6:], paired=False) == pytest.approx(expected)


def test_censored_scores_have_the_sign_of_the_log_rank_test() -> None:
    generator = np.random.default_rng(4)
    (a, a_censored), (b, b_censored) = (censored_sample(generator, 100) for _ in range(2))
    b = b * 1.5
    scores = rank_scores(intervals_of(np.append(a, b), np.append(a_censored, b_censored)))
    expected = stats.logrank(
        stats.CensoredData.right_censored(a, a_censored), stats.CensoredData.right_censored(b, b_censored)
    )
    z = scores[:100].sum() / math.sqrt(scores.var(ddof=1) * 100 * 100 / 200)
    assert expected.pvalue < 0.05
    assert z == pytest.approx(abs(expected.statistic), rel=0.3)


def test_exact_p_values_are_those_of_scipy() -> None:
    generator = np.random.default_rng(1)
    a, b = generator.normal(size=5), generator.normal(1, size=5)

    def difference(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray(np.mean(x, axis=axis) - np.mean(y, axis=axis))

    for paired, kind in ((False, "independent"), (True, "samples")):
        expected = stats.permutation_test((a, b), difference, permutation_type=kind, vectorized=True, n_resamples=10**6)
        assert permutation_p(a, b, paired=paired) == pytest.approx(expected.pvalue)


def test_the_smallest_p_of_few_seeds() -> None:
    def early_and_late(n: int) -> tuple[ReachTimes, ReachTimes]:
        first = {seed: {"step": (float(seed), seed + 1.0)} for seed in range(n)}
        return ReachTimes("a", first), ReachTimes(
            "b", {seed: {"step": (100.0 + seed, 101.0 + seed)} for seed in range(n)}
        )

    assert compare_times(*early_and_late(3), "step") == (pytest.approx(2 / math.comb(6, 3)), UNPAIRED)
    assert compare_times(*early_and_late(4), "step") == (pytest.approx(2 / math.comb(8, 4)), UNPAIRED)
    assert compare_times(*early_and_late(6), "step") == (pytest.approx(2 / 2**6), PAIRED)


def test_the_interval_of_the_median_covers_it_also_with_brackets_and_censoring() -> None:
    """True median 100 × ln 2; evaluations every 25 steps; every run ends at step 200."""
    generator = np.random.default_rng(2)
    covered, finite = [], []
    for _ in range(2_000):
        times = generator.exponential(100, 9)
        left = np.floor(times / 25) * 25
        intervals = [(200.0, math.inf) if t > 200 else (a, a + 25) for t, a in zip(times, left.tolist(), strict=True)]
        low, high = median_interval(intervals)
        covered.append(low <= 100 * math.log(2) <= high)
        finite.append(math.isfinite(high))
    assert np.mean(covered) >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 2_000)
    assert np.mean(finite) > 0.5
    assert median_interval([(1.0, 2.0)] * 5) == (0.0, math.inf)  # five seeds cannot give 95%


@pytest.mark.parametrize("shared", [0.0, 0.8])
@pytest.mark.parametrize(
    ("n", "every", "noise_of"),
    [(4, (25, 25), (0.3, 0.3)), (7, (25, 25), (0.3, 0.3)), (5, (10, 100), (0.3, 0.3)), (7, (25, 25), (0.15, 0.3))],
)
def test_equal_settings_are_rarely_told_apart(
    shared: float, n: int, every: tuple[int, int], noise_of: tuple[float, float]
) -> None:
    """Seeds share a part of their noise. The settings may be evaluated at different intervals, or differ in noise."""
    generator = np.random.default_rng(3)
    wrong = []
    for _ in range(300):
        common = generator.normal(size=n)
        settings = []
        for interval, sd in zip(every, noise_of, strict=True):
            noise = math.sqrt(shared) * common + math.sqrt(1 - shared) * generator.normal(size=n)
            times = 200 * np.exp(sd * noise)
            brackets = [(math.floor(t / interval) * interval, math.ceil(t / interval) * interval) for t in times]
            brackets = [(300.0, math.inf) if high > 300 else (low, high) for low, high in brackets]
            settings.append(ReachTimes("", {seed: {"step": own} for seed, own in enumerate(brackets)}))
        wrong.append(compare_times(settings[0], settings[1], "step")[0] < 0.05)
    assert np.mean(wrong) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


def test_settings_are_ranked_and_never_reaching_it_is_last() -> None:
    def setting(label: str, *times: tuple[float, float]) -> ReachTimes:
        return ReachTimes(
            label, {seed: {"step": time, "tokens": (10 * time[0], 10 * time[1])} for seed, time in enumerate(times)}
        )

    never = (600.0, math.inf)
    found = reach_by_setting(
        [
            setting("never", *[never] * 7),
            setting("late", *[(400.0, 500.0)] * 4, never, never, never),
            setting("soon", *[(100.0, 200.0)] * 6, (500.0, 600.0)),
        ],
        "step",
        ("step", "tokens"),
    )
    assert [each.label for each in found] == ["soon", "late", "never"]
    assert [each.reached for each in found] == [7, 4, 0]
    assert [each.medians["step"] for each in found] == [(100, 200), (400, 500), (600, math.inf)]
    assert found[0].medians["tokens"] == (1_000, 2_000)
    assert found[0].intervals["step"] == (100, 600)  # from the first to the last of seven
    assert found[1].intervals["step"] == (400, math.inf)
    assert found[0].p is None
    assert found[2].p == pytest.approx(min(1, 3 * 2 / 2**7))
