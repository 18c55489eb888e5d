"""When a challenger is given up: only where the hoped-for remainder of the budget would not be enough."""

import math

import numpy as np
import pytest
from scipy import stats

from lmtrain.comparison.looking.futility import OPTIMISM, best_reachable_log_e_value
from lmtrain.comparison.statistics.sequential import log_e_value


def test_the_hoped_for_evidence_is_that_of_pairs_at_the_upper_limit() -> None:
    differences = [0.3, -0.2, 0.1, 0.4]
    n, budget = len(differences), 20
    mean, sd = float(np.mean(differences)), float(np.std(differences, ddof=1))
    hoped = stats.t.interval(2 * OPTIMISM - 1, n - 1, loc=mean, scale=sd / math.sqrt(n))[1]
    final = (n * mean + (budget - n) * hoped) / budget
    # Values with this mean and standard deviation; the evidence depends on nothing else.
    around = np.array([-1.0, 1.0] * (budget // 2))
    values = final + around * sd / around.std(ddof=1)
    assert best_reachable_log_e_value(differences, budget) == pytest.approx(log_e_value(values.tolist()), rel=1e-9)


def test_few_pairs_say_nothing() -> None:
    assert best_reachable_log_e_value([], 20) == math.inf
    assert best_reachable_log_e_value([-5.0, -6.0], 20) == math.inf


def test_what_is_behind_has_little_hope_and_what_is_ahead_has_more() -> None:
    noise = np.array([0.3, -0.4, 0.2, 0.1])
    hopes = [best_reachable_log_e_value((noise + shift).tolist(), 20) for shift in (-1.0, 0.0, 1.0)]
    assert hopes == sorted(hopes)
    assert hopes[0] < -math.log(0.05) < hopes[2]


def test_a_spent_budget_leaves_the_evidence_that_there_is() -> None:
    differences = [0.3, -0.2, 0.1, 0.4]
    mean, sd = np.mean(differences), np.std(differences, ddof=1)
    around = np.array([-1.0, 1.0, -1.0, 1.0])
    values = mean + around * sd / around.std(ddof=1)
    assert best_reachable_log_e_value(differences, 4) == pytest.approx(log_e_value(values.tolist()))
