"""Tables are drawn with the mean, variance and correlation that their design states."""

import numpy as np
import pytest

from lmtrain.benchmark.verdicts.drawing import draw_noise, draw_table, equal_design


@pytest.mark.parametrize("shape", ["normal", "lognormal", "t3"])
def test_noise_has_mean_0_and_variance_1(shape: str) -> None:
    values = draw_noise(shape, 400_000, np.random.default_rng(1))
    assert abs(values.mean()) < 0.01
    assert abs(values.var() - 1) < (0.2 if shape == "t3" else 0.03)  # t3 has no fourth moment


def test_equal_seeds_have_the_stated_correlation() -> None:
    design = equal_design(2, 50_000, correlation=0.8, sds=(1.0, 3.0), means=(5.0, 7.0))
    first, second = (np.array(group.sample) for group in draw_table(design, np.random.default_rng(1)))
    assert abs(np.corrcoef(first, second)[0, 1] - 0.8) < 0.01
    assert abs(first.mean() - 5) < 0.02
    assert abs(second.std() - 3) < 0.03


def test_values_that_are_lost_leave_two_seeds_at_least() -> None:
    generator = np.random.default_rng(1)
    counts = [len(one.values) for _ in range(200) for one in draw_table(equal_design(3, 5, lost=0.5), generator)]
    assert min(counts) == 2
    assert max(counts) == 5
