"""Defines the task that third-party launchers (joblib, submitit, Ray) run for each job of a sweep, in a new process."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lmtrain.errors import SUCCESSFUL
from lmtrain.sweep.job import Job
from lmtrain.sweep.job_config import sweep_search_path
from lmtrain.sweep.launcher import JobFailedError, JobStoppedError
from lmtrain.sweep.plugins import register_plugins
from lmtrain.sweep.pool import JobPool
from lmtrain.terminal.paths import change_folder

POLL_S = 0.1


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
        if self.folder.is_dir():  # on another machine, the folder may not exist
            change_folder(self.folder)
            if str(self.folder) not in sys.path:
                sys.path.insert(0, str(self.folder))  # for a user's model
        register_plugins()
        settings = HydraConfig.get()
        directory = Path(os.path.abspath(self.folder / settings.sweep.dir / settings.sweep.subdir))
        with JobPool(
            n_jobs=1,
            gpus_per_job=None,  # the launcher assigns GPUs
            retry_failed=cfg.retry_failed,
            search_path=sweep_search_path(settings),
        ) as pool:
            pool.submit(Job(tuple(settings.overrides.task), directory, directory.name))
            while not (ended := pool.poll()):
                time.sleep(POLL_S)
            stopped = pool.stopped
        if ended[0].status in SUCCESSFUL:
            return ended[0].objective
        if stopped is not None:
            raise JobStoppedError(stopped)
        raise JobFailedError(ended[0])
