"""Defines the task that third-party launchers (joblib, submitit, Ray) run for each job of a sweep, in a new process."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lmtrain.errors import INTERRUPTED, SUCCESSFUL
from lmtrain.sweep.job import Job
from lmtrain.sweep.job_config import sweep_search_path
from lmtrain.sweep.launcher import JobFailedError, JobStoppedError
from lmtrain.sweep.one_job import enter_folder, run_here
from lmtrain.sweep.plugins import register_plugins


@dataclass(frozen=True)
class RunJob:
    """Runs a job as the process launcher would; `folder` is the folder in which the sweep was started.

    A launcher pickles this object and calls it in a new process, in which nothing else of lmtrain is set up. Hydra's
    launchers pass on the resolvers that name the job's directory.
    """

    folder: Path

    def __call__(self, cfg: DictConfig) -> float | None:
        """Run the job and return its objective.

        Raises:
            JobFailedError: the job did not complete.
            JobStoppedError: a signal stopped the job, so no other job may start in this process.
        """
        enter_folder(self.folder)
        register_plugins()
        settings = HydraConfig.get()
        directory = Path(os.path.abspath(self.folder / settings.sweep.dir / settings.sweep.subdir))
        job = Job(tuple(settings.overrides.task), directory, directory.name)
        ended, signals = run_here(job, sweep_search_path(settings), retry_failed=cfg.retry_failed)
        if ended.status in SUCCESSFUL:
            return ended.objective
        warned = ended.status == INTERRUPTED.status and signal.SIGUSR2 in signals
        if warned and callable(signal.getsignal(signal.SIGUSR2)):
            signal.raise_signal(signal.SIGUSR2)  # submitit's own handler, which starts the job again
        if signals:
            raise JobStoppedError(signals[0])
        raise JobFailedError(ended)
