"""Calculates values of a run: its metric at an equal step, the best and final value, and when it reached a goal."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmtrain.compare.runs import AXES, ComparedRun
from lmtrain.errors import COMPLETED, UNSUCCESSFUL

HIGHER_IS_BETTER = ("tokens_per_second", "mfu")
VALUE_KINDS = ("at-step", "at-tokens", "at-flops", "at-seconds", "best", "final")


@dataclass(frozen=True)
class EqualPlace:
    """A place on an axis at which runs are compared; `exact` if all deciding runs have an evaluation there."""

    axis: str
    place: float
    exact: bool


def sign(metric: str) -> int:
    """Return 1 if lower values of the metric are better, as for a loss; −1 if higher values are."""
    return -1 if metric in HIGHER_IS_BETTER else 1


def deciding_runs(runs: Sequence[ComparedRun], metric: str) -> list[ComparedRun]:
    """Return the runs that decide where all runs are compared.

    These are the completed runs or, if fewer than two are completed, all that have not failed. A few much shorter runs
    do not decide: fewer than a third of the runs, each less than half as long as the others.
    """
    measured = [run for run in runs if len(run.series(metric)[0])]
    completed = [run for run in measured if run.status == COMPLETED.status]
    if len(completed) < 2:
        return [run for run in measured if run.status not in UNSUCCESSFUL] or measured
    ends = [run.series(metric)[0][-1] for run in completed]
    typical = sorted(ends)[(len(ends) - 1) // 3]  # more than two thirds of the runs are at least this long
    return [run for run, end in zip(completed, ends, strict=True) if 2 * end >= typical]


def equal_places(runs: Sequence[ComparedRun], metric: str, at_step: int | None = None) -> dict[str, EqualPlace]:
    """Return, for each axis, the furthest place that all deciding runs reached.

    An axis that one of these runs does not have is left out.
    """
    deciding = deciding_runs(runs, metric)
    places = {}
    for axis in AXES:
        points = [run.series(metric, axis)[0] for run in deciding]
        if not points or not all(map(len, points)):
            continue
        shared = set(points[0].tolist()).intersection(*(xs.tolist() for xs in points[1:]))
        place = max(shared) if axis == "step" and shared else min(float(xs[-1]) for xs in points)
        if axis == "step" and at_step is not None:
            place = float(at_step)
        places[axis] = EqualPlace(axis, place, all(place in xs for xs in points))
    return places


def value_at(run: ComparedRun, metric: str, equal: EqualPlace) -> float:
    """Return the metric at a place, linearly interpolated between evaluations; NaN outside the run."""
    xs, ys = run.series(metric, equal.axis)
    if not len(xs) or not xs[0] <= equal.place <= xs[-1]:
        return math.nan
    return float(np.interp(equal.place, xs, ys))


def best_value(run: ComparedRun, metric: str) -> tuple[float, float]:
    """Return the best value and its step; NaN for a run without values."""
    steps, values = run.series(metric)
    if not len(values):
        return math.nan, math.nan
    index = int(np.argmin(values * sign(metric)))
    return float(values[index]), float(steps[index])


def final_value(run: ComparedRun, metric: str) -> float:
    """Return the last value; NaN for a run without values."""
    _, values = run.series(metric)
    return float(values[-1]) if len(values) else math.nan


def median_speed(run: ComparedRun) -> float:
    """Return the median tokens per second, which a stall or the compilation hardly changes."""
    _, values = run.series("tokens_per_second")
    return float(np.median(values)) if len(values) else math.nan


def default_goal(runs: Sequence[ComparedRun], metric: str) -> float:
    """Return a value that at least three in four of the deciding runs reach; NaN without runs."""
    bests = [best_value(run, metric)[0] * sign(metric) for run in deciding_runs(runs, metric)]
    return float(np.quantile(bests, 0.75, method="higher")) * sign(metric) if bests else math.nan


def when_reached(run: ComparedRun, metric: str, goal: float) -> dict[str, float] | None:
    """Return the step, tokens, FLOPs and seconds of the first evaluation at the goal or better; None without one."""
    _, values = run.series(metric)
    good = np.flatnonzero(values * sign(metric) <= goal * sign(metric))
    if not len(good):
        return None
    rows = np.flatnonzero(np.isfinite(run.metrics["step"]) & np.isfinite(run.metrics[metric]))
    return {axis: float(run.metrics[axis][rows[good[0]]]) for axis in AXES}
