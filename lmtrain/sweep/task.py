"""What the launchers of others (joblib, submitit, Ray) run for each job of a sweep, in processes of their own."""

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
    """Runs a sweep's job as the process launcher would; `folder` is the one that the sweep was started in.

    A launcher pickles it, and calls it in a process that knows of lmtrain nothing but this; the resolvers that name
    the job's directory come with the state that Hydra's launchers hand over.
    """

    folder: Path

    def __call__(self, cfg: DictConfig) -> float | None:
        """Run the job; return its objective.

        Raises:
            JobFailedError: the job is not done.
            JobStoppedError: a signal stopped it, and no other job may be started here.
        """
        if self.folder.is_dir():  # of another machine, perhaps
            change_folder(self.folder)
            if str(self.folder) not in sys.path:
                sys.path.insert(0, str(self.folder))  # a user's own model
        register_plugins()  # Hydra has started its plugins anew
        settings = HydraConfig.get()
        directory = Path(os.path.abspath(self.folder / settings.sweep.dir / settings.sweep.subdir))
        with JobPool(
            n_jobs=1,
            gpus_per_job=None,  # the launcher's business
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
