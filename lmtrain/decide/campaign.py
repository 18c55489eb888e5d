"""Runs pairs of seeds of an idea until it is decided, and records it in the ledger of its campaign."""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lmtrain.comparison.runs import load_runs
from lmtrain.comparison.statistics.online_fdr import needed_log_evidence
from lmtrain.comparison.statistics.sequential import log_e_value_of_t
from lmtrain.decide.idea import Idea, compose_idea, with_folders
from lmtrain.decide.lagging import Curve, Watcher, curve_of, may_stop
from lmtrain.decide.ledger import DROP, KEEP, UNDECIDED, Entry, Ledger
from lmtrain.decide.pairs import UNITS, Question, SeedPair, read_pair, total_cost
from lmtrain.decide.rule import MORE, Budget, Judgement, judge
from lmtrain.errors import COMPLETED, DIVERGED, PRUNED, ConfigError, ending_by_signal
from lmtrain.files.lock import FileLock
from lmtrain.sweep.job import JobEnd
from lmtrain.sweep.job_config import most_processes
from lmtrain.sweep.pool import JobPool
from lmtrain.sweep.progress import POLL_S, SweepProgress

EXIT_CODES = {KEEP: 0, DROP: 10, UNDECIDED: 11}
# What the JSON of an idea says that is still open, so that its keys are always the same.
NOT_ENDED: Mapping[str, Any] = {
    **dict.fromkeys(("verdict", "reason", "exit_code", "log_evidence", "needed_log_evidence", "p", "gain", "failure")),
    "interval": [None, None],
    "seeds": [],
    "pairs": [],
    "cost": dict.fromkeys(UNITS, 0.0),
}
VALID_ENDS = (COMPLETED.status, DIVERGED.status, PRUNED.status)


@dataclass(frozen=True)
class Settings:
    """How a decision is made.

    Attributes:
        question: What is compared.
        margin: The smallest gain that matters; a challenger whose gain is clearly smaller is dropped.
        budget: The most that may be spent.
        n_jobs: The number of runs at the same time; None means as many as the GPUs allow, or one without GPUs.
        gpus_per_job: GPUs for each run, as in a sweep.
        retry_failed: True to run jobs again that failed in an earlier attempt.
    """

    budget: Budget
    question: Question = field(default_factory=Question)
    margin: float = 0.0
    n_jobs: int | None = None
    gpus_per_job: int | None = 1
    retry_failed: bool = False

    def recorded(self) -> dict[str, Any]:
        return {**self.question.recorded(), "margin": self.margin, "budget": self.budget.recorded()}


@dataclass(frozen=True)
class DecisionOutcome:
    """How a call of `decide` ended.

    Attributes:
        entry: The idea's entry in the ledger.
        result: Everything about the decision, as JSON values.
        exit_code: One of `EXIT_CODES`, that of a signal, or 1 if a run failed.
        failure: Why there is no verdict: a run failed, or a signal stopped the decision.
    """

    entry: Entry
    result: Mapping[str, Any]
    exit_code: int
    failure: str | None = None


def decide(
    baseline: Sequence[str],
    challenger: Sequence[str],
    campaign: Path,
    settings: Settings,
    *,
    level: float | None = None,
    planned: int | None = None,
    after_pair: Callable[[Idea, Sequence[SeedPair], Judgement], None] = lambda idea, pairs, judgement: None,
    on_start: Callable[[Idea, Entry], None] = lambda idea, entry: None,
) -> DecisionOutcome:
    """Decide whether a challenger is better than a baseline, or go on where an earlier call was stopped.

    Args:
        baseline: The overrides of the baseline.
        challenger: The overrides that the challenger has in addition.
        campaign: The folder of the campaign, with its ledger and all of its runs.
        settings: How the decision is made.
        level: The false-discovery rate of the campaign; None means the one with which it began, or the usual one.
        planned: The number of ideas that the campaign expects; None as for `level`.
        after_pair: Called after each pair of runs.
        on_start: Called before the first run.

    Raises:
        ConfigError: the config of a side has a mistake, the sides cannot be compared, the campaign has another level,
            another process is deciding the same idea, or there are too few pairs for any gain to be kept.
    """
    idea = compose_idea(baseline, challenger, campaign, settings.question.metric)
    ledger = Ledger(campaign)
    ledger.open_campaign(level, planned)
    idea = with_folders(idea)
    key = idea.key(settings.question.recorded())
    with ExitStack() as stack:
        lock = FileLock(idea.challenger.folder / f".decide-{key}.lock")
        if not lock.try_acquire():
            raise ConfigError(f"--challenger {idea.title}: another process is deciding this idea; wait for it")
        stack.callback(lock.release)
        entry = ledger.start(key, _about(idea) | settings.recorded())
        if entry.is_final:
            assert entry.ended is not None
            return DecisionOutcome(entry, describe(entry, campaign), EXIT_CODES[str(entry.verdict)])
        _refuse_hopeless_budget(settings.budget.pairs, entry.level)
        on_start(idea, entry)
        curves = known_curves(ledger, idea, settings.question) if may_stop(idea, settings.question) else None
        work = _Work(idea, settings, entry.level, curves, lambda *found: after_pair(idea, *found))
        judgement, pairs = work.run()
        if work.failure is None and judgement.verdict != MORE:
            result = judgement.recorded() | _spent(idea, pairs, settings)
            if not (entry.ended and judgement.verdict == UNDECIDED and _pairs(entry.ended) == len(pairs)):
                entry = ledger.end(key, result)
            return DecisionOutcome(entry, describe(entry, campaign), EXIT_CODES[str(entry.verdict)])
    so_far = describe(entry, campaign) | judgement.recorded() | _spent(idea, pairs, settings)
    code = ending_by_signal(work.stopped).exit_code if work.stopped is not None else 1
    return DecisionOutcome(entry, so_far | {"failure": work.failure, "exit_code": code}, code, work.failure)


def _refuse_hopeless_budget(pairs: int, level: float) -> None:
    """Raise ConfigError if not even the largest gain could be kept with so many pairs."""
    needed = needed_log_evidence(level)
    infinite, counts = np.asarray(math.inf), map(np.asarray, itertools.count(pairs))
    fewest = next(int(count) for count in counts if log_e_value_of_t(infinite, count) >= needed)
    if fewest > pairs:
        raise ConfigError(
            f"--seeds {pairs}: with so few pairs, not even the largest gain could be kept, because this idea needs "
            f"evidence of {math.exp(needed):,.0f}; give at least --seeds {fewest}"
        )


class _Work:
    """Runs the jobs of an idea, seed by seed, and judges it after each pair, in the order of the seeds."""

    def __init__(
        self,
        idea: Idea,
        settings: Settings,
        level: float,
        curves: Sequence[Curve] | None,
        after_pair: Callable[[Sequence[SeedPair], Judgement], None],
    ) -> None:
        self.idea, self.settings, self.level, self.after_pair = idea, settings, level, after_pair
        self.watcher = None if curves is None else Watcher(settings.question, curves)
        self.jobs = [side.job(seed) for seed in range(1, settings.budget.pairs + 1) for side in self._sides]
        self.ends: dict[Path, JobEnd] = {}
        self.pairs: list[SeedPair] = []
        self.stopped: int | None = None
        self.failure: str | None = None

    @property
    def _sides(self) -> tuple[Any, Any]:
        return self.idea.baseline, self.idea.challenger

    def run(self) -> tuple[Judgement, Sequence[SeedPair]]:
        """Run pairs until there is a verdict, a run fails or a signal arrives; return what the pairs say."""
        settings = self.settings
        waiting = self.jobs[:]
        judgement = self._judge()
        with (
            JobPool(
                n_jobs=settings.n_jobs,
                gpus_per_job=settings.gpus_per_job,
                retry_failed=settings.retry_failed,
                processes=most_processes(waiting, ()),
            ) as pool,
            SweepProgress(pool, None, ()) as progress,
        ):
            while judgement.verdict == MORE and self.failure is None:
                while pool.free and pool.stopped is None and waiting:
                    pool.submit(waiting.pop(0))
                ended = pool.poll()
                self.stopped = pool.stopped
                progress.show([end for end in ended if end.ran])
                self.ends |= {end.job.directory: end for end in ended}
                judgement = self._add_pairs(judgement)
                if self.failure is None and judgement.verdict == MORE:
                    self._note_failure(ended)
                    self._watch(pool)
                    if not ended:
                        time.sleep(POLL_S)
        return judgement, self.pairs

    def _add_pairs(self, judgement: Judgement) -> Judgement:
        """Judge after each pair that is complete, up to the first verdict: later seeds may have run too."""
        while judgement.verdict == MORE and len(self.pairs) < self.settings.budget.pairs:
            seed = len(self.pairs) + 1
            ends = [self.ends.get(side.job(seed).directory) for side in self._sides]
            first, second = ends
            if first is None or second is None or not {first.status, second.status} <= {*VALID_ENDS}:
                break
            self.pairs.append(read_pair(seed, (first, second), self.settings.question))
            judgement = self._judge()
            self.after_pair(self.pairs, judgement)
        return judgement

    def _judge(self) -> Judgement:
        return judge(self.pairs, level=self.level, margin=self.settings.margin, budget=self.settings.budget)

    def _note_failure(self, ended: Sequence[JobEnd]) -> None:
        if self.stopped is not None:
            self.failure = "stopped by a signal; the same command goes on"
            return
        for end in ended:
            if end.status not in VALID_ENDS:
                again = " --retry-failed" if end.status == "failed" else ""
                why = f"{end.job.title}: {end.status}: {end.reason} ({end.job.directory})"
                self.failure = f"{why}; the same command{again} goes on"

    def _watch(self, pool: JobPool) -> None:
        if self.watcher is None:
            return
        baseline, challenger = self._sides
        running = {one.job.directory for one in pool.running}
        for seed in range(len(self.pairs) + 1, self.settings.budget.pairs + 1):
            if challenger.job(seed).directory in running:
                self.watcher.look(baseline.job(seed), challenger.job(seed))


def known_curves(ledger: Ledger, idea: Idea, question: Question) -> list[Curve]:
    """Return the curves of all completed pairs of the campaign with this baseline and question."""
    curves = []
    for entry in ledger.read().entries.values():
        about = entry.started
        same = entry.ended and about.get("family") == idea.baseline.hash
        if not same or any(about.get(key) != value for key, value in question.recorded().items()):
            continue
        assert entry.ended is not None
        for pair in entry.ended.get("pairs", []):
            if pair["statuses"] == [COMPLETED.status] * 2:
                places = [about[side]["directory"] for side in ("baseline", "challenger")]
                folders = [ledger.folder / place / f"seed={pair['seed']}" for place in places]
                if all(folder.is_dir() for folder in folders):
                    runs = tuple(load_runs([folder])[0] for folder in folders)
                    curves.append(curve_of(entry.key, (runs[0], runs[1]), question))
    return curves


def describe(entry: Entry, campaign: Path) -> dict[str, Any]:
    """Return all that the ledger says about an idea, as one JSON object."""
    ended = entry.ended or {}
    code = {"exit_code": EXIT_CODES[str(entry.verdict)]} if entry.ended else {}
    times = {"started_at": entry.started.get("time"), "ended_at": ended.get("time")}
    merged = {**NOT_ENDED, **entry.started, **ended, **times, **code, "campaign": str(campaign)}
    return {key: value for key, value in merged.items() if key not in ("event", "time")}


def _about(idea: Idea) -> dict[str, Any]:
    sides = {"baseline": idea.baseline.recorded(), "challenger": idea.challenger.recorded()}
    return {"changes": list(idea.changes), "family": idea.baseline.hash, **sides}


def _spent(idea: Idea, pairs: Sequence[SeedPair], settings: Settings) -> dict[str, Any]:
    return {
        "seeds": [pair.seed for pair in pairs],
        "pairs": [pair.recorded() for pair in pairs],
        "cost": total_cost(pairs),
        "margin": settings.margin,
        "budget": settings.budget.recorded(),
    }


def _pairs(ended: Mapping[str, Any]) -> int:
    return len(ended.get("pairs", ()))
