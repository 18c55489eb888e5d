"""Runs a sweep over all combinations of values: it checks every config first and reports every job at the end."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from lmtrain.comparison.looking.design import record_start
from lmtrain.comparison.runs import RUNNING
from lmtrain.config.hydra_internals import failure_of
from lmtrain.config.keys import did_you_mean
from lmtrain.config.recorded.run_names import SWEEP_CONFIG
from lmtrain.errors import FAILED, INTERRUPTED, ConfigError
from lmtrain.files.limited import read_json
from lmtrain.run.directory import status_without_result
from lmtrain.sweep.grid import expand_grid
from lmtrain.sweep.job import NOT_STARTED, Job, JobEnd
from lmtrain.sweep.job_config import check_job_config, job_config, show_notes, sweep_search_path
from lmtrain.sweep.job_directory import make_sweep_directory, remaining_work
from lmtrain.sweep.launcher import (
    JobFailedError,
    LaunchEnd,
    ProcessLauncher,
    jobs_of,
    names_directories,
    noting_launch_end,
    with_directory,
)
from lmtrain.sweep.report import (
    raise_if_unfinished,
    show_launcher_failure,
    show_second_look,
    show_sweep_report,
    write_sweep_report,
)
from lmtrain.terminal.console import console
from lmtrain.terminal.paths import short_path
from lmtrain.terminal.units import counted

VALID = ("max_batch_size", "params")


class GridSweeper(Sweeper):
    """Runs every combination of the swept values (`hydra/sweeper=grid`), under any launcher.

    Unlike with Hydra's basic sweeper, a job that fails does not stop the others, and every job is reported.

    Args:
        max_batch_size: Number of jobs to hand to the launcher at a time; null means all.
        params: More overrides, by key, so that an experiment file can define a sweep.

    Raises:
        ConfigError: the config of a job has a mistake; nothing has been written.
        SweepEndedError: not all jobs completed.
    """

    def __init__(self, max_batch_size: int | None, params: Mapping[str, Any] | None, **unknown: Any) -> None:
        self.max_batch_size = max_batch_size
        self.params = params or {}
        self.unknown = unknown  # reported by `sweep`, because an error here would be a traceback

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        assert self.config is not None
        assert self.hydra_context is not None
        self._check_settings()
        self._path = tuple(sweep_search_path(self.config.hydra))
        grid = expand_grid(self.params, arguments, self.hydra_context.config_loader, self.max_batch_size)
        batches = grid.batches
        jobs = jobs_of(self.config, grid.jobs(), 0, grid.swept)
        if names_directories(self.config):
            ordered = iter(jobs)
            batches = [[with_directory(next(ordered)) for _ in batch] for batch in batches]
        self._check_jobs(jobs)
        sweep_dir = Path(self.config.hydra.sweep.dir)
        make_sweep_directory(sweep_dir)
        OmegaConf.save(self.config, sweep_dir / SWEEP_CONFIG)
        added = record_start(sweep_dir.absolute(), [(job.directory, job.overrides) for job in jobs])
        console.print(f"sweep of {counted(len(jobs), 'job')} in {short_path(sweep_dir.absolute())}")
        show_second_look(sweep_dir.absolute(), added)
        retry = self.config.retry_failed
        ended_earlier = {
            job
            for job in jobs
            if remaining_work(job.directory, job.overrides, self._path, retry_failed=retry).status is not None
        }
        returned: list[JobReturn] = []
        end = self._launch(batches, returned)
        missing = [None] * (len(jobs) - len(returned))
        ended = [
            self._job_end(job, one, end.error, job in ended_earlier)
            for job, one in zip(jobs, [*returned, *missing], strict=True)
        ]
        if end.error is not None:
            show_launcher_failure(end.error)
        write_sweep_report(sweep_dir.absolute(), ended, end.stopped)
        show_sweep_report(sweep_dir.absolute(), ended, end.stopped)
        raise_if_unfinished(ended, end.stopped)

    def _check_settings(self) -> None:
        for key, value in self.unknown.items():
            way_out = did_you_mean(key, VALID, "hydra.sweeper.") or (
                f"; hydra/sweeper=grid has only {' and '.join(VALID)}; for a search that tries every combination, use "
                "hydra/sweeper/sampler=grid"
            )
            raise ConfigError(f"hydra.sweeper.{key}={value}: unknown key{way_out}")
        size = self.max_batch_size
        if size is not None and not (isinstance(size, int) and size > 0):
            raise ConfigError(f"hydra.sweeper.max_batch_size={size}: give a whole number, 1 or more")

    def _check_jobs(self, jobs: Sequence[Job]) -> None:
        """Check the config of every job, then the data, so that a typo is found before data is read."""
        for job in jobs:
            check_job_config(job.overrides, self._path)
        show_notes(job_config(job.overrides, self._path, job.directory) for job in jobs)

    def _launch(self, batches: Sequence[Sequence[Sequence[str]]], returned: list[JobReturn]) -> LaunchEnd:
        """Run all batches, add their results to `returned`, and return why the launcher ended early, if it did."""
        assert self.launcher is not None
        with noting_launch_end() as end:
            for batch in batches:
                returned += self.launcher.launch(batch, initial_job_idx=len(returned))
                if isinstance(self.launcher, ProcessLauncher) and self.launcher.stopped is not None:
                    end.stopped = self.launcher.stopped
                    break
        return end

    def _job_end(
        self, job: Job, returned: JobReturn | None, launcher_error: Exception | None, ended_earlier: bool
    ) -> JobEnd:
        """Return how a job ended, from the launcher's result or, without one, from the files in its directory."""
        failure = (failure_of(returned) if returned else None) or launcher_error
        if isinstance(failure, JobFailedError):
            return replace(failure.ended, job=job)
        now = remaining_work(job.directory, job.overrides, self._path, retry_failed=False)
        if now.status is not None:
            return JobEnd(job, now.status, now.result.get("objective"), now.reason, now.result, ran=not ended_earlier)
        result = read_json(job.directory / "result.json")
        begun = result.get("status") or (INTERRUPTED.status if now.resumes else NOT_STARTED)
        if failure is None and status_without_result(job.directory) == RUNNING:  # elsewhere, such as on a cluster
            begun = RUNNING
        reason = result.get("error") or (f"{type(failure).__name__}: {failure}" if failure else None)
        return JobEnd(job, FAILED.status if failure and returned else begun, None, reason, result, ran=now.resumes)
