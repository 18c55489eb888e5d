"""A parameter that decides the loss is important, and in noise none is more than chance."""

import math

import numpy as np
import pytest

pytest.importorskip("optuna")

import optuna

from lmtrain.sweep.search import importance as module
from lmtrain.sweep.search.importance import importances
from lmtrain.sweep.search.study import quiet_optuna

SPACE = {
    "optimizer.lr": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True),
    "model.dropout": optuna.distributions.FloatDistribution(0, 0.5),
}


def searched(generator: np.random.Generator, count: int, effect: float) -> optuna.Study:
    study = optuna.create_study()
    for _ in range(count):
        params = {"optimizer.lr": 10 ** generator.uniform(-4, -1), "model.dropout": generator.uniform(0, 0.5)}
        loss = effect * math.log10(params["optimizer.lr"] / 1e-2) ** 2 + generator.standard_normal()
        study.add_trial(optuna.trial.create_trial(params=params, distributions=SPACE, value=loss))
    return study


def test_a_parameter_that_decides_the_loss_is_more_than_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PERMUTATIONS", 39)
    with quiet_optuna():
        found = importances(searched(np.random.default_rng(0), 60, effect=20.0))
    assert next(iter(found)) == "optimizer.lr"
    assert found["optimizer.lr"].more_than_chance
    assert not found["model.dropout"].more_than_chance
    assert sum(one.share for one in found.values()) == pytest.approx(1)


@pytest.mark.slow
def test_in_noise_few_searches_have_a_parameter_that_mattered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PERMUTATIONS", 19)
    generator = np.random.default_rng(1)
    times = 20
    with quiet_optuna():
        found = [importances(searched(generator, 20, effect=0.0)) for _ in range(times)]
    false = sum(any(one.more_than_chance for one in each.values()) for each in found)
    assert false / times <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / times)
    assert np.mean([max(one.share for one in each.values()) for each in found]) > 0.6  # the shares alone look like much


def test_two_trials_have_no_importances() -> None:
    with quiet_optuna():
        assert importances(searched(np.random.default_rng(0), 2, effect=1.0)) == {}
        assert importances(optuna.create_study()) == {}
