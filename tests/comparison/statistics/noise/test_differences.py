"""The noise model agrees with textbook tests where these apply, and its errors are those that the docs promise."""

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from lmtrain.comparison.statistics.group import ReplicateGroup
from lmtrain.comparison.statistics.noise.differences import Differences
from lmtrain.comparison.statistics.noise.model import NoiseModel, fit_noise
from lmtrain.comparison.statistics.significance import ALPHA

A = [3.01, 3.03, 2.99, 3.02, 3.00]
B = [3.04, 3.05, 3.01, 3.06, 3.02]


def fitted(*samples: Sequence[float], seeds: Sequence[Sequence[int]] | None = None, starts: str = "") -> NoiseModel:
    groups = [
        ReplicateGroup(
            str(place),
            {},
            dict(zip(seeds[place] if seeds else range(len(values)), values, strict=True)),
            starts[place] if starts else None,
        )
        for place, values in enumerate(samples)
    ]
    model = fit_noise(groups)
    assert model is not None
    return model


def test_two_settings_with_equal_seeds_get_the_paired_t_test() -> None:
    difference, p = Differences(fitted(A, B)).between(0, 1)
    theirs = stats.ttest_rel(A, B)
    low, high = theirs.confidence_interval()
    assert (p, difference.p, difference.df) == (pytest.approx(theirs.pvalue), pytest.approx(theirs.pvalue), 4)
    assert (difference.value - difference.half_width, difference.value + difference.half_width) == (
        pytest.approx((low, high))
    )


def test_two_settings_without_common_seeds_pass_students_and_welchs_test() -> None:
    few, many = [0.0, 4.0, 9.0], [30.0, 30.1, 30.05, 29.9, 30.0, 30.1, 29.95, 30.0]
    for a, b in [(A, B), (few, many), (many, few)]:
        model = fitted(a, b, starts="ab")
        assert not model.paired
        both = [stats.ttest_ind(a, b, equal_var=equal).pvalue for equal in (True, False)]
        assert Differences(model).between(0, 1)[1] == pytest.approx(max(both))
    apart = fitted(A, B, seeds=[range(5), range(5, 10)])
    assert Differences(apart).between(0, 1) == Differences(fitted(A, B, starts="ab")).between(0, 1)


def test_a_complete_table_is_the_textbooks_two_way_analysis_with_tukeys_test() -> None:
    table = np.random.default_rng(0).standard_normal((4, 6)) + 3 * np.random.default_rng(1).standard_normal(6)
    model = fitted(*table)
    rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    assert (model.sd**2, model.df) == (pytest.approx((rest**2).sum() / 15), 15)
    assert model.means == pytest.approx(table.mean(axis=1))
    between = 4 * table.mean(axis=0).var(ddof=1)
    ratio = (between - model.sd**2) / 4 / model.sd**2
    assert model.correlation == pytest.approx(ratio / (1 + ratio))
    difference, p = Differences(model).between(0, 1)
    q = abs(difference.value) / (model.sd / np.sqrt(6))
    own = stats.ttest_rel(table[0], table[1]).pvalue * 4 / 3
    assert p == pytest.approx(max(stats.studentized_range.sf(q, 4, 15), min(1, own)), rel=1e-3)


def test_without_seeds_in_common_tukeys_and_welchs_tests_must_agree() -> None:
    samples = [A, [x + 0.02 * place for place, x in enumerate(B)], [3.01, 3.03, 3.05, 2.98, 3.02]]
    model = fitted(*samples, starts="abc")
    pooled = np.sqrt(np.mean([np.var(sample, ddof=1) for sample in samples]) * 2 / 5)
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        own = np.sqrt((np.var(samples[a], ddof=1) + np.var(samples[b], ddof=1)) / 5)
        q = abs(np.mean(samples[a]) - np.mean(samples[b])) / max(pooled, own) * np.sqrt(2)
        welch = stats.ttest_ind(samples[a], samples[b], equal_var=False).pvalue
        expected = max(stats.studentized_range.sf(q, 3, 12), welch)
        assert Differences(model).between(a, b)[1] == pytest.approx(expected, rel=1e-3)


def test_the_baseline_is_tested_as_by_dunnett() -> None:
    samples = [A, B, [3.01, 3.03, 3.05, 2.98, 3.02]]
    found = Differences(fitted(*samples, starts="abc"), baseline=0)
    theirs = stats.dunnett(*samples[1:], control=samples[0], rng=np.random.default_rng(0)).pvalue
    assert [found.between(0, other)[1] for other in (1, 2)] == pytest.approx(list(theirs), abs=0.006)


@pytest.mark.parametrize("baseline", [None, 1])
def test_an_interval_excludes_zero_exactly_where_p_is_below_alpha(baseline: int | None) -> None:
    generator = np.random.default_rng(3)
    for _ in range(25):
        shift = generator.uniform(0, 3)
        samples = [generator.standard_normal(n) * s + m for n, s, m in [(4, 1, 0), (4, 1, shift), (3, 2, 0), (2, 1, 1)]]
        found = Differences(fitted(*samples), baseline=baseline)
        for other in (0, 2, 3):
            difference, p = found.between(1, other)
            assert (abs(difference.value) > difference.half_width) == (p < ALPHA)


def test_missing_seeds_do_not_move_a_setting() -> None:
    """The last seed is bad for all; the setting that lacks it is not better for that."""
    seeds = np.array([0.0, 0.02, -0.01, 0.01, 0.9])
    noise = 0.001 * np.random.default_rng(4).standard_normal((3, 5))
    table = 3.0 + seeds + noise
    model = fitted(table[0], table[1], table[2, :4], seeds=[range(5), range(5), range(4)])
    assert np.ptp(model.means) < 0.005
    assert abs(table[2, :4].mean() - table[0].mean()) > 0.15


@pytest.mark.parametrize("noise", [1e-3, 1e-6, 1e-8, 1e-10])
def test_a_missing_seed_leaves_the_paired_test_of_the_others(noise: float) -> None:
    """Equal seeds have nearly everything in common, so the seed that one setting lacks says almost nothing."""
    generator = np.random.default_rng(6)
    table = 3 + 0.05 * generator.standard_normal(5) + noise * generator.standard_normal((2, 5))
    model = fitted(table[0], table[1, :4], seeds=[range(5), range(4)])
    difference, p = Differences(model).between(0, 1)
    theirs = stats.ttest_rel(table[0, :4], table[1, :4])
    assert p == pytest.approx(theirs.pvalue, rel=0.2)
    assert difference.half_width < 6 * noise


def test_no_noise_model_without_a_setting_of_two_values() -> None:
    assert fit_noise([ReplicateGroup("a", {}, {1: 2.0}), ReplicateGroup("b", {}, {1: 3.0})]) is None


def test_a_confirming_second_seed_does_not_undo_a_verdict() -> None:
    """The second value of the setting differs from the first one by less than half of the noise."""
    generator = np.random.default_rng(5)
    undone = decided = 0
    for _ in range(300):
        others = list(generator.standard_normal((2, 5)))
        first = generator.uniform(2, 6)
        if Differences(fitted(*others, [first])).between(0, 2)[1] < ALPHA:
            decided += 1
            second = first + generator.uniform(-0.5, 0.5)
            undone += Differences(fitted(*others, [first, second])).between(0, 2)[1] >= ALPHA
    assert decided > 100
    assert undone / decided < 0.02


def any_difference(model: NoiseModel) -> bool:
    found = Differences(model)
    k = len(model.means)
    return any(found.between(a, b)[1] < ALPHA for a in range(k) for b in range(a))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sds", "counts", "correlation"),
    [
        ((1, 1, 1), (3, 3, 3), 0.0),
        ((1, 1, 1), (3, 3, 3), 0.9),
        ((10, 1, 1), (3, 3, 3), 0.5),
        ((10, 1, 1), (3, 10, 10), 0.0),
        ((1, 1), (2, 2), 0.0),
        ((1, 1, 1), (1, 5, 5), 0.5),
    ],
)
def test_equal_settings_seldom_seem_to_differ(sds: Sequence[float], counts: Sequence[int], correlation: float) -> None:
    generator = np.random.default_rng(6)
    tables = 400
    wrong = 0
    for _ in range(tables):
        common = np.sqrt(correlation) * generator.standard_normal(max(counts))
        samples = [
            sd * (common[:n] + np.sqrt(1 - correlation) * generator.standard_normal(n))
            for sd, n in zip(sds, counts, strict=True)
        ]
        wrong += any_difference(fitted(*samples))
    assert wrong / tables < ALPHA + 3 * np.sqrt(ALPHA * (1 - ALPHA) / tables)
