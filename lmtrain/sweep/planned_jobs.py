"""The jobs that a command line with `-m` would start, without starting one."""

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
    """A sweep's jobs; of a search a single one, with the values that the config itself has, `trials` times."""

    jobs: Sequence[Job]
    trials: int | None  # of a search
    n_jobs: int  # at once


def planned_jobs(overrides: Sequence[str]) -> PlannedJobs:
    """Return what `python -m lmtrain -m OVERRIDES` would run; an experiment may say it as well.

    Raises:
        ConfigError: a mistake in the overrides, a search that does not say its number of trials.
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
        raise ConfigError(f"hydra.sweeper.n_trials={trials}: the plan of a search needs the number of its trials")
    sweep_dir = Path(composed.hydra.sweep.dir).absolute()
    return PlannedJobs([Job(tuple(fixed), sweep_dir / "0", "a trial, at the config's own values")], trials, n_jobs)
