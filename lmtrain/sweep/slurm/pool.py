"""Runs the jobs of a sweep that still have work to do as one Slurm job array, and follows them in Slurm's queue."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmtrain.errors import FAILED, INTERRUPTED
from lmtrain.files.durable import write_atomically
from lmtrain.files.limited import read_json
from lmtrain.files.lock import locked_folder
from lmtrain.run.directory import holds_run
from lmtrain.sweep.job import NOT_STARTED, Job, JobEnd
from lmtrain.sweep.job_directory import remaining_work
from lmtrain.sweep.slurm import queue
from lmtrain.sweep.slurm.task import SlurmTask
from lmtrain.terminal.console import console
from lmtrain.terminal.units import counted

JOB_IDS = "slurm.json"  # in the sweep's directory: the id of the Slurm job that runs each of its jobs
RESULTS_POLL_S = 2.0
QUEUE_POLL_S = 15.0  # Slurm's controller serves everybody on the cluster
WAITING = ("PENDING", "CONFIGURING", "REQUEUED")  # states of a job that Slurm has not started
GONE_TIMES = 2  # how often in a row Slurm must say that a job is gone, before it counts as ended


@dataclass
class ClusterJob:
    """A job in Slurm's queue; `task` is its handle in submitit."""

    job: Job
    task: Any
    resumed: bool
    state: str = "PENDING"
    begun: bool = False
    gone: int = 0


class SlurmPool:
    """Follows jobs on a cluster, with the interface of `JobPool`.

    No method blocks for long. Jobs that were given to `submit` become one job array at the next `poll`, except those
    that have ended earlier, and those that are still in the queue because an earlier command has submitted them.

    Args:
        executor: submitit's executor, with all options.
        folder: Its folder; `%j` stands for the id of the Slurm job.
        task: What runs a job on a node.
        sweep_dir: The directory of the sweep.
    """

    stopped: int | None = None  # a signal ends the command that waits, and not the jobs

    def __init__(self, executor: Any, folder: Path, task: SlurmTask, sweep_dir: Path) -> None:
        self._executor = executor
        self._folder = folder
        self._task = task
        self._sweep_dir = sweep_dir
        self._new: list[Job] = []
        self._queued: list[ClusterJob] = []
        self._looked_at_results = self._asked_slurm = time.monotonic()

    def submit(self, job: Job) -> None:
        self._new.append(job)

    @property
    def unfinished(self) -> int:
        """The number of submitted jobs that have not ended."""
        return len(self._new) + len(self._queued)

    @property
    def running(self) -> Sequence[ClusterJob]:
        """The jobs that run on a node, as far as is known here."""
        return [one for one in self._queued if one.state not in WAITING]

    @property
    def ids(self) -> list[str]:
        """The ids of the Slurm jobs and job arrays in the queue."""
        return list(dict.fromkeys(one.task.job_id.partition("_")[0] for one in self._queued))

    def poll(self) -> list[JobEnd]:
        """Submit the new jobs, and return the jobs that have ended since the last call."""
        ended = self._submit_new() if self._new else []
        now = time.monotonic()
        if now - self._looked_at_results >= RESULTS_POLL_S:
            self._looked_at_results = now
            ended += self._take(one for one in self._queued if one.task.paths.result_pickle.exists())
        if now - self._asked_slurm >= QUEUE_POLL_S:
            self._asked_slurm = now
            if (states := queue.job_states()) is not None:
                self._update(states)
                ended += self._take(one for one in self._queued if one.gone >= GONE_TIMES)
        return ended

    def _submit_new(self) -> list[JobEnd]:
        import submitit  # imported here, because it is an optional package

        new, self._new = self._new, []
        earlier = read_json(self._sweep_dir / JOB_IDS)
        states = (queue.job_states() or {}) if earlier else {}
        ended, waiting = [], []
        for job in new:
            job_id = str(earlier.get(job.directory.name))
            if states.get(job_id, "COMPLETED") not in queue.ENDED:
                task: Any = submitit.SlurmJob(folder=self._folder, job_id=job_id)
                self._queued.append(ClusterJob(job, task, False, states[job_id]))
                continue
            settings = {"retry_failed": self._task.retry_failed}
            work = remaining_work(job.directory, job.overrides, self._task.search_path, **settings)
            if work.status is not None:
                objective = work.result.get("objective")
                ended.append(JobEnd(job, work.status, objective, work.reason, work.result, ran=False))
            else:
                waiting.append((job, work.resumes))
        if self._queued:
            names = " ".join(self.ids)
            console.print(
                f"{counted(len(self._queued), 'job')} still in Slurm's queue from an earlier command: {names}"
            )
        if waiting:
            self._submit_array(waiting)
        return ended

    def _submit_array(self, waiting: Sequence[tuple[Job, bool]]) -> None:
        with queue.outside_of_this_job():
            tasks = self._executor.map_array(self._task, [job for job, _ in waiting])
        new = [ClusterJob(job, task, resumes) for (job, resumes), task in zip(waiting, tasks, strict=True)]
        self._queued += new
        with locked_folder(self._sweep_dir):
            ids = read_json(self._sweep_dir / JOB_IDS) | {one.job.directory.name: one.task.job_id for one in new}
            write_atomically(self._sweep_dir / JOB_IDS, json.dumps(ids, indent=2) + "\n")
        name = tasks[0].job_id.partition("_")[0]
        console.print(f"submitted {counted(len(new), 'job')} to Slurm: squeue -j {name}; to cancel: scancel {name}")

    def _update(self, states: Mapping[str, str]) -> None:
        for one in self._queued:
            one.state = states.get(one.task.job_id, one.state)
            if one.state in WAITING:
                one.resumed |= one.begun  # when Slurm starts it again
            one.begun |= one.state not in WAITING
            one.gone = one.gone + 1 if states.get(one.task.job_id, "COMPLETED") in queue.ENDED else 0

    def _take(self, ended: Any) -> list[JobEnd]:
        taken = list(ended)
        self._queued = [one for one in self._queued if not any(one is other for other in taken)]
        return [_end_of(one) for one in taken]


def _end_of(one: ClusterJob) -> JobEnd:
    """Return how a job ended: what its task returned or, if it was killed, what is in its directory."""
    if one.task.paths.result_pickle.exists():
        first = one.task.task(0)  # the other tasks of a job only train with it
        if (error := first.exception()) is None:
            returned: JobEnd = first.result()
            return JobEnd(one.job, returned.status, returned.objective, returned.reason, returned.result, returned.ran)
        lines = [line for line in str(error).splitlines() if line.strip("- ")]
        return JobEnd(one.job, FAILED.status, None, f"{lines[-4]} ({one.task.paths.stderr})", {}, ran=True)
    result = read_json(one.job.directory / "result.json")
    status = result.get("status") or (INTERRUPTED.status if holds_run(one.job.directory) else NOT_STARTED)
    return JobEnd(one.job, status, result.get("objective"), f"Slurm: {one.state}", result, ran=bool(result))
