"""The share that a setting explains alone is right for outcomes whose cause is known."""

import numpy as np
import pytest
from scipy import stats

from lmtrain.comparison.statistics.importance import importance


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_setting_with_its_best_value_in_the_middle_is_detected(generator: np.random.Generator) -> None:
    lr = np.repeat([1e-4, 1e-3, 1e-2], 20)
    outcomes = np.where(lr == 1e-3, 3.0, 3.5) + 0.01 * generator.standard_normal(60)
    assert abs(stats.spearmanr(lr, outcomes).statistic) < 0.3  # a rank correlation would not detect it
    found = importance("lr", lr.tolist(), outcomes.tolist())
    assert found is not None
    assert found.share > 0.6
    assert found.p == pytest.approx(1 / 2000)


def test_many_different_numbers_are_grouped_by_quartile(generator: np.random.Generator) -> None:
    lr = generator.uniform(0, 1, 100)
    found = importance("lr", lr.tolist(), (lr**2).tolist())
    assert found is not None
    assert found.levels == 4
    assert found.share > 0.9


def test_noise_explains_nothing(generator: np.random.Generator) -> None:
    shares = []
    false = 0
    for _ in range(100):
        found = importance("seed", [1, 2, 3, 4, 5] * 8, generator.standard_normal(40).tolist())
        assert found is not None
        shares.append(found.share)
        false += found.p < 0.05
        assert (found.p < 0.05) == (found.share > found.chance) or found.share == pytest.approx(found.chance)
    assert np.mean(shares) < 0.05
    assert false / 100 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 100)


@pytest.mark.slow
def test_share_and_p_agree_with_scipy(generator: np.random.Generator) -> None:
    values = ["a"] * 6 + ["b"] * 8 + ["c"] * 6
    outcomes = np.round(generator.standard_normal(20) + np.repeat([0, 0.5, 1], [6, 8, 6]), 1)  # with ties
    groups = [outcomes[:6], outcomes[6:14], outcomes[14:]]
    theirs = stats.kruskal(*groups)
    shuffled = stats.permutation_test(
        groups, lambda *own: stats.kruskal(*own).statistic, n_resamples=999, alternative="greater", rng=0
    )
    found = importance("key", values, outcomes.tolist())
    assert found is not None
    assert found.share == pytest.approx((theirs.statistic - 2) / 17)
    assert found.p == pytest.approx(shuffled.pvalue, abs=0.03)


def test_p_of_few_groups_is_exact() -> None:
    # Of the 10 ways to choose which two of five outcomes come first, 2 separate the two levels completely.
    found = importance("key", [1, 1, 2, 2, 2], [1.0, 2.0, 3.0, 4.0, 5.0])
    assert found is not None
    assert found.p == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("values", "outcomes"),
    [
        ([1, 2, 1, 2], [1.0, 2.0, 3.0, 4.0]),  # too few
        (["a"] * 6, [1.0, 2, 3, 4, 5, 6]),  # one value
        (list("abcdef"), [1.0, 2, 3, 4, 5, 6]),  # as many values as runs
        ([1, 2] * 3, [1.0] * 6),  # one outcome
        ([1, 2] * 4, [1.0, 2.0, 3.0, 4.0, *[float("nan")] * 4]),  # too few without the diverged ones
    ],
)
def test_importance_is_none_if_it_cannot_be_calculated(values: list[object], outcomes: list[float]) -> None:
    assert importance("key", values, outcomes) is None
