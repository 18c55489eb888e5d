"""Tests the decision from pairs: its verdicts, that they agree with the interval, and its promise by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtrain.comparison.statistics.decision import decide_pair
from lmtrain.comparison.statistics.sequential import running_log_e_values

NOISE = np.random.default_rng(0).standard_normal(40)


def test_a_clear_improvement_is_kept_and_the_opposite_is_dropped() -> None:
    differences = 1.0 + 0.3 * NOISE[:8]
    kept, dropped = decide_pair(differences, alpha=0.05), decide_pair(-differences, alpha=0.05)
    assert (kept.verdict, kept.reason) == ("keep", "better")
    assert (dropped.verdict, dropped.reason) == ("drop", "worse")
    assert kept.log_evidence > math.log(20) > dropped.log_evidence
    assert kept.interval == pytest.approx((-dropped.interval[1], -dropped.interval[0]))


def test_with_few_pairs_one_more_is_asked_for() -> None:
    for differences in ([], [9.0], [9.0, 8.0], [9.0, 9.1, 8.9]):
        decision = decide_pair(differences, alpha=0.05)
        assert (decision.verdict, decision.interval) == ("more", (-math.inf, math.inf))
    assert decide_pair([9.0, 9.1, 8.9, 9.2], alpha=0.05).verdict == "keep"


def test_a_margin_drops_what_helps_too_little() -> None:
    differences = 0.01 * NOISE[:12]
    assert decide_pair(differences, alpha=0.05).verdict == "more"
    decision = decide_pair(differences, alpha=0.05, margin=0.05)
    assert (decision.verdict, decision.reason) == ("drop", "too little")
    assert decision.interval[1] < 0.05


def test_a_sure_improvement_below_the_margin_is_dropped_as_too_little() -> None:
    differences = 0.01 + 0.001 * NOISE[:12]
    assert decide_pair(differences, alpha=0.05).verdict == "keep"
    decision = decide_pair(differences, alpha=0.05, margin=0.05)
    assert (decision.verdict, decision.reason) == ("drop", "too little")
    below_zero = decide_pair(NOISE[:12] - NOISE[:12].mean() - 0.1, alpha=0.05, margin=1.5)
    assert (below_zero.verdict, below_zero.reason) == ("drop", "too little")  # it is not surely worse


def test_a_drop_may_need_less_evidence_than_a_keep() -> None:
    differences = list(-0.5 + NOISE[:8] - NOISE[:8].mean())
    assert decide_pair(differences, alpha=0.001).verdict == "more"
    assert decide_pair(differences, alpha=0.001, drop_alpha=0.3).reason == "worse"


def test_equal_pairs_are_no_effect() -> None:
    assert decide_pair([0.0, 0.0], alpha=0.05).reason == "no effect"


@given(
    st.lists(st.floats(-3, 3), min_size=2, max_size=20),
    st.sampled_from([0.2, 0.05, 0.001]),
)
def test_verdict_and_interval_agree(differences: list[float], alpha: float) -> None:
    decision = decide_pair(differences, alpha=alpha)
    assert (decision.verdict == "keep") == (decision.interval[0] > 0)
    if abs(decision.log_evidence + math.log(alpha)) > 1e-6:
        assert (decision.verdict == "keep") == (decision.log_evidence > -math.log(alpha))
    worse = decide_pair([-value for value in differences], alpha=alpha)
    assert (worse.verdict == "keep") == (decision.reason == "worse")


@pytest.mark.parametrize("alpha", [0.2, 0.05])
def test_a_challenger_without_effect_is_kept_as_rarely_as_promised(alpha: float) -> None:
    values = np.random.default_rng(1).standard_normal((4000, 40))
    kept = (running_log_e_values(values) >= -math.log(alpha)).any(axis=1).mean()
    assert kept <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / 4000)
