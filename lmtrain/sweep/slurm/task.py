"""Defines the task that Slurm runs on a node: one job of a sweep, which continues by itself after it was stopped."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmtrain.errors import INTERRUPTED, TERMINATED
from lmtrain.sweep.job import Job, JobEnd
from lmtrain.sweep.one_job import enter_folder, run_here
from lmtrain.sweep.slurm import queue
from lmtrain.sweep.slurm.tasks import this_task
from lmtrain.terminal.console import console

WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)  # Slurm sends one of them when the time of the job is almost over


@dataclass(frozen=True)
class SlurmTask:
    """Runs a job of a sweep; submitit pickles this object and calls it on a node.

    A job that is stopped because its time is over, or because Slurm needs its node, saves its state. Then the task puts
    itself back into the queue, and continues the run when Slurm starts it again.

    Attributes:
        folder: The folder in which the sweep was started.
        search_path: The override that gives the job additional config folders, if any.
        retry_failed: Whether a failed or diverged run is continued.
        max_num_timeout: How often a job may go back into the queue because its time is over.
    """

    folder: Path
    search_path: tuple[str, ...]
    retry_failed: bool
    max_num_timeout: int

    def __call__(self, job: Job) -> JobEnd | None:
        """Run the job and return how it ended; return None in all tasks of the Slurm job but the first.

        Raises:
            SystemExit: a signal stopped the job, and Slurm starts it again, or somebody has cancelled it.
        """
        enter_folder(self.folder)
        task = this_task()
        if task is not None and task.rank > 0:
            task.join()
            return None
        variables_of = task.invite if task is not None else None
        ended, signals = run_here(job, self.search_path, retry_failed=self.retry_failed, variables_of=variables_of)
        if task is not None:
            task.dismiss()
        if ended.status != INTERRUPTED.status or not signals:
            return ended
        job_id, warned = queue.this_job(), bool({*signals} & {*WARNINGS})
        restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        if warned and restarts >= self.max_num_timeout:
            _say(
                f"{job.title}: saved; does not go on, because of hydra.launcher.max_num_timeout={self.max_num_timeout}"
            )
        elif warned or queue.is_preempted(job_id):
            accepted = queue.requeue(job_id)
            _say(f"{job.title}: saved, and {'back in' if accepted else 'refused by'} Slurm's queue")
        # Without a result, whoever waits for the job asks Slurm whether it is still in the queue.
        raise SystemExit(TERMINATED.exit_code)

    def checkpoint(self, job: Job) -> Any:
        """Return what submitit runs after a warning that came before the job had started."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, job)


def _say(words: str) -> None:
    console.print(words, soft_wrap=True)
