"""What the launchers of others (joblib, submitit, Ray) run for each job of a sweep, in processes of their own."""

import os
import sys
import time
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lmtrain.config import set_up_hydra
from lmtrain.job_directory import search_path
from lmtrain.jobs import DONE, Ended, Job, JobPool
from lmtrain.launcher import JobFailedError, JobStoppedError

POLL_S = 0.1

set_up_hydra()  # such a process imports this module alone, and has configs to read and a directory to name


def run_job(cfg: DictConfig) -> float | None:
    """Runs the job as the process launcher would; its objective.

    Raises:
        JobFailedError: it is not done.
        JobStoppedError: nor shall another one be started here.
    """
    settings = HydraConfig.get()
    here = settings.runtime.cwd
    if Path(here).is_dir():
        os.chdir(here)
        if here not in sys.path:
            sys.path.insert(0, here)  # a user's own model
    directory = Path(settings.runtime.output_dir)
    with JobPool(
        n_jobs=1,
        gpus_per_job=None,  # the launcher's business
        retry_failed=cfg.retry_failed,
        search_path=search_path(settings),
    ) as pool:
        pool.submit(Job(tuple(settings.overrides.task), directory, directory.name))
        ended: list[Ended] = []
        while not ended:
            ended = pool.poll()
            time.sleep(POLL_S)
        stopped = pool.stopped
    if ended[0].status in DONE:
        return ended[0].objective
    if stopped is not None:
        raise JobStoppedError(stopped)
    raise JobFailedError(ended[0])
