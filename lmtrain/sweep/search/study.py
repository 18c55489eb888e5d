"""Wraps an Optuna study that several processes share through one file, and that survives if they are killed."""

import contextlib
import math
import secrets
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, BruteForceSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from lmtrain.errors import COMPLETED, PRUNED, ConfigError
from lmtrain.files.lock import FileLock

JOURNAL = "study.journal"
WORKERS = ".workers"
FAILED = "failed"  # the name of the Optuna constraint that a trial without a loss violates
NO_LOSS_YET = 100.0  # nats, far above ln(vocabulary): the value of a trial without a loss if no trial has one yet


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Silence Optuna's log lines about every trial and its warnings about experimental features."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


class SharedStudy:
    """The study of a sweep directory, from the view of one worker process (a context manager).

    A worker takes over the trial of a dead worker, with the same number and values. `fixed` are the overrides that all
    trials share; they must be the same whenever the study is continued.

    Raises:
        ConfigError: on entering, if the stored study has other fixed overrides or cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        *,
        storage: str | None,
        name: str,
        direction: Literal["minimize", "maximize"],
        sampler: BaseSampler,
        pruner: BasePruner,
        fixed: Sequence[str],
    ) -> None:
        self.folder, self.storage, self.name, self.direction = folder, storage, name, direction
        self.sampler, self.pruner, self.fixed = sampler, pruner, list(fixed)
        self.token = secrets.token_hex(4)
        self._workers = folder / WORKERS
        self._study_lock = FileLock(self._workers / "lock")
        self._worker_lock = self._lock_of(self.token)

    def __enter__(self) -> Self:
        self._workers.mkdir(parents=True, exist_ok=True)
        with self._study_lock:
            try:
                self.study = optuna.create_study(
                    storage=_open_storage(self.storage, self.folder),
                    study_name=self.name,
                    direction=self.direction,
                    sampler=self.sampler,
                    pruner=self.pruner,
                    load_if_exists=True,
                )
            except Exception as error:  # each database raises its own
                raise ConfigError(
                    f"hydra.sweeper.storage={self.storage or self.folder / JOURNAL}: cannot be used: {error}"
                ) from error
            begun = self.study.user_attrs.get("fixed")
            if begun not in (None, self.fixed):
                raise ConfigError(
                    f"hydra.sweep.dir={self.folder}: has a study with other overrides ({' '.join(begun) or 'none'}); "
                    "give the same overrides, or another hydra.sweep.dir"
                )
            if begun is None:
                self.study.set_user_attr("fixed", self.fixed)
            else:  # with the same seed, the sampler would repeat earlier trials or those of another worker
                self.sampler.reseed_rng()
        self._worker_lock.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker_lock.path.unlink(missing_ok=True)
        self._worker_lock.release()

    def next_trial(self, distributions: Mapping[str, BaseDistribution], n_trials: float) -> Trial | None:
        """Return the next trial: one of a dead worker, otherwise a new one, or None after `n_trials` of all workers.

        Raises:
            ConfigError: the search space does not fit the one with which the study began.
        """
        with self._study_lock:
            trials = self.study.get_trials(deepcopy=False)
            if abandoned := next(filter(self._is_abandoned, trials), None):
                trial = Trial(self.study, abandoned._trial_id)  # study.ask() would make a new one
            elif len(trials) >= n_trials:
                return None
            else:
                trial = self.study.ask()
            try:
                with warnings.catch_warnings():
                    # An abandoned trial keeps its values even if the ranges have changed.
                    warnings.filterwarnings("ignore", "Inconsistent parameter values", RuntimeWarning)
                    for name, distribution in distributions.items():
                        _suggest(trial, name, distribution)
            except ValueError as error:
                raise ConfigError(
                    f"hydra.sweep.dir={self.folder}: its study began with another search space ({error}); give "
                    "another hydra.sweep.dir"
                ) from error
            trial.set_user_attr("worker", self.token)
        return trial

    def report(self, trial: Trial, losses: Iterable[tuple[int, float]]) -> str | None:
        """Report validation losses by step; return the reason if the trial should be pruned, otherwise None."""
        known = self.trials()[trial.number].intermediate_values
        for step, loss in losses:
            if step not in known:
                trial.report(loss, step)
            if trial.should_prune():
                pruner = type(self.pruner).__name__
                return f"{pruner} stopped trial {trial.number} because of val/loss {loss:.4f} at step {step}"
        return None

    def tell(self, trial: Trial, status: str, objective: float | None, reason: str | None) -> None:
        """Report how a trial ended.

        A trial without a loss (diverged, failed, out of memory) counts as the worst value of any trial so far. With
        Optuna's state FAIL, which samplers ignore, its region would be tried again and again; an infinite or huge value
        would dominate in samplers that use more than ranks (GPSampler). The trial also violates a constraint, so that
        samplers that support constraints avoid its region, and so that it is never the best trial.
        """
        trial.set_user_attr("status", status)
        if reason:
            trial.set_user_attr("reason", reason)
        # After the last trial, BruteForceSampler raises because it cannot stop Optuna's loop, which is not used here.
        # The trial has been recorded by then.
        with contextlib.suppress(RuntimeError):
            if status == PRUNED.status:
                self.study.tell(trial, state=TrialState.PRUNED)
            elif status == COMPLETED.status and objective is not None and math.isfinite(objective):
                self.study.tell(trial, objective)
            else:
                trial.set_constraint(FAILED, 1.0)
                self.study.tell(trial, self._worst())

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def newest_distributions(self) -> Mapping[str, BaseDistribution]:
        """Return the distributions of the newest trial; empty before the first trial."""
        return next((trial.distributions for trial in reversed(self.trials()) if trial.distributions), {})

    def trial_limit(self, n_trials: int, size: float) -> float:
        """Return the number of trials that the search will have in a space of that size."""
        return min(n_trials, size) if isinstance(self.sampler, BruteForceSampler) else n_trials

    def _worst(self) -> float:
        shown = [
            value
            for trial in self.trials()
            for value in (*trial.intermediate_values.values(), *(trial.values or ()))
            if math.isfinite(value)
        ]
        if self.direction == "minimize":
            return max(shown, default=NO_LOSS_YET)
        return min(shown, default=-NO_LOSS_YET)

    def _is_abandoned(self, trial: FrozenTrial) -> bool:
        if trial.state is not TrialState.RUNNING:
            return False
        worker = trial.user_attrs.get("worker")  # None if the worker was killed while it made the trial
        return worker != self.token and (worker is None or not self._lock_of(worker).is_held())

    def _lock_of(self, worker: str) -> FileLock:
        return FileLock(self._workers / worker)


def has_no_loss(trial: FrozenTrial) -> bool:
    """Return whether a trial ended without a loss."""
    return any(value > 0 for value in trial.constraints.values())


def rank_completed(trials: Iterable[FrozenTrial], direction: str) -> list[FrozenTrial]:
    """Return the completed trials, best first."""
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE and not has_no_loss(trial)]
    return sorted(done, key=lambda trial: trial.value or 0.0, reverse=direction == "maximize")


def _open_storage(storage: str | None, folder: Path) -> BaseStorage:
    if storage is not None and "://" in storage:
        return RDBStorage(storage)
    path = folder / JOURNAL if storage is None else Path(storage)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    with lock:
        _drop_incomplete_line(path)
    return JournalStorage(JournalFileBackend(str(path), lock))  # type: ignore[arg-type]


def _drop_incomplete_line(path: Path) -> None:
    """Remove an incomplete last line, to which the next line would otherwise be appended."""
    with path.open("a+b") as file:
        file.seek(0)
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def _suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    match distribution:
        case FloatDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_float(name, low, high, step=step, log=log)
        case IntDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_int(name, low, high, step=step, log=log)
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(name, choices)
    raise AssertionError(distribution)
