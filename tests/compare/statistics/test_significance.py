"""The statistics agree with scipy and textbooks, and simulations confirm their error rates."""

import math

import numpy as np
import pytest
from scipy import stats

from lmtrain.compare.statistics.conclusions import conclude, plus_minus
from lmtrain.compare.statistics.group import ReplicateGroup
from lmtrain.compare.statistics.significance import (
    ALPHA,
    POWER,
    half_width,
    holm_correction,
    paired_t_test,
    pooled_noise,
    pooled_t_test,
    power,
    seeds_needed,
    spearman,
    welch_t_test,
)

A = [3.01, 3.03, 2.99, 3.02, 3.00]
B = [3.04, 3.05, 3.01, 3.06, 3.02]


def group(label: str, values: list[float], **settings: object) -> ReplicateGroup:
    start = tuple((key, value) for key, value in settings.items() if key.startswith(("model", "data")))
    return ReplicateGroup(label, settings or {"lr": label}, dict(enumerate(values)), start)


def test_welchs_test_agrees_with_scipy() -> None:
    ours, theirs = welch_t_test(A, B[:3]), stats.ttest_ind(A, B[:3], equal_var=False)
    low, high = theirs.confidence_interval()
    assert ours.p == pytest.approx(theirs.pvalue)
    assert (ours.value - ours.half_width, ours.value + ours.half_width) == pytest.approx((low, high))


def test_the_paired_test_agrees_with_scipy() -> None:
    ours, theirs = paired_t_test(A, B), stats.ttest_rel(A, B)
    low, high = theirs.confidence_interval()
    assert ours.p == pytest.approx(theirs.pvalue)
    assert (ours.value - ours.half_width, ours.value + ours.half_width) == pytest.approx((low, high))


def test_the_pooled_test_of_two_groups_is_students_test() -> None:
    noise = pooled_noise([A, B])
    assert noise is not None
    assert noise.df == 8
    assert pooled_t_test(A, B, noise).p == pytest.approx(stats.ttest_ind(A, B).pvalue)


def test_the_interval_of_a_mean_agrees_with_scipy() -> None:
    low, high = stats.t.interval(0.95, len(A) - 1, np.mean(A), stats.sem(A))
    assert half_width(A) == pytest.approx((high - low) / 2)
    assert math.isnan(half_width([3.0]))


def test_without_noise_p_is_zero_or_one() -> None:
    assert welch_t_test([3.0, 3.0], [3.1, 3.1]).p == 0
    assert welch_t_test([3.0, 3.0], [3.0, 3.0]).p == 1


def test_holms_correction_agrees_with_the_paper() -> None:
    # The running maximum of 0.01·4, 0.02·3, 0.03·2, 0.04·1.
    assert holm_correction([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm_correction([0.9, 0.8]) == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(("difference", "seeds"), [(0.5, 64), (0.8, 26), (1.0, 17)])
def test_the_seeds_needed_agree_with_cohens_tables(difference: float, seeds: int) -> None:
    assert seeds_needed(difference, 1.0) == seeds  # Cohen 1988, table 2.4.1, alpha 0.05, power 0.80
    assert power(difference, 1.0, seeds) >= POWER > power(difference, 1.0, seeds - 1)


def test_no_number_of_seeds_detects_a_difference_of_zero() -> None:
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(1e-9, 1.0) is None
    assert seeds_needed(0.1, 0.0) == 2


@pytest.mark.parametrize("test", [welch_t_test, paired_t_test])
def test_one_in_twenty_equal_settings_seems_to_differ(test: object) -> None:
    generator = np.random.default_rng(1)
    draws = generator.standard_normal((3000, 2, 5))
    rate = np.mean([test(a, b).p < ALPHA for a, b in draws])  # type: ignore[operator]
    assert 0.035 < rate < 0.06  # with five seeds, Welch's test is slightly conservative


def test_nineteen_in_twenty_intervals_contain_the_true_mean_and_the_true_difference() -> None:
    generator = np.random.default_rng(2)
    draws = 3.0 + 0.02 * generator.standard_normal((3000, 2, 4))
    assert 0.938 < np.mean([abs(np.mean(a) - 3.0) <= half_width(a) for a, _ in draws]) < 0.962
    differences = [welch_t_test(a, b) for a, b in draws]
    assert 0.938 < np.mean([abs(each.value) <= each.half_width for each in differences]) < 0.965


def test_the_recommended_seeds_detect_the_difference_four_times_in_five() -> None:
    seeds = seeds_needed(0.02, 0.015)
    assert seeds is not None
    generator = np.random.default_rng(3)
    draws = 0.015 * generator.standard_normal((2000, 2, seeds)) + np.array([0.0, 0.02])[:, None]
    assert 0.77 < np.mean([welch_t_test(a, b).p < ALPHA for a, b in draws]) < 0.85


def test_the_best_of_several_equal_settings_is_seldom_called_better() -> None:
    """The best is chosen by the values that are tested, so uncorrected tests would call it better too often."""
    generator = np.random.default_rng(4)
    called = 0
    for draw in generator.standard_normal((200, 4, 4)):
        concluded = conclude([group(str(index), list(values)) for index, values in enumerate(draw)])
        called += any(comparison.p < ALPHA for comparison in concluded.comparisons)
    assert called / 200 < 0.07


def test_a_clear_difference_is_reported_in_a_plain_sentence() -> None:
    first, *_ = conclude([group("lr=2", [x + 0.2 for x in A[::-1]]), group("lr=1", A)]).sentences
    assert first.startswith("lr=1 is better than lr=2 by 0.200 ± 0.012")
    assert first.endswith(", 5 seeds each)")


def test_higher_is_better_for_some_metrics() -> None:
    first, *_ = conclude([group("lr=1", A), group("lr=2", [x + 0.2 for x in B])], sign=-1).sentences
    assert first.startswith("lr=2 is better than lr=1 by")


def test_an_unclear_difference_comes_with_the_number_of_seeds_that_would_detect_it() -> None:
    concluded = conclude([group("a", A[:3]), group("b", [3.02, 3.00, 3.03])], difference=0.01)
    noise = concluded.noise
    assert noise is not None
    needed = seeds_needed(0.01, noise.sd)
    assert needed is not None
    assert concluded.sentences[0].startswith("cannot tell a from b: ")
    assert f"the noise between seeds is {noise.sd:.2g}; {needed - 3} more seeds each" in concluded.sentences[0]
    assert concluded.sentences[0].endswith("would detect a difference of 0.01")


def test_one_seed_per_setting_is_no_evidence() -> None:
    (sentence,) = conclude([group("a", [3.0]), group("b", [2.0])]).sentences
    assert sentence.startswith("cannot tell b from a: b is better by 1, but with one seed each")


def test_a_setting_with_one_seed_uses_the_noise_of_the_others_and_says_so() -> None:
    concluded = conclude([group("a", [3.0]), group("b", B)])
    assert concluded.comparisons[0].difference.test == "t-test with the pooled noise"
    assert any("1 of 2 settings has only one seed: its noise" in sentence for sentence in concluded.sentences)


def test_equal_seeds_are_paired_if_they_give_the_same_start() -> None:
    def test_of(key: str, values: list[float]) -> str:
        two = [group("a", A, **{key: 1}), group("b", values, **{key: 2})]
        return conclude(two).comparisons[0].difference.test

    assert test_of("optimizer.lr", B) == "paired t-test"
    assert test_of("model.d_model", B) == "Welch's t-test"
    assert test_of("data.batch_size", B) == "Welch's t-test"
    assert test_of("optimizer.lr", B[:4]) == "Welch's t-test"


def test_values_are_rounded_to_the_precision_of_the_interval() -> None:
    assert plus_minus(0.0213, 0.0061) == "0.021 ± 0.006"
    assert plus_minus(0.0213, 0.0121) == "0.021 ± 0.012"
    assert plus_minus(3.14159, math.nan) == "3.142"
    assert plus_minus(120.4, 30.0) == "120 ± 30"


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
