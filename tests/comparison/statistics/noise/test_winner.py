"""The mean of the best setting is corrected for having been picked."""

import numpy as np
import pytest

from lmtrain.comparison.statistics.group import ReplicateGroup
from lmtrain.comparison.statistics.noise.model import NoiseModel, fit_noise
from lmtrain.comparison.statistics.noise.winner import mean_on_new_seeds


def model_of(table: np.ndarray) -> NoiseModel:
    model = fit_noise([ReplicateGroup(str(place), {}, dict(enumerate(row))) for place, row in enumerate(table)])
    assert model is not None
    return model


@pytest.mark.parametrize(("sign", "spread"), [(1, 0.0), (-1, 0.0), (1, 0.5)])
def test_most_of_the_luck_of_the_best_is_taken_off(sign: int, spread: float) -> None:
    generator = np.random.default_rng(0)
    naive, corrected = [], []
    for _ in range(300):
        truth = spread * generator.standard_normal(8)
        model = model_of(truth[:, None] + generator.standard_normal((8, 4)))
        best, mean = mean_on_new_seeds(model, sign)
        naive.append(sign * (model.means[best] - truth[best]))
        corrected.append(sign * (mean - truth[best]))
    assert np.mean(naive) < -0.45  # in units of the noise, of which the mean of four seeds has half
    assert abs(np.mean(corrected)) < 0.45 * abs(np.mean(naive))


def test_nothing_is_taken_off_a_setting_that_is_far_ahead() -> None:
    table = np.random.default_rng(1).standard_normal((5, 4))
    table[2] -= 50
    model = model_of(table)
    assert mean_on_new_seeds(model, 1) == (2, pytest.approx(float(model.means[2]), abs=1e-9))


def test_the_correction_is_that_of_the_parametric_bootstrap() -> None:
    model = model_of(np.random.default_rng(2).standard_normal((4, 3)) + np.arange(4)[:, None])
    errors = model.sd / np.sqrt(model.counts)
    drawn = model.means + errors * np.random.default_rng(3).standard_normal((200_000, 4))
    wins = drawn.argmin(axis=1)
    luck = (drawn.min(axis=1) - model.means[wins]).mean()
    best, mean = mean_on_new_seeds(model, 1)
    assert mean == pytest.approx(model.means[best] - luck, abs=0.005)


def test_the_best_is_never_expected_to_be_worse_than_the_average_setting() -> None:
    model = model_of(np.random.default_rng(2).standard_normal((4, 3)))
    assert mean_on_new_seeds(model, 1)[1] == pytest.approx(model.means.mean())
    assert mean_on_new_seeds(model, -1)[1] >= model.means.mean() - 1e-12
