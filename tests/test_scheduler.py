"""Schedules match their formulas at every step and at the ends, and have the right properties for all settings."""

import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lmtrain.config.build import build
from lmtrain.config.check import check
from lmtrain.config.compose import compose
from lmtrain.errors import ConfigError
from lmtrain.scheduler import DECAYS, constant, cosine, cyclic, linear, power, table, wsd

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


@given(lr=rates, share=st.floats(0, 1), warmup_steps=warmups, max_steps=runs)
def test_linear_is_the_line_between_its_ends(lr, share, warmup_steps, max_steps):
    settings = {"lr": lr, "min_lr": lr * share, "warmup_steps": warmup_steps, "max_steps": max_steps}
    steps = np.arange(max(warmup_steps, max_steps) + 3)
    line = np.interp(steps, [warmup_steps, max(max_steps, warmup_steps)], [lr, lr * share])
    expected = np.where(steps < warmup_steps, lr * (steps + 1) / (warmup_steps + 1), line)
    expected[(steps >= warmup_steps) & (steps >= max_steps)] = lr * share
    np.testing.assert_allclose([linear(int(step), **settings) for step in steps], expected, rtol=1e-12)


@given(
    lr=rates,
    share=st.floats(0, 1),
    warmup_steps=st.integers(0, 50),
    stable_steps=st.integers(0, 100),
    decay_steps=st.integers(0, 100),
    decay=st.sampled_from(sorted(DECAYS)),
)
def test_wsd_rises_stays_and_falls(lr, share, warmup_steps, stable_steps, decay_steps, decay):
    begin = warmup_steps + stable_steps
    settings = {"lr": lr, "min_lr": lr * share, "warmup_steps": warmup_steps, "decay_steps": decay_steps}
    curve = [wsd(step, **settings, decay=decay, max_steps=begin + decay_steps) for step in range(begin + decay_steps)]
    assert all(before < after for before, after in pairwise(curve[:warmup_steps]))
    assert set(curve[warmup_steps:begin]) <= {lr}
    assert all(later <= earlier * (1 + ROUNDING) for earlier, later in pairwise(curve[begin:]))
    assert all(rate > 0 for rate in curve)
    end = wsd(begin + decay_steps, **settings, decay=decay, max_steps=begin + decay_steps)
    assert end == (lr * share if decay_steps else lr)


@pytest.mark.parametrize(("decay", "halfway"), [("sqrt", 1 - math.sqrt(0.5)), ("linear", 0.5), ("cosine", 0.5)])
def test_the_decay_of_wsd_has_the_shape_of_the_paper(decay, halfway):
    settings = {"lr": 2.0, "min_lr": 1.0, "warmup_steps": 10, "decay_steps": 100, "max_steps": 500}
    assert wsd(399, **settings, decay=decay) == 2.0
    assert wsd(400, **settings, decay=decay) == 2.0
    assert wsd(450, **settings, decay=decay) == pytest.approx(1 + halfway, rel=ROUNDING)


def test_a_trunk_and_its_branch_have_the_same_rate_until_the_branch_decays():
    trunk = {"lr": 1.0, "min_lr": 0.0, "warmup_steps": 5, "decay": "sqrt", "decay_steps": 0, "max_steps": 1000}
    branch = {**trunk, "decay_steps": 20, "max_steps": 320}
    assert [wsd(step, **trunk) for step in range(300)] == [wsd(step, **branch) for step in range(300)]
    assert wsd(10**6, **trunk) == 1.0


def test_a_decay_that_begins_within_the_warmup_never_exceeds_it():
    settings = {"lr": 1.0, "min_lr": 0.0, "warmup_steps": 10, "decay_steps": 8, "decay": "linear", "max_steps": 12}
    curve = [wsd(step, **settings) for step in range(12)]
    assert max(curve) < 1
    assert curve[:4] == [(step + 1) / 11 for step in range(4)]


@given(lr=rates, exponent=st.floats(0, 2), warmup_steps=warmups, factor=st.integers(1, 50))
def test_power_falls_as_a_power_of_the_warmup(lr, exponent, warmup_steps, factor):
    settings = {"lr": lr, "exponent": exponent, "warmup_steps": warmup_steps}
    step = factor * (warmup_steps + 1) - 1
    assert power(step, **settings) == pytest.approx(lr * factor**-exponent, rel=1e-12)
    assert power(warmup_steps, **settings) == lr


def test_the_inverse_square_root_is_that_of_attention_is_all_you_need():
    """Up to a factor and a shift by one step, it is min(step^-0.5, step · warmup^-1.5)."""
    warmup = 40
    theirs = [min(step**-0.5, step * warmup**-1.5) for step in range(1, 400)]
    ours = [power(step - 1, lr=warmup**-0.5, exponent=0.5, warmup_steps=warmup - 1) for step in range(1, 400)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("growth", [1, 2, 3])
def test_cycles_are_those_of_torch(growth):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 10, growth, eta_min=0.1)
    expected = []
    for _ in range(100):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    settings = {"lr": 1.0, "min_lr": 0.1, "warmup_steps": 3, "cycle_steps": 10, "growth": growth}
    np.testing.assert_allclose([cyclic(3 + step, **settings) for step in range(100)], expected, rtol=1e-9)


def test_a_cycle_that_grows_by_a_part_of_a_step_is_rounded_up():
    settings = {"lr": 1.0, "min_lr": 0.1, "warmup_steps": 3, "cycle_steps": 10, "growth": 1.5}
    curve = [cyclic(step, **settings) for step in range(52)]
    assert [step for step, rate in enumerate(curve) if rate == 1.0] == [3, 3 + 10, 3 + 10 + 15, 3 + 10 + 15 + 23]


@given(
    lr=rates,
    points=st.lists(st.tuples(st.integers(0, 500), st.floats(0, 10)), min_size=1, unique_by=lambda point: point[0]),
)
def test_a_table_is_interpolated(lr, points):
    points = sorted(points)
    steps = range(600)
    expected = lr * np.interp(steps, [step for step, _ in points], [share for _, share in points])
    np.testing.assert_allclose([table(step, lr=lr, points=points) for step in steps], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("scheduler.points=[[10,1.0],[10,0.5]]", "has step 10 after step 10; the steps must increase"),
        ("scheduler.points=[]", "scheduler.points"),
        ("scheduler.points=[[0,-1.0]]", "scheduler.points"),
    ],
)
def test_a_table_with_mistakes_is_refused(override, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        check(compose(["scheduler=table", override]), groups=["scheduler"])


@pytest.mark.parametrize("choice", ["cosine", "constant", "linear", "wsd", "inverse_sqrt", "power", "cyclic", "table"])
def test_every_shipped_schedule_learns_in_every_step(choice):
    cfg = check(compose([f"scheduler={choice}"]), groups=["scheduler", "optimizer", "trainer"])
    schedule = build(cfg.scheduler)
    curve = [schedule(step) for step in range(cfg.trainer.max_steps)]
    assert all(0 < rate <= cfg.optimizer.lr * (1 + ROUNDING) for rate in curve)
    assert max(curve) == pytest.approx(cfg.optimizer.lr)
