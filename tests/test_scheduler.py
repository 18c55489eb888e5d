"""Schedules match their formulas at every step and at the ends, and have the right properties for all settings."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lmtrain.scheduler import constant, cosine

rates = st.floats(min_value=1e-8, max_value=10.0)
warmups = st.integers(0, 300)
runs = st.integers(1, 1_000)
ROUNDING = 1e-14  # relative


def reference(lr: float, min_lr: float, warmup_steps: int, max_steps: int, steps: int) -> np.ndarray:
    """Return the whole curve in float64, put together from its three parts."""
    step = np.arange(steps, dtype=np.float64)
    warmup = lr * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)  # not used below if there is no decay
    decay = min_lr + (lr - min_lr) * np.cos(np.pi / 2 * progress) ** 2  # the half-angle form of (1 + cos) / 2
    return np.select([step < warmup_steps, step < max_steps], [warmup, decay], min_lr)


@pytest.mark.parametrize(
    ("warmup_steps", "max_steps"),
    [(200, 5000), (0, 100), (1, 10), (10, 11), (10, 10), (50, 20), (0, 1)],
)
def test_cosine_matches_its_formula_at_every_step(warmup_steps, max_steps):
    settings = {"lr": 6e-4, "min_lr": 6e-5, "warmup_steps": warmup_steps, "max_steps": max_steps}
    steps = max(warmup_steps, max_steps) + 20
    curve = np.array([cosine(step, **settings) for step in range(steps)])
    np.testing.assert_allclose(curve, reference(**settings, steps=steps), rtol=1e-12, atol=1e-18)


def test_cosine_at_known_points():
    settings = {"lr": 1.0, "min_lr": 0.1, "warmup_steps": 9, "max_steps": 109}
    assert [cosine(step, **settings) for step in (0, 4, 8)] == [0.1, 0.5, 0.9]
    assert cosine(9, **settings) == pytest.approx(1.0, rel=ROUNDING)
    assert cosine(59, **settings) == pytest.approx(0.55, rel=ROUNDING)  # half-way
    assert cosine(34, **settings) == pytest.approx(0.1 + 0.45 * (1 + math.sqrt(0.5)), rel=ROUNDING)  # a quarter
    assert [cosine(step, **settings) for step in (109, 110, 10**9)] == [0.1, 0.1, 0.1]


def test_without_warmup_the_first_step_has_the_peak():
    assert cosine(0, lr=0.5, min_lr=0.0, warmup_steps=0, max_steps=10) == 0.5
    assert constant(0, lr=0.5, warmup_steps=0) == 0.5


@given(lr=rates, share=st.floats(0, 1), warmup_steps=warmups, max_steps=runs)
@example(lr=6e-4, share=0.1, warmup_steps=200, max_steps=100)
@example(lr=6e-4, share=0.0, warmup_steps=0, max_steps=1)
def test_cosine_stays_in_range_and_turns_once(lr, share, warmup_steps, max_steps):
    min_lr = lr * share
    settings = {"lr": lr, "min_lr": min_lr, "warmup_steps": warmup_steps, "max_steps": max_steps}
    curve = [cosine(step, **settings) for step in range(max(warmup_steps, max_steps) + 3)]
    assert all(rate > 0 for rate in curve[:max_steps])  # every step of a run learns
    assert all(min(min_lr, curve[0]) <= rate <= lr * (1 + ROUNDING) for rate in curve)
    assert all(before < after for before, after in pairwise(curve[:warmup_steps]))
    after_warmup = curve[warmup_steps:]
    assert all(later <= earlier * (1 + ROUNDING) for earlier, later in pairwise(after_warmup))
    assert after_warmup[-1] == min_lr


@given(lr=rates, warmup_steps=warmups, steps=runs)
def test_constant_rises_in_equal_steps_and_then_stays(lr, warmup_steps, steps):
    curve = [constant(step, lr=lr, warmup_steps=warmup_steps) for step in range(steps)]
    assert all(0 < rate <= lr for rate in curve)
    np.testing.assert_allclose(
        curve[:warmup_steps], [lr * k / (warmup_steps + 1) for k in range(1, len(curve[:warmup_steps]) + 1)]
    )
    assert set(curve[warmup_steps:]) <= {lr}


@given(lr=rates, warmup_steps=st.integers(1, 300), step=st.integers(0, 299))
def test_both_schedules_have_the_same_warmup(lr, warmup_steps, step):
    if step < warmup_steps:
        expected = cosine(step, lr=lr, min_lr=0.0, warmup_steps=warmup_steps, max_steps=10_000)
        assert constant(step, lr=lr, warmup_steps=warmup_steps) == pytest.approx(expected, rel=ROUNDING)
