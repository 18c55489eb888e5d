"""Connects a study's trials with their runs: directories, losses during the run, and the end."""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import Trial

from lmtrain.errors import INTERRUPTED, PRUNED
from lmtrain.files.metrics import read_metrics
from lmtrain.loop.stop_request import PRUNE_FILE, ask_to_prune
from lmtrain.sweep.job import NOT_STARTED, Job, JobEnd
from lmtrain.sweep.job_directory import directory_name
from lmtrain.sweep.search.space import SearchSpace
from lmtrain.sweep.search.study import SharedStudy

WATCH_S = 0.25
UNFINISHED = (INTERRUPTED.status, NOT_STARTED)  # not reported, because the job resumes with the search


@dataclass
class RunningTrial:
    """A trial whose job runs, on any machine; it is watched through the file `metrics.jsonl`."""

    study: SharedStudy
    trial: Trial
    job: Job
    last_step: int = 0
    read_bytes: int = 0
    prune_reason: str | None = None

    def report_losses(self) -> None:
        """Report new validation losses to the study, and ask the run to stop if the study prunes it."""
        metrics = self.job.directory / "metrics.jsonl"
        size = metrics.stat().st_size if metrics.exists() else 0
        if self.prune_reason is None and size != self.read_bytes:
            self.read_bytes = size
            losses = [(int(line["step"]), line["val/loss"]) for line in read_metrics(metrics) if "val/loss" in line]
            new = [(step, loss) for step, loss in losses if step > self.last_step]
            self.last_step = max((step for step, _ in new), default=self.last_step)
            self.prune_reason = self.study.report(self.trial, new)
        # The file is written again if it is gone: a run that starts or resumes removes an old one.
        if self.prune_reason is not None and not (self.job.directory / PRUNE_FILE).exists():
            ask_to_prune(self.job.directory, self.prune_reason)

    def report_end(self, ended: JobEnd) -> None:
        """Report to the study how the job ended."""
        if ended.status in UNFINISHED:
            return
        earlier_reason, self.prune_reason = self.prune_reason, None
        self.report_losses()  # those logged since the last report
        if ended.status != PRUNED.status and (earlier_reason or self.prune_reason):
            (self.job.directory / PRUNE_FILE).unlink(missing_ok=True)  # it was too late
        objective = ended.objective if ended.objective is not None else math.nan
        self.study.tell(self.trial, ended.status, objective, ended.reason)


class Search:
    """Makes the trials of a study, up to `n_trials` over all workers, each in a directory named after its values."""

    def __init__(self, study: SharedStudy, space: SearchSpace, folder: Path, n_trials: float) -> None:
        self.study, self.space, self.folder, self.n_trials = study, space, folder, n_trials

    def next_trial(self) -> RunningTrial | None:
        """Return the next trial to run; None if there are no more."""
        trial = self.study.next_trial(self.space.distributions, self.n_trials)
        if trial is None:
            return None
        varied = self.space.varied(trial.params)
        directory = self.folder / directory_name(varied)
        trial.set_user_attr("directory", directory.name)
        job = Job(self.space.overrides(trial.params), directory, f"trial {trial.number}: {' '.join(varied)}")
        return RunningTrial(self.study, trial, job)


class TrialWatcher:
    """Reports the losses of running trials from a thread while a launcher blocks the main one (a context manager)."""

    def __init__(self, running: Sequence[RunningTrial]) -> None:
        self.running, self.over = running, threading.Event()
        self.thread = threading.Thread(target=self._run, name="pruning", daemon=True)

    def _run(self) -> None:
        while not self.over.wait(WATCH_S):
            for one in self.running:
                if not (one.job.directory / "result.json").exists():
                    one.report_losses()

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()
