"""Reads the values of a pair of runs with equal seeds, at a place that both have."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmtrain.comparison.comparable.conditions import schedule_notes
from lmtrain.comparison.comparable.measured_alike import measured_alike
from lmtrain.comparison.compared_run import mapping_at
from lmtrain.comparison.run_values import equal_places, value_at
from lmtrain.comparison.runs import ComparedRun, load_runs
from lmtrain.errors import COMPLETED, DIVERGED, PRUNED, ConfigError
from lmtrain.sweep.job import JobEnd

AXES_OF = {"at-step": "step", "at-tokens": "tokens", "at-flops": "flops", "at-seconds": "seconds"}
UNUSED_CODE = ("logger.", "prepare.")  # keys of the config whose code does not change what a run computes
UNITS = ("seconds", "tokens", "flops")


@dataclass(frozen=True)
class Question:
    """What is compared: a metric, which of its values represents a run, and whether higher values are better."""

    metric: str = "val/loss"
    value: str = "at-step"
    higher: bool = False

    def recorded(self) -> dict[str, Any]:
        return {"metric": self.metric, "value": self.value, "direction": "higher" if self.higher else "lower"}


@dataclass(frozen=True)
class SeedPair:
    """The runs of the baseline and the challenger with one seed.

    Attributes:
        seed: Their seed.
        baseline: The baseline's value; None if it diverged.
        challenger: The challenger's value; None if it diverged or was stopped early.
        gain: By how much the challenger is better; None without one of the values.
        statuses: How the two runs ended.
        cost: The seconds, tokens and FLOPs of each of the two.
        notes: Remarks about their difference.
    """

    seed: int
    baseline: float | None
    challenger: float | None
    gain: float | None
    statuses: tuple[str, str]
    cost: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...] = ()

    @property
    def challenger_lost(self) -> bool:
        """Return whether the challenger has the worst value there is, and the baseline does not."""
        return self.statuses[1] in (DIVERGED.status, PRUNED.status) and self.statuses[0] != DIVERGED.status

    def recorded(self) -> dict[str, Any]:
        own = {"seed": self.seed, "baseline": self.baseline, "challenger": self.challenger, "gain": self.gain}
        cost = {key: dict(value) for key, value in self.cost.items()}
        return {**own, "statuses": list(self.statuses), "cost": cost, "notes": list(self.notes)}


def read_pair(seed: int, ends: tuple[JobEnd, JobEnd], question: Question) -> SeedPair:
    """Return the pair of the baseline's and the challenger's job that ended.

    Raises:
        ConfigError: a run completed without the metric, the two measure something else or are compared at different
            points of their schedules, or the user's code changed between them.
    """
    runs = tuple(_load(end) for end in ends)
    notes: tuple[str, ...] = ()
    if runs[0] is not None and runs[1] is not None:
        _refuse_changed_code((runs[0], runs[1]), seed)
        notes = _version_notes((runs[0], runs[1]))
    statuses = (ends[0].status, ends[1].status)
    values: tuple[float, float] | None = None
    if statuses == (COMPLETED.status, COMPLETED.status):
        assert runs[0] is not None
        assert runs[1] is not None
        measured = measured_alike([runs[0], runs[1]], question.metric)
        if len(measured.alike) > 1 or measured.metric != question.metric:
            raise ConfigError(f"--metric {question.metric}: {'; '.join([*measured.refusals, *measured.notes])}")
        values = values_of((runs[0], runs[1]), question)
        if not all(map(math.isfinite, values)):
            known = sorted(name for name in runs[0].metrics if "/" in name)
            raise ConfigError(
                f"--metric {question.metric}: the runs with seed {seed} share no value of it; they have "
                f"{', '.join(known)}"
            )
        _refuse_other_schedule((runs[0], runs[1]), question)
    sign = 1 if question.higher else -1
    alone = [
        _alone(run, question) if end.status == COMPLETED.status else None for run, end in zip(runs, ends, strict=True)
    ]
    return SeedPair(
        seed=seed,
        baseline=values[0] if values else alone[0],
        challenger=values[1] if values else alone[1],
        gain=sign * (values[1] - values[0]) if values else None,
        statuses=statuses,
        cost={side: _cost(end, run) for side, end, run in zip(("baseline", "challenger"), ends, runs, strict=True)},
        notes=notes,
    )


def values_of(runs: tuple[ComparedRun, ComparedRun], question: Question) -> tuple[float, float]:
    """Return the values of the baseline and the challenger; NaN if they share none."""
    metric, value = question.metric, question.value
    if value in AXES_OF:
        equal = equal_places(runs, metric).get(AXES_OF[value])
        return (value_at(runs[0], metric, equal), value_at(runs[1], metric, equal)) if equal else (math.nan, math.nan)
    steps, ours, theirs = shared_values(runs, metric)
    if not len(steps):
        return math.nan, math.nan
    if value == "final":
        return float(runs[0].series(metric)[1][-1]), float(runs[1].series(metric)[1][-1])
    best = np.max if question.higher else np.min
    return float(best(ours)), float(best(theirs))  # over the same evaluations: more of them would give a better best


def shared_values(runs: Sequence[ComparedRun], metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the steps at which both runs have a value of the metric, and these values of each."""
    (first, ours), (second, theirs) = (run.series(metric) for run in runs)
    steps, mine, yours = np.intersect1d(first, second, return_indices=True)
    return steps, ours[mine], theirs[yours]


def _refuse_other_schedule(runs: tuple[ComparedRun, ComparedRun], question: Question) -> None:
    """Raise ConfigError if one run had decayed further where they are compared, because a decay lowers the loss."""
    equal = equal_places(runs, question.metric).get(AXES_OF.get(question.value, "step"))
    if question.value == "final" or equal is None:
        return
    for note in schedule_notes(runs, equal, intended=False):
        if note.refuses:
            where = note.text.partition("; --value")[0]
            raise ConfigError(
                f"--value {question.value}: {where}. The one that has decayed further looks better; give both the same "
                "schedule, or compare each at its end with --value final"
            )


def _refuse_changed_code(runs: tuple[ComparedRun, ComparedRun], seed: int) -> None:
    """Raise ConfigError if a file of the user's code that both runs used changed between them."""
    ours, theirs = (mapping_at(run.environment, "code") for run in runs)
    for key in sorted(ours.keys() & theirs.keys()):
        before, after = ours[key], theirs[key]
        if key.startswith(UNUSED_CODE) or not (isinstance(before, Mapping) and isinstance(after, Mapping)):
            continue
        if changed := sorted(name for name in before.keys() & after.keys() if before[name] != after[name]):
            older = min(runs, key=lambda run: (run.path / "config.yaml").stat().st_mtime)
            raise ConfigError(
                f"{key}: {', '.join(changed)} changed between the runs with seed {seed}, so that their difference is "
                f"not only that of the overrides; move {older.path.parent} away, and its runs are trained again with "
                "the code of today"
            )


def _version_notes(runs: tuple[ComparedRun, ComparedRun]) -> tuple[str, ...]:
    hashes = [run.environment.get("lmtrain_source") for run in runs]
    if None in hashes or hashes[0] == hashes[1]:
        return ()
    return ("the two were trained by different versions of lmtrain's code, which may be a part of their difference",)


def total_cost(pairs: Sequence[SeedPair]) -> dict[str, float]:
    """Return the cost of all runs of the pairs; a baseline's run counts in full, though other ideas share it."""
    return {unit: math.fsum(side[unit] for pair in pairs for side in pair.cost.values()) for unit in UNITS}


def _load(end: JobEnd) -> ComparedRun | None:
    try:
        found = load_runs([end.job.directory])
    except ValueError:  # the job failed before it had a run
        return None
    return found[0] if found else None


def _alone(run: ComparedRun | None, question: Question) -> float | None:
    """Return the last value of a run whose partner has none."""
    return float(values[-1]) if run and len(values := run.series(question.metric)[1]) else None


def _cost(end: JobEnd, run: ComparedRun | None) -> dict[str, float]:
    tokens = float(end.result.get("tokens") or 0)
    per_token = run.flops_per_token if run else math.nan
    seconds = float(end.result.get("seconds") or 0)
    return {"seconds": seconds, "tokens": tokens, "flops": tokens * per_token if math.isfinite(per_token) else 0.0}
