"""Runs a search with Optuna, which chooses each trial by the results so far and stops hopeless trials early."""

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import PositiveInt

from lmtrain.config.build import build
from lmtrain.config.check import check_part
from lmtrain.config.hydra_internals import failure_of
from lmtrain.config.recorded.run_names import SWEEP_CONFIG
from lmtrain.errors import FAILED, ConfigError, SweepEndedError, ending_by_signal
from lmtrain.files.limited import read_json
from lmtrain.machine import is_installed
from lmtrain.sweep.job import Job, JobEnd
from lmtrain.sweep.job_config import job_config, processes_in, show_notes, sweep_search_path
from lmtrain.sweep.job_directory import make_sweep_directory
from lmtrain.sweep.launcher import JobFailedError, LaunchEnd, ProcessLauncher, noting_launch_end, with_directory
from lmtrain.sweep.pool import JobPool
from lmtrain.sweep.progress import POLL_S, SweepProgress
from lmtrain.sweep.report import command_to_continue, show_launcher_failure
from lmtrain.terminal.console import console
from lmtrain.terminal.paths import short_path
from lmtrain.terminal.units import counted

if TYPE_CHECKING:  # Optuna is optional and takes a second to import, and every sweep imports this module
    from lmtrain.sweep.search.trials import RunningTrial, Search

WITHOUT_OPTUNA = "hydra/sweeper=optuna: needs Optuna; install it with pip install 'lmtrain[optuna]'"


class SearchSettings:
    """Holds the settings of a search, from `hydra.sweeper` in the config.

    Args:
        n_trials: Number of trials in total, over all processes and restarts.
        direction: `minimize` or `maximize` the best validation loss.
        study_name: Name of the study in its storage.
        storage: A file, or a database URL such as `sqlite:///PATH`; null means `study.journal` in the sweep directory.
        n_jobs: Number of trials to run at the same time; null means the launcher's `n_jobs`.
        sampler: An Optuna sampler, which chooses the values of each trial.
        pruner: An Optuna pruner, which stops hopeless trials early.
    """

    def __init__(
        self,
        *,
        n_trials: PositiveInt,
        direction: Literal["minimize", "maximize"],
        study_name: str | int,
        storage: str | None,
        n_jobs: PositiveInt | None,
        sampler: Callable[..., Any],
        pruner: Callable[..., Any],
    ) -> None:
        self.n_trials, self.direction, self.study_name, self.storage = n_trials, direction, str(study_name), storage
        self.n_jobs, self.sampler, self.pruner = n_jobs, sampler, pruner


class OptunaSweeper(Sweeper):
    """Searches with Optuna (`hydra/sweeper=optuna`).

    With the process launcher, a new trial starts as soon as another one ends. Other launchers get trials in batches of
    `n_jobs`. Several processes may work on the same search at the same time.
    """

    hydra_context: HydraContext  # set by `setup`, like the other attributes
    config: DictConfig
    launcher: Launcher

    def __init__(self, **settings: Any) -> None:
        """Accept any settings; `sweep` checks them, because an error here would be a traceback."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the remaining trials of the search.

        Raises:
            ConfigError: the settings, the search space or the trials' config have a mistake; nothing has run.
            SweepEndedError: a signal stopped the search, or no trial completed.
        """
        settings, params = read_settings(self.config)
        if self.config.retry_failed:
            raise ConfigError(
                "retry_failed=true: a search does not repeat failed trials, because it has learnt from them; give a "
                "larger hydra.sweeper.n_trials, or another hydra.sweep.dir"
            )
        from lmtrain.sweep.search.importance import importances
        from lmtrain.sweep.search.report import show_search_report, write_search_report
        from lmtrain.sweep.search.space import parse_space
        from lmtrain.sweep.search.study import SharedStudy, quiet_optuna, rank_completed
        from lmtrain.sweep.search.trials import Search

        space = parse_space(params, arguments, self.hydra_context.config_loader)
        self._path = tuple(sweep_search_path(self.config.hydra))
        show_notes(job_config(corner, self._path, None) for corner in space.corners())
        sweep_dir = Path(self.config.hydra.sweep.dir).absolute()
        make_sweep_directory(sweep_dir)
        shared = SharedStudy(
            sweep_dir,
            storage=settings.storage,
            name=settings.study_name,
            direction=settings.direction,
            sampler=settings.sampler,  # type: ignore[arg-type]
            pruner=settings.pruner,  # type: ignore[arg-type]
            fixed=space.fixed,
        )
        with quiet_optuna(), shared as study:
            OmegaConf.save(self.config, sweep_dir / SWEEP_CONFIG)
            search = Search(study, space, sweep_dir, study.trial_limit(settings.n_trials, space.size()))
            if (drawn_from := study.newest_distributions()) and (changes := space.changes(drawn_from)):
                console.print(f"the search space has changed ({'; '.join(changes)}); earlier trials still count")
            done = sum(trial.state.is_finished() for trial in study.trials())
            earlier = f", {done} done earlier" if done else ""
            console.print(f"search of {counted(search.n_trials, 'trial')} in {short_path(sweep_dir)}{earlier}")
            if isinstance(self.launcher, ProcessLauncher):
                end = LaunchEnd(stopped=self._run_concurrently(search, settings))
            else:
                end = self._run_in_batches(search, settings)
            importance = importances(study.study)
            picture_note = write_search_report(study, sweep_dir, importance)
            show_search_report(study, space, sweep_dir, importance, picture_note)
            has_best = bool(rank_completed(study.trials(), study.direction))
        if end.error is not None:
            show_launcher_failure(end.error)
        if end.stopped is not None or end.error is not None:
            console.print(f"to continue: {command_to_continue(sweep_dir)}", soft_wrap=True)
            raise SweepEndedError(1 if end.stopped is None else ending_by_signal(end.stopped).exit_code)
        if not has_best:
            raise SweepEndedError(1)

    def _run_concurrently(self, search: "Search", settings: SearchSettings) -> int | None:
        """Run trials in local processes; return the signal that stopped the search, if any."""
        launcher = self.config.hydra.launcher
        running: dict[Job, RunningTrial] = {}
        with (
            JobPool(
                n_jobs=settings.n_jobs or launcher.n_jobs,
                gpus_per_job=launcher.gpus_per_job,
                retry_failed=False,  # the study has already counted them
                search_path=self._path,
                processes=processes_in(self.config),
            ) as pool,
            SweepProgress(pool, None, self._path) as progress,
        ):
            while True:
                while pool.free and pool.stopped is None and (one := search.next_trial()) is not None:
                    running[one.job] = one
                    pool.submit(one.job)
                if not pool.unfinished:
                    return pool.stopped
                ended = pool.poll()
                for job_end in ended:
                    running.pop(job_end.job).report_end(job_end)
                for one in running.values():
                    one.report_losses()
                progress.show(ended)
                time.sleep(POLL_S)

    def _run_in_batches(self, search: "Search", settings: SearchSettings) -> LaunchEnd:
        """Run trials with another launcher; return why it ended early, if it did."""
        from lmtrain.sweep.search.trials import TrialWatcher

        n_jobs = settings.n_jobs or max(1, self.config.hydra.launcher.get("n_jobs") or 1)
        while batch := [one for _ in range(n_jobs) if (one := search.next_trial()) is not None]:
            overrides = [with_directory(one.job) for one in batch]
            with noting_launch_end() as end, TrialWatcher(batch):
                returned = self.launcher.launch(overrides, initial_job_idx=batch[0].trial.number)
            if end.stopped is not None or end.error is not None:
                return end
            for one, job_return in zip(batch, returned, strict=True):
                ended = _job_end(one.job, job_return)
                one.report_end(ended)
                console.print(f"{one.job.title}: {ended.status}")
        return LaunchEnd()


def _job_end(job: Job, returned: JobReturn) -> JobEnd:
    """Return how a job ended, from the launcher's result and the file `result.json`."""
    failure = failure_of(returned)
    if isinstance(failure, JobFailedError):
        return failure.ended
    result = read_json(job.directory / "result.json")
    status = FAILED.status if failure else result.get("status", FAILED.status)
    reason = f"{type(failure).__name__}: {failure}" if failure else result.get("error")
    return JobEnd(job, status, result.get("objective"), reason, result, ran=True)


def read_settings(config: DictConfig) -> tuple[SearchSettings, dict[str, Any]]:
    """Return the settings, with sampler and pruner built, and the search space as it is written in the config."""
    if not is_installed("optuna"):
        raise ConfigError(WITHOUT_OPTUNA)
    try:
        node: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"hydra.sweeper: {str(error).splitlines()[0]}") from error
    params = node.pop("params", None) or {}
    node |= {"_target_": f"{SearchSettings.__module__}.{SearchSettings.__name__}"}
    del node["_recursive_"]
    check_part("hydra.sweeper", node)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna warns of future changes, which do not concern the user
        return build(node), params
