"""Bad steps are judged like a float64 reference, without waiting, and reported to the host in time."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtrain.loop.bad_steps import MIN_STEPS, BadStep, BadStepMonitor, SpikeDetector

CPU = torch.device("cpu")


def judge(detector: SpikeDetector, loss: float, grad_norm: float) -> tuple[bool, list[float]]:
    bad, scores = detector.judge(torch.tensor(loss), torch.tensor(grad_norm))
    return bool(bad), scores.tolist()


def reference_scores(history: list[tuple[float, float]], values: tuple[float, float], window: int) -> list[float]:
    """Return the robust z-scores, computed by numpy in float64 with the lower of two medians."""
    scores = []
    for column, value in enumerate(values):
        seen = np.array([row[column] for row in history[-window:]], np.float32).astype(np.float64)
        if len(seen) < min(MIN_STEPS, window):
            scores.append(0.0)
            continue
        median = np.sort(seen)[(len(seen) - 1) // 2]
        mad = np.sort(np.abs(seen - median))[(len(seen) - 1) // 2]
        scores.append((value - median) / max(1.4826 * mad, 0.01 * abs(median)))
    return scores


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), window=st.sampled_from([4, 20, 33]), zscore=st.sampled_from([3.0, 8.0]))
def test_scores_match_a_reference_and_bad_steps_stay_out_of_the_window(seed: int, window: int, zscore: float) -> None:
    generator = np.random.default_rng(seed)
    detector = SpikeDetector(zscore, window, CPU)
    history: list[tuple[float, float]] = []
    for step in range(70):
        scale = generator.choice([1.0, 1.0, 1.0, 6.0]) if step > 25 else 1.0
        values = (scale * (4 - step / 50 + generator.normal(0, 0.2)), scale * generator.uniform(0.5, 1.5))
        if step % 31 == 30:
            values = (math.nan, 1.0) if seed % 2 else (1.0, math.inf)
        expected = reference_scores(history, values, window)
        bad, scores = judge(detector, *values)
        if all(map(math.isfinite, values)):
            # float32 rounds a value of at most 30 medians to 2⁻²⁴ of it; the spread is at least 0.01 medians.
            assert scores == pytest.approx(expected, rel=1e-6, abs=30 * 2**-24 / 0.01)
            if all(abs(score - zscore) > 0.01 for score in expected):
                assert bad == any(score > zscore for score in expected)
        else:
            assert bad
        if not bad:
            history.append(values)
        in_window = detector.window[~detector.window.isnan().any(dim=1)]
        assert np.array_equal(in_window.numpy(), np.array(history[-window:], np.float32).reshape(-1, 2))


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("zscore", [None, 5.0])
def test_values_that_are_not_finite_are_bad(loss: float, zscore: float | None) -> None:
    detector = SpikeDetector(zscore, 8, CPU)
    assert judge(detector, loss, 1.0)[0]
    assert judge(detector, 1.0, loss)[0]
    assert not judge(detector, 1.0, 1.0)[0]
    scaled = SpikeDetector(zscore, 8, CPU, ignore_norm=True)  # the gradient scaler handles the norm
    assert judge(scaled, loss, 1.0)[0]
    assert not judge(scaled, 1.0, loss)[0]


def test_early_steps_and_low_values_are_no_spikes() -> None:
    detector = SpikeDetector(5.0, 64, CPU)
    for _ in range(MIN_STEPS - 1):
        assert not judge(detector, 1.0, 1.0)[0]
    assert not judge(detector, 100.0, 1.0)[0]  # still too early
    for _ in range(20):
        assert not judge(detector, 1.0, 1.0)[0]
    assert judge(detector, 1.5, 1.0)[0]
    assert judge(detector, 1.0, 1.5)[0]
    assert not judge(detector, 0.1, 0.1)[0]


def test_a_bad_step_is_reported_during_the_next_step() -> None:
    monitor = BadStepMonitor(None)
    detector = SpikeDetector(None, 1, CPU)

    def note(step: int, loss: float) -> None:
        losses = [torch.tensor(loss), torch.tensor(2.0)]
        values: Any = torch.tensor(loss), torch.tensor(0.5)
        monitor.record(step, 8 * step, *values, detector.judge(*values), losses)

    note(1, 1.0)
    note(2, math.inf)
    assert list(monitor.bad_steps(newest=False)) == []
    note(3, 1.0)
    (bad,) = monitor.bad_steps(newest=False)
    assert (bad.step, bad.first_sample, bad.loss, bad.grad_norm) == (2, 16, math.inf, 0.5)
    assert bad.micro_batch_losses == [math.inf, 2.0]
    assert str(bad) == "the loss of step 2 is inf"
    note(4, math.nan)
    assert [bad.step for bad in monitor.bad_steps(newest=True)] == [4]
    assert list(monitor.bad_steps(newest=True)) == []


def test_the_message_names_the_value_with_the_larger_score() -> None:
    bad = BadStep(7, 0, 5.0, 9.0, [6.0, 40.0], 5.0, [5.0])
    assert str(bad) == "the gradient norm of step 7 is 9, 40.0 robust standard deviations too high"
