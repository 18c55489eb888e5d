"""Finds the jobs that a command line with `-m` would start, without starting them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lmtrain.config.compose import compose, config_loader
from lmtrain.config.overrides import parse_overrides
from lmtrain.errors import ConfigError
from lmtrain.sweep.grid import expand_grid
from lmtrain.sweep.job import Job
from lmtrain.sweep.job_directory import register_directory_resolver
from lmtrain.sweep.launcher import jobs_of

GRID = "hydra_plugins.lmtrain.GridSweeper"


@dataclass(frozen=True)
class PlannedJobs:
    """The jobs of a sweep, or one typical job of a search.

    Attributes:
        jobs: The jobs of a sweep; for a search, one job with the values in the config.
        trials: The number of trials of a search; None for a sweep.
        n_jobs: The number of jobs that run at the same time.
    """

    jobs: Sequence[Job]
    trials: int | None
    n_jobs: int


def planned_jobs(overrides: Sequence[str]) -> PlannedJobs:
    """Return the jobs that `python -m lmtrain -m OVERRIDES` would run, from the overrides or an experiment's sweep.

    Raises:
        ConfigError: an override has a mistake, or a search has no number of trials.
    """
    register_directory_resolver()
    fixed = [str(override.input_line) for override in parse_overrides(overrides) if not override.is_sweep_override()]
    composed: Any = compose(fixed, with_hydra=True)
    launcher, sweeper = composed.hydra.launcher, composed.hydra.sweeper
    n_jobs = int(launcher.get("n_jobs") or 1)
    if sweeper["_target_"] == GRID:
        params = OmegaConf.to_container(sweeper.get("params") or OmegaConf.create({}))
        assert isinstance(params, dict)
        with config_loader() as loader:
            grid = expand_grid({str(key): value for key, value in params.items()}, overrides, loader)
        return PlannedJobs(jobs_of(composed, grid.jobs(), 0, grid.swept), None, n_jobs)
    trials = sweeper.get("n_trials")
    if not isinstance(trials, int):
        raise ConfigError(f"hydra.sweeper.n_trials={trials}: give the number of trials to plan a search")
    sweep_dir = Path(composed.hydra.sweep.dir).absolute()
    return PlannedJobs([Job(tuple(fixed), sweep_dir / "0", "a trial with the values in the config")], trials, n_jobs)
