"""Starts each job of a sweep in a fresh interpreter, so that no flag, thread count or memory is shared between jobs."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from lmtrain.config.compose import compose
from lmtrain.config.overrides import quoted
from lmtrain.errors import SUCCESSFUL, ConfigError, InterruptedBySignal
from lmtrain.loop.stop_request import StopRequest
from lmtrain.sweep.job import Job, JobEnd
from lmtrain.sweep.job_config import most_processes, sweep_search_path
from lmtrain.sweep.job_directory import directory_name, name_without_order
from lmtrain.sweep.pool import JobPool
from lmtrain.sweep.progress import run_all

GIVEN_SUBDIR = "hydra.sweep.subdir="
SUBDIR = "${job_directory:${hydra.overrides.task}}"  # as in conf/config.yaml


class JobFailedError(RuntimeError):
    """A job did not complete; `ended` says how it ended. Hydra has no other way to report this than an exception."""

    def __init__(self, ended: JobEnd) -> None:
        super().__init__(ended)
        self.ended = ended

    def __str__(self) -> str:
        return f"{self.ended.job.title}: {self.ended.status}: {self.ended.reason}"


class JobStoppedError(BaseException):
    """A signal stopped a job and the process that started it; the argument is the signal's number."""


@dataclass
class LaunchEnd:
    """The reason for which a launcher ended early: the number of a signal, or an error of the launcher."""

    stopped: int | None = None
    error: Exception | None = None


@contextmanager
def noting_launch_end() -> Iterator[LaunchEnd]:
    """Catch a signal or a launcher's error in the `with` block and store it in the result; a ConfigError is raised."""
    end = LaunchEnd()
    try:
        with StopRequest():
            yield end
    except InterruptedBySignal as signal:
        end.stopped = signal.number
    except JobStoppedError as signal:
        end.stopped = int(signal.args[0])
    except ConfigError:
        raise
    except Exception as error:  # a third-party launcher may raise anything; the jobs that ended still have results
        end.error = error


class ProcessLauncher(Launcher):
    """Runs the jobs of a sweep in processes on this machine (`hydra/launcher=process`).

    Args:
        n_jobs: Number of jobs to run at the same time; null means one per group of `gpus_per_job` GPUs, or one without
            GPUs. If there are more jobs than groups, they share the GPUs evenly.
        gpus_per_job: Number of GPUs for each job, from those in CUDA_VISIBLE_DEVICES or all; 0 hides all GPUs. Jobs of
            several processes get at least as many as they have processes.
    """

    def __init__(self, n_jobs: int | None, gpus_per_job: int) -> None:
        self.n_jobs = n_jobs
        self.gpus_per_job = gpus_per_job
        self.stopped: int | None = None  # the signal that stopped it

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        path = sweep_search_path(self.config.hydra)
        jobs = jobs_of(self.config, job_overrides, initial_job_idx)
        with JobPool(
            n_jobs=self.n_jobs,
            gpus_per_job=self.gpus_per_job,
            retry_failed=self.config.retry_failed,
            search_path=path,
            processes=most_processes(jobs, tuple(path)),
        ) as pool:
            ended = run_all(pool, jobs, path)
            self.stopped = pool.stopped
        return [job_return(one) for one in ended]


def jobs_of(
    config: DictConfig, job_overrides: Sequence[Sequence[str]], first_number: int, swept: Collection[str] = ()
) -> list[Job]:
    """Return a sweep's jobs. Their directories do not depend on the launcher; their titles have what differs.

    A job whose directory already exists keeps it, even if other keys were swept when the directory was made.
    """
    sweep_dir = Path(config.hydra.sweep.dir).absolute()
    found = {name_without_order(path.name): path.name for path in sorted(sweep_dir.glob("*"), reverse=True)}
    shared = Counter(override for overrides in job_overrides for override in set(overrides))
    jobs = []
    for number, overrides in enumerate(job_overrides, first_number):
        if overrides and overrides[-1].startswith(GIVEN_SUBDIR):  # added by `with_directory`
            *overrides, given = overrides
            subdir = given.removeprefix(GIVEN_SUBDIR).strip('"')
        elif names_directories(config):  # saves the time of composing the config
            name = directory_name(overrides, swept)
            subdir = found.get(name_without_order(name), name)
        else:
            numbered = [*config.hydra.overrides.hydra, *overrides, f"hydra.job.num={number}", f"hydra.job.id={number}"]
            subdir = str(compose(numbered, with_hydra=True).hydra.sweep.subdir)
        title = " ".join(override for override in overrides if shared[override] < len(job_overrides))
        jobs.append(Job(tuple(overrides), sweep_dir / subdir, title or directory_name(overrides)))
    return jobs


def names_directories(config: DictConfig) -> bool:
    """Return whether lmtrain, and not the user, names the directories of a sweep's jobs."""
    own: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    return bool(own["subdir"] == SUBDIR)


def with_directory(job: Job) -> list[str]:
    """Return a job's overrides, followed by one that sets its directory under any launcher."""
    return [*job.overrides, f"{GIVEN_SUBDIR}{quoted(job.directory.name)}"]


def job_return(ended: JobEnd) -> JobReturn:
    """Return how a job ended, in Hydra's words."""
    job = JobReturn(overrides=list(ended.job.overrides), task_name="lmtrain", working_dir=str(ended.job.directory))
    job.status = JobStatus.COMPLETED if ended.status in SUCCESSFUL else JobStatus.FAILED
    job.return_value = ended.objective if ended.status in SUCCESSFUL else JobFailedError(ended)
    return job
