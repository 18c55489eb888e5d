"""Searches with Optuna: `-m` with `hydra/sweeper=optuna` runs trials, and ends those early that have no hope."""

import importlib.util
import shlex
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra._internal.utils import get_args_parser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import PositiveInt

from lmtrain.console import console
from lmtrain.interrupt import PRUNE_FILE, ask_to_prune
from lmtrain.launcher import SWEEP_FILE, ProcessLauncher, SweepFailedError, SweepStoppedError, search_path
from lmtrain.logger.jsonl import read_metrics
from lmtrain.run_directory import read_json

if TYPE_CHECKING:  # Optuna is an extra, and every start of lmtrain comes by here
    from optuna.trial import Trial

    from lmtrain.search_space import SearchSpace
    from lmtrain.study import SharedStudy

PLUGIN_MODULE = "hydra_plugins.lmtrain_optuna"  # Hydra takes plugins from that package alone
POLL_S = 0.25
NOT_ENDED = ("interrupted", "not started")


class Settings:
    """What `conf/hydra/sweeper/optuna.yaml` holds; `sampler` and `pruner` are Optuna's own."""

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
        params: dict[str, Any],
    ) -> None:
        self.n_trials, self.direction, self.study_name, self.storage = n_trials, direction, study_name, storage
        self.n_jobs, self.sampler, self.pruner, self.params = n_jobs, sampler, pruner, params


class OptunaSweeper(Sweeper):
    """`hydra/sweeper=optuna`: asks a trial whenever there is room for a job, and tells how it ended.

    With the process launcher trials run side by side, each by itself; another launcher gets them in batches of
    `n_jobs`. While they run, their `metrics.jsonl` are read, wherever the jobs may be: validation losses go to the
    pruner, and a hopeless job is asked to end by a file in its directory.
    """

    def __init__(self, **settings: Any) -> None:
        """The settings are checked where a mistake can be told: in `sweep`."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Runs what is left of the search.

        Raises:
            ConfigError: a mistake in the search's settings, its space or the trials' config, before anything runs.
            SweepStoppedError: by a signal; the same command goes on.
            SweepFailedError: no trial at all has a loss.
        """
        settings = _settings(self.config)
        from lmtrain.search_space import parse
        from lmtrain.study import SharedStudy, ranked
        from lmtrain.study_report import print_trials, write_picture

        space = parse(settings.params, arguments, self.hydra_context.config_loader)
        self.search_path = search_path(get_args_parser().parse_args().config_dir)
        for corner in space.corners():
            _check(corner, self.search_path)
        self.folder = Path(self.config.hydra.sweep.dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, self.folder / SWEEP_FILE)
        with SharedStudy(
            self.folder,
            storage=settings.storage,
            name=str(settings.study_name),
            direction=settings.direction,
            sampler=settings.sampler,  # type: ignore[arg-type]
            pruner=settings.pruner,  # type: ignore[arg-type]
            fixed=space.fixed,
        ) as study:
            search = Search(study, space, self.folder, study.limit(settings.n_trials, space.size()))
            done = sum(trial.state.is_finished() for trial in study.trials())
            console.print(
                f"search of {search.n_trials} trials in {self.folder}"
                + (f", {done} of them done already" if done else ""),
                markup=False,
            )
            if isinstance(self.launcher, ProcessLauncher):
                stopped = self._side_by_side(search, settings)
            else:
                stopped = self._in_batches(search, settings)
            trials = study.trials()
            print_trials(trials, settings.direction, self.folder)
            write_picture(study.study, self.folder / "study.png")
            best = next(iter(ranked(trials, settings.direction)), None)
            if best is not None:
                command = ["python", "-m", "lmtrain", *space.overrides(best.params)]
                console.print(f"best: {shlex.join(command)}", markup=False, soft_wrap=True)
        if stopped is not None:
            console.print("the same command with the same hydra.sweep.dir goes on:", markup=False)
            console.print(f"  hydra.sweep.dir={self.folder}", markup=False, soft_wrap=True)
            raise SweepStoppedError(stopped)
        if best is None:
            raise SweepFailedError

    def _side_by_side(self, search: "Search", settings: Settings) -> int | None:
        """With lmtrain's own processes; the signal that stopped it."""
        from lmtrain.jobs import Job, JobPool

        launcher = self.config.hydra.launcher
        watched: dict[Job, Watched] = {}
        with JobPool(
            n_jobs=settings.n_jobs or launcher.get("n_jobs"),
            gpus_per_job=launcher.get("gpus_per_job", 1),
            retry_failed=bool(self.config.retry_failed),
            search_path=self.search_path,
        ) as pool:
            while True:
                while pool.free and pool.stopped is None and (one := search.next()) is not None:
                    job = Job(one.overrides, one.directory, f"trial {one.trial.number}: {one.title}")
                    watched[job] = one
                    pool.submit(job)
                    console.print(f"{job.title}", markup=False)
                if not pool.unfinished:
                    return pool.stopped
                for ended in pool.poll():
                    search.end(watched.pop(ended.job), ended.status, ended.objective, ended.reason)
                for one in watched.values():
                    one.look()
                time.sleep(POLL_S)

    def _in_batches(self, search: "Search", settings: Settings) -> int | None:
        """With any launcher of Hydra's."""
        n_jobs = settings.n_jobs or self.config.hydra.launcher.get("n_jobs") or 1
        while True:
            batch = [one for _ in range(max(n_jobs, 1)) if (one := search.next()) is not None]
            if not batch:
                return None
            for one in batch:
                console.print(f"trial {one.trial.number}: {one.title}", markup=False)
            with Watch(batch):
                self.launcher.launch(
                    [[*one.overrides, f"hydra.sweep.subdir={_quoted(one.directory.name)}"] for one in batch],
                    initial_job_idx=batch[0].trial.number,
                )
            for one in batch:
                result = read_json(one.directory / "result.json")
                search.end(one, result.get("status", "failed"), result.get("objective"), result.get("error"))


@dataclass
class Watched:
    """A trial that runs, and what of it is known."""

    study: "SharedStudy"
    trial: "Trial"
    overrides: tuple[str, ...]
    directory: Path
    title: str
    last_step: int = 0
    size: int = 0  # of the metrics when they were last read
    hopeless: str | None = None

    def look(self) -> None:
        """Reports new validation losses, and asks a run to end that is hopeless."""
        metrics = self.directory / "metrics.jsonl"
        size = metrics.stat().st_size if metrics.exists() else 0
        if self.hopeless is None and size != self.size:
            self.size = size
            new = [
                (int(line["step"]), line["val/loss"])
                for line in read_metrics(metrics)
                if "val/loss" in line and line["step"] > self.last_step
            ]
            self.last_step = max((step for step, _ in new), default=self.last_step)
            self.hopeless = self.study.report(self.trial, new)
        # Again, if need be: a run that starts, or goes on, takes no notice of a file from before.
        if self.hopeless is not None and not (self.directory / PRUNE_FILE).exists():
            ask_to_prune(self.directory, self.hopeless)


class Watch:
    """Looks at running trials from a thread, while another launcher has the main one (a context manager)."""

    def __init__(self, batch: Sequence[Watched]) -> None:
        self.batch, self.over = batch, threading.Event()
        self.thread = threading.Thread(target=self._run, name="pruning", daemon=True)

    def _run(self) -> None:
        while not self.over.wait(POLL_S):
            for one in self.batch:
                if not (one.directory / "result.json").exists():
                    one.look()

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


class Search:
    """The trials of one study as runs in directories."""

    def __init__(self, study: "SharedStudy", space: "SearchSpace", folder: Path, n_trials: float) -> None:
        self.study, self.space, self.folder, self.n_trials = study, space, folder, n_trials

    def next(self) -> Watched | None:
        """The next trial to run, with the directory that its values lead to."""
        from lmtrain.job_directory import directory_name

        trial = self.study.next_trial(self.space.distributions, self.n_trials)
        if trial is None:
            return None
        varied = self.space.varied(trial.params)
        directory = self.folder / directory_name(varied)
        trial.set_user_attr("directory", directory.name)
        return Watched(self.study, trial, self.space.overrides(trial.params), directory, " ".join(varied))

    def end(self, one: Watched, status: str, objective: float | None, reason: str | None) -> None:
        """Tells the study and the person how a trial ended; one that was interrupted stays open."""
        from lmtrain.study import ranked

        if status not in NOT_ENDED:
            one.look()  # the last losses
            if status != "pruned":
                (one.directory / PRUNE_FILE).unlink(missing_ok=True)  # it came too late
            self.study.tell(one.trial, status, objective, reason)
        best = next(iter(ranked(self.study.trials(), self.study.direction)), None)
        loss = f" {objective:.4f}" if objective is not None else ""
        leader = f"; best so far: {best.value:.4f}, trial {best.number}" if best and status not in NOT_ENDED else ""
        console.print(f"trial {one.trial.number} {status}{loss}{leader}", markup=False)
        if reason and status not in ("pruned", *NOT_ENDED):
            console.print(f"  {reason}", markup=False)


def _settings(config: DictConfig) -> Settings:
    from lmtrain.config import ConfigError, build
    from lmtrain.checks import check_part

    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("hydra/sweeper=optuna: needs Optuna; pip install -e '.[optuna]'")
    try:
        node: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"hydra.sweeper: {str(error).splitlines()[0]}") from error
    node["_target_"] = f"{__name__}.{Settings.__name__}"
    node.pop("_recursive_", None)
    params = node.pop("params")  # its keys are others' keys
    check_part("hydra.sweeper", {**node, "params": {}})
    try:
        settings: Settings = build({**node, "params": {}})
    except ImportError as error:
        raise ConfigError(f"hydra/sweeper/sampler: {error}; pip install -e '.[optuna]'") from error
    settings.params = params
    return settings


def _check(overrides: Sequence[str], path: Sequence[str]) -> Mapping[str, Any]:
    from lmtrain.config import compose
    from lmtrain.preflight import preflight

    return preflight(compose([*path, *overrides]))


def register() -> None:
    """Makes the sweeper known to Hydra; the launcher's own registration has made the package `hydra_plugins`."""
    OptunaSweeper.__module__ = PLUGIN_MODULE
    sys.modules[PLUGIN_MODULE] = sys.modules[__name__]
    Plugins.instance().register(OptunaSweeper)
