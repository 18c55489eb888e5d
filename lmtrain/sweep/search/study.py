"""An Optuna study that several processes share, in one file, and that goes on when they are killed."""

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
FAILED = "failed"  # Optuna's name for the constraint that a trial violates by not having a loss
NO_LOSS_YET = 100.0  # nats; what a trial without a loss counts as, where no other has one: far above ln(any vocabulary)


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Silence Optuna's own lines about every trial, and its warnings that a feature is experimental."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


class SharedStudy:
    """The study of a sweep directory, as one of its workers sees it (a context manager).

    A trial that a dead worker has left is taken over: the same number, the same values. `fixed` is what all trials
    share, and may not change as long as the study lives.

    Raises:
        ConfigError: on entering, if the study in that place is of something else, or can't be read.
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
                    f"hydra.sweeper.storage={self.storage or self.folder / JOURNAL}: can't be used: {error}"
                ) from error
            begun = self.study.user_attrs.get("fixed")
            if begun not in (None, self.fixed):
                raise ConfigError(
                    f"hydra.sweep.dir={self.folder}: holds a study of other overrides ({' '.join(begun) or 'none'}); "
                    "give these, or another hydra.sweep.dir"
                )
            if begun is None:
                self.study.set_user_attr("fixed", self.fixed)
            else:  # else the sampler would draw again what it drew when the study began, or draws for another worker
                self.sampler.reseed_rng()
        self._worker_lock.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker_lock.path.unlink(missing_ok=True)
        self._worker_lock.release()

    def next_trial(self, distributions: Mapping[str, BaseDistribution], n_trials: float) -> Trial | None:
        """Return a trial that a dead worker has left; else a new one, up to `n_trials` of all workers; else None.

        Raises:
            ConfigError: the space is not the one that the study was begun with.
        """
        with self._study_lock:
            trials = self.study.get_trials(deepcopy=False)
            if left := next(filter(self._was_left_behind, trials), None):
                trial = Trial(self.study, left._trial_id)  # study.ask() would make another one
            elif len(trials) >= n_trials:
                return None
            else:
                trial = self.study.ask()
            try:
                with warnings.catch_warnings():
                    # A trial left behind keeps its value, also where the range is another now.
                    warnings.filterwarnings("ignore", "Inconsistent parameter values", RuntimeWarning)
                    for name, distribution in distributions.items():
                        _suggest(trial, name, distribution)
            except ValueError as error:
                raise ConfigError(
                    f"{self.folder}: its study was begun with another search space ({error}); give another "
                    "hydra.sweep.dir"
                ) from error
            trial.set_user_attr("worker", self.token)
        return trial

    def report(self, trial: Trial, losses: Iterable[tuple[int, float]]) -> str | None:
        """Report validation losses by step; return why the trial is hopeless, or None."""
        known = self.trials()[trial.number].intermediate_values
        for step, loss in losses:
            if step not in known:
                trial.report(loss, step)
            if trial.should_prune():
                pruner = type(self.pruner).__name__
                return f"val/loss {loss:.4f} at step {step} gives trial {trial.number} no hope ({pruner})"
        return None

    def tell(self, trial: Trial, status: str, objective: float | None, reason: str | None) -> None:
        """Report how a trial ended that will not go on.

        One without a loss (diverged, failed, out of memory) counts as the worst that any trial has shown. Left out, as
        Optuna's state FAIL is by its samplers, its region would be tried again and again; an infinite or a huge value
        would dwarf all others for samplers that look at more than ranks (GPSampler). It violates a constraint as well,
        so that samplers which know of constraints keep away, and it is never the best.
        """
        trial.set_user_attr("status", status)
        if reason:
            trial.set_user_attr("reason", reason)
        # Brute force, when everything was tried, asks Optuna's own loop to stop, which is not there; the trial is told.
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
        """Return what the newest trial was drawn from; empty before the first."""
        return next((trial.distributions for trial in reversed(self.trials()) if trial.distributions), {})

    def trial_limit(self, n_trials: int, size: float) -> float:
        """Return how many trials there will be, of a space of that size."""
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

    def _was_left_behind(self, trial: FrozenTrial) -> bool:
        if trial.state is not TrialState.RUNNING:
            return False
        worker = trial.user_attrs.get("worker")  # none: killed while it asked
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
    """Remove a last line that was not written whole, since the next one would be added to it."""
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
