"""Simulated campaigns: the rule of `decide` keeps its false-discovery rate, and the usual loops do not."""

import math

import numpy as np
import pytest

from lmtrain.benchmark.verdicts.scenarios.campaigns import BUDGET, decide_each, simulate_campaigns
from lmtrain.comparison.looking.futility import best_reachable_log_e_value
from lmtrain.comparison.statistics.online_fdr import FDR_LEVEL
from lmtrain.comparison.statistics.sequential import log_e_value


def decide_one_by_one(differences: list[float], level: float) -> tuple[bool, int]:
    """The rule of `decide_each` in plain Python, a pair at a time."""
    for count in range(1, len(differences) + 1):
        if log_e_value(differences[:count]) >= -math.log(level):
            return True, count
        if best_reachable_log_e_value(differences[:count], len(differences)) < -math.log(level):
            return False, count
    return False, len(differences)


def test_the_vectorised_rule_is_the_plain_one() -> None:
    generator = np.random.default_rng(0)
    differences = generator.standard_normal((200, 12)) + generator.choice([0.0, 1.5], (200, 1))
    level = generator.choice([0.05, 0.001], 200)
    kept, pairs = decide_each(differences, level)
    for row, values in enumerate(differences):
        assert decide_one_by_one(values.tolist(), level[row]) == (kept[row], pairs[row])
    assert 20 < kept.sum() < 180


def test_decide_keeps_its_level_where_the_usual_loop_does_not() -> None:
    decided, naive = (simulate_campaigns(one, campaigns=40) for one in ("decide", "three seeds, better mean"))
    assert decided.fdr <= FDR_LEVEL + 3 * decided.fdr_error
    assert naive.fdr > 0.6
    assert decided.true_kept > 8
    assert decided.pairs < 2 * naive.pairs


@pytest.mark.slow
def test_the_level_holds_in_many_campaigns() -> None:
    for gains in ((), (1.0, 2.0)):
        found = simulate_campaigns(campaigns=400, gains=gains, nulls=100)
        assert found.fdr <= FDR_LEVEL + 3 * found.fdr_error
    looked = simulate_campaigns("t-test after each seed", campaigns=100)
    assert looked.fdr > 0.3
    assert looked.pairs > 0.8 * BUDGET * 200
