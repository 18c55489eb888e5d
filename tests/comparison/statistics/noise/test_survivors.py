"""Diverged runs have the worst rank, and the rank test is exact."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from lmtrain.comparison.statistics.group import ReplicateGroup
from lmtrain.comparison.statistics.noise.survivors import mean_rank_is_better, rank_test, without_value


def group(values: list[float], diverged: int = 0) -> ReplicateGroup:
    return ReplicateGroup("a", {}, dict(enumerate(values)), None, tuple(range(100, 100 + diverged)))


def test_without_ties_the_rank_test_is_the_exact_test_of_mann_and_whitney() -> None:
    generator = np.random.default_rng(0)
    a, b = list(generator.standard_normal(6)), list(generator.standard_normal(5) + 1)
    theirs = stats.mannwhitneyu(a, b, method="exact").pvalue
    assert rank_test(group(a), group(b), 1) == pytest.approx(theirs)
    assert rank_test(group(a), group(b), -1) == pytest.approx(theirs)


def test_diverged_runs_tie_for_the_worst_rank() -> None:
    a, b = [1.0, 2.0, 3.0, 4.0], [2.5]
    ranks = stats.rankdata([*a, *b, *[math.inf] * 3])
    observed = abs(ranks[:4].sum() - 18)
    as_far = [abs(sum(chosen) - 18) >= observed for chosen in itertools.combinations(ranks, 4)]
    assert rank_test(group(a), group(b, diverged=3), 1) == pytest.approx(np.mean(as_far))
    assert mean_rank_is_better(group(a), group(b, diverged=3), 1)
    assert mean_rank_is_better(group(a), group(b, diverged=3), -1)


def test_many_runs_use_the_normal_distribution() -> None:
    generator = np.random.default_rng(1)
    a, b = list(generator.standard_normal(40)), list(generator.standard_normal(40) + 0.5)
    theirs = stats.mannwhitneyu(a, b, method="asymptotic").pvalue
    assert rank_test(group(a), group(b), 1) == pytest.approx(theirs, rel=0.01)


def test_nothing_is_tested_without_runs() -> None:
    assert rank_test(group([1.0]), group([]), 1) == 1.0


def test_what_has_no_value_is_said_with_its_reasons() -> None:
    lost = ReplicateGroup("lr=1", {}, {1: 3.0}, None, (2,), {3: "pruned", 4: "pruned"})
    assert without_value(lost) == "3 of 4 runs of lr=1 have no value (1 diverged, 2 pruned)"
