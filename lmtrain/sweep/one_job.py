"""Runs one job of a sweep in a process that a launcher has started for it, on this machine or on another one."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lmtrain.sweep.job import Job, JobEnd
from lmtrain.sweep.pool import JobPool, VariablesOf
from lmtrain.terminal.paths import change_folder

POLL_S = 0.1


def enter_folder(folder: Path) -> None:
    """Change to the folder in which a sweep was started; on another machine, it may not exist."""
    if folder.is_dir():
        change_folder(folder)
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))  # for a user's model


def run_here(
    job: Job, search_path: Sequence[str], *, retry_failed: bool, variables_of: VariablesOf | None = None
) -> tuple[JobEnd, Sequence[int]]:
    """Run a job in a fresh interpreter; return how it ended, and the signals that this process has received.

    A signal stops the job, which saves everything. `variables_of` is that of `JobPool`.
    """
    with JobPool(
        n_jobs=1,
        gpus_per_job=None,  # the launcher assigns GPUs
        retry_failed=retry_failed,
        search_path=search_path,
        variables_of=variables_of,
    ) as pool:
        pool.submit(job)
        while not (ended := pool.poll()):
            time.sleep(POLL_S)
        return ended[0], pool.signals
