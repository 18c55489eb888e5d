"""Measures how much each parameter of a search mattered, and how much chance alone would have shown."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState, create_trial

LEVEL = 0.05
PERMUTATIONS = 99
FEWEST_TRIALS = 5


@dataclass(frozen=True)
class ParameterImportance:
    """How much a parameter distinguishes good trials from the others, as a share of all parameters.

    `chance` is the share above which, if the losses had nothing to do with the parameters, any of them would be in only
    one of twenty searches. A share below it is no more than chance.
    """

    share: float
    chance: float

    @property
    def more_than_chance(self) -> bool:
        return self.share > self.chance


def importances(study: optuna.Study) -> dict[str, ParameterImportance]:
    """Return the importance of each parameter, largest first (PED-ANOVA, arXiv:2304.10255); empty for too few trials.

    The shares always add up to 1, also in pure noise. So the same is calculated for permuted losses. The permutations
    are the same ones whenever the report is written.
    """
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state is TrialState.COMPLETE]
    if len(trials) < FEWEST_TRIALS:
        return {}
    observed = _raw([trial.value or 0.0 for trial in trials], trials, study.direction)
    total = sum(observed.values())
    if not total > 0:
        return {}
    generator = np.random.default_rng(len(trials))
    values = np.array([trial.value for trial in trials], dtype=float)
    drawn = [_raw(generator.permutation(values).tolist(), trials, study.direction) for _ in range(PERMUTATIONS)]
    table = np.array([[own.get(name, 0.0) for name in observed] for own in drawn])
    limits = dict(zip(observed, _limits(table).tolist(), strict=True))
    ranked = sorted(observed, key=lambda name: -observed[name])
    return {name: ParameterImportance(observed[name] / total, limits[name] / total) for name in ranked}


def _limits(drawn: np.ndarray) -> np.ndarray:
    """Return a limit per column that all columns of a row exceed together in a share `LEVEL` of the rows (rows, n)."""
    each = np.maximum(np.quantile(drawn, 1 - LEVEL, axis=0, method="higher"), 1e-12)
    largest = np.max(drawn / each, axis=1)
    return np.asarray(each * np.quantile(largest, 1 - LEVEL, method="higher"))


def _raw(
    values: Sequence[float], trials: Sequence[FrozenTrial], direction: optuna.study.StudyDirection
) -> Mapping[str, float]:
    """Return the importances, not divided by their sum, of trials with these values; empty if there are too few."""
    study = optuna.create_study(direction=direction)
    study.add_trials(
        [
            create_trial(params=trial.params, distributions=trial.distributions, value=value)
            for trial, value in zip(trials, values, strict=True)
        ]
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Optuna warns if the result would be arbitrary
            return PedAnovaImportanceEvaluator().evaluate(study)
    except (ValueError, RuntimeError, UserWarning):
        return {}
