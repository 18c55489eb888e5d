"""Asks Slurm about jobs, and puts jobs back into its queue."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# States of a job that has left the queue, from squeue(1); all others, also unknown ones, are in it.
ENDED = frozenset(
    (
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"),
        *("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
    )
)
TIMEOUT_S = 60


def job_states() -> Mapping[str, str] | None:
    """Return the state of each of this user's jobs that Slurm remembers, by id; None if Slurm does not answer.

    The id is `ARRAY_TASK` for a job of an array. Slurm forgets a job a few minutes after its end.
    """
    # One question about all jobs: a list of ids is an error as soon as Slurm has forgotten one of them.
    command = ["squeue", f"--user={os.getuid()}", "--noheader", "--array", "--states=all", "--format=%i %T"]
    text = _answer(command)
    return None if text is None else dict(line.split(maxsplit=1) for line in text.splitlines() if " " in line.strip())


def is_preempted(job_id: str) -> bool:
    """Return whether Slurm is taking the resources of a running job for another one.

    During the grace time of a partition, the job still runs, and Slurm does not requeue it if it ends by then.
    """
    fields = dict(word.partition("=")[::2] for word in (_answer(["scontrol", "show", "job", job_id]) or "").split())
    return fields.get("JobState") == "RUNNING" and fields.get("PreemptTime", "None") not in ("None", "Unknown")


def requeue(job_id: str) -> bool:
    """Put a running job back into the queue, which ends it; return whether Slurm accepted."""
    return _answer(["scontrol", "requeue", job_id]) is not None


def this_job() -> str:
    """Return the id of the Slurm job that this process belongs to."""
    # SLURM_JOB_ID of the first job of an array would stand for the whole array.
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]


@contextmanager
def outside_of_this_job() -> Iterator[None]:
    """Hide Slurm's variables of the job that this process belongs to, if any; `sbatch` would take them as options."""
    of_this_job = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("SLURM_", "SLURMD_", "SRUN_")) and name != "SLURM_CONF" and "SLURM_JOB_ID" in os.environ
    }
    for name in of_this_job:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(of_this_job)


def _answer(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
