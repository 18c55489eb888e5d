"""Calculates values of a run: its metric at an equal step, the best and final value, and when it reached a goal."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lmtrain.comparison.runs import AXES, ComparedRun
from lmtrain.errors import COMPLETED, DIVERGED, UNSUCCESSFUL
from lmtrain.files.metrics import MEASURED

# Words in the names of metrics of which higher, or lower, values are better.
HIGHER = (
    "acc|accuracy|auc|bleu|chrf|em|exact_match|f1|mcc|mfu|pass|precision|recall|reward|rouge|score|throughput|"
    "tokens_per_second|win_rate"
)
LOWER = "bits|bits_per_byte|error|grad_norm|loss|memory_gb|nll|perplexity|ppl|seconds|step_time_ms"
DIRECTION = re.compile(rf"(?<![a-z])(?:(?P<higher>{HIGHER})|{LOWER})(?![a-z])")
VALUE_KINDS = ("at-step", "at-tokens", "at-flops", "at-seconds", "best", "final")


@dataclass(frozen=True)
class EqualPlace:
    """A place on an axis at which runs are compared; `exact` if all deciding runs have an evaluation there."""

    axis: str
    place: float
    exact: bool


def sign(metric: str, higher: bool | None = None) -> int:
    """Return 1 if lower values of the metric are better, as for a loss; −1 if higher values are.

    Args:
        metric: The metric.
        higher: Whether higher values are better; None means that the last known word in the metric's name decides,
            such as `accuracy`. Without one, lower values are better.
    """
    if higher is None:
        words = list(DIRECTION.finditer(metric.lower()))
        higher = bool(words and words[-1]["higher"])
    return -1 if higher else 1


def direction_is_known(metric: str) -> bool:
    """Return whether the name of the metric says if higher or lower values are better."""
    return DIRECTION.search(metric.lower()) is not None


def deciding_runs(runs: Sequence[ComparedRun], metric: str) -> list[ComparedRun]:
    """Return the runs that decide where all runs are compared.

    These are the completed runs or, if fewer than two are completed, all that have not failed. A few much shorter runs
    do not decide: fewer than a third of the runs, each less than half as long as the others.
    """
    measured = [run for run in runs if len(run.series(metric)[0])]
    deciding = [run for run in measured if run.status == COMPLETED.status]
    if len(deciding) < 2:
        deciding = [run for run in measured if run.status not in UNSUCCESSFUL] or measured
    ends = [run.series(metric)[0][-1] for run in deciding]
    typical = sorted(ends)[(len(ends) - 1) // 3] if ends else 0  # more than two thirds of the runs are this long
    return [run for run, end in zip(deciding, ends, strict=True) if 2 * end >= typical]


def equal_places(runs: Sequence[ComparedRun], metric: str, at_step: int | None = None) -> dict[str, EqualPlace]:
    """Return, for each axis, the furthest place that all deciding runs reached.

    A run without usable numbers on an axis has no say about it. An axis that fewer than two runs have is left out,
    unless there is only one run.
    """
    deciding = deciding_runs(runs, metric)
    places = {}
    for axis in AXES:
        points = [xs for run in deciding if is_usable(xs := run.series(metric, axis)[0])]
        if len(points) < min(2, max(1, len(deciding))):
            continue
        shared = set(points[0].tolist()).intersection(*(xs.tolist() for xs in points[1:]))
        place = max(shared) if axis == "step" and shared else min(float(xs[-1]) for xs in points)
        if axis == "step" and at_step is not None:
            place = float(at_step)
        places[axis] = EqualPlace(axis, place, all(place in xs for xs in points))
    return places


def is_usable(xs: np.ndarray) -> bool:
    """Return whether the places on an axis are those of a run; damaged ones may be negative or fall."""
    return bool(len(xs)) and 0 <= xs.min() and xs.max() == xs[-1]


def value_at(run: ComparedRun, metric: str, equal: EqualPlace) -> float:
    """Return the metric at a place, interpolated between evaluations; NaN outside the run.

    The interpolation is linear over the logarithm of the axis: a loss bends less over it, so that a run with few
    evaluations is at no disadvantage. Only the stretch after place 0 has no logarithm.
    """
    xs, ys = run.series(metric, equal.axis)
    if not (is_usable(xs) and xs[0] <= equal.place <= xs[-1]):
        return math.nan
    positive = xs > 0
    if equal.place in xs or equal.place < xs[positive][0]:
        return float(np.interp(equal.place, xs, ys))
    return float(np.interp(math.log(equal.place), np.log(xs[positive]), ys[positive]))


def shared_steps(runs: Sequence[ComparedRun], metric: str) -> np.ndarray:
    """Return the steps at which all deciding runs have the metric."""
    steps = [run.series(metric)[0].tolist() for run in deciding_runs(runs, metric)]
    return np.array(sorted(set(steps[0]).intersection(*steps[1:])) if steps else [])


def best_value(
    run: ComparedRun, metric: str, better: int | None = None, among: np.ndarray | None = None
) -> tuple[float, float]:
    """Return the best value and its step; NaN for a run without values.

    Args:
        run: The run.
        metric: The metric.
        better: 1 or −1, as `sign` returns it; None means that the name of the metric decides.
        among: Steps to take the best of. A run without one of them has no value. None means all steps of the run.
    """
    steps, values = run.series(metric)
    if among is not None:
        values = values[np.isin(steps, among)] if np.isin(among, steps).all() else values[:0]
        steps = among
    if not len(values):
        return math.nan, math.nan
    index = int(np.argmin(values * (better or sign(metric))))
    return float(values[index]), float(steps[index])


def final_value(run: ComparedRun, metric: str) -> float:
    """Return the last value; NaN for a run without values."""
    _, values = run.series(metric)
    return float(values[-1]) if len(values) else math.nan


def median_speed(run: ComparedRun) -> float:
    """Return the median tokens per second, which a stall or the compilation hardly changes."""
    _, values = run.series("tokens_per_second")
    return float(np.median(values)) if len(values) else math.nan


def default_goal(runs: Sequence[ComparedRun], metric: str, better: int | None = None) -> float:
    """Return a value that at least three in four of the deciding runs reach; NaN without runs."""
    better = better or sign(metric)
    bests = [best_value(run, metric, better)[0] * better for run in deciding_runs(runs, metric)]
    return float(np.quantile(bests, 0.75, method="higher")) * better if bests else math.nan


def when_reached(run: ComparedRun, metric: str, goal: float, better: int | None = None) -> dict[str, float] | None:
    """Return the step, tokens, FLOPs and seconds of the first evaluation at the goal or better; None without one."""
    better = better or sign(metric)
    _, values = run.series(metric)
    good = np.flatnonzero(values * better <= goal * better)
    if not len(good):
        return None
    rows = np.flatnonzero(np.isfinite(run.metrics["step"]) & np.isfinite(run.metrics[metric]))
    return {axis: float(run.metrics[axis][rows[good[0]]]) for axis in AXES}


@dataclass(frozen=True)
class ComparedValue:
    """The value that represents a run in the statistics.

    Attributes:
        kind: One of `VALUE_KINDS`.
        metric: The metric.
        better: 1 if lower values are better, −1 if higher values are.
        places: For each axis, the place at which the runs are compared.
        steps: The steps that the runs share, of which `best` is the best.
        chosen: Whether the user chose the step at which the runs are compared.
    """

    kind: str
    metric: str
    better: int
    places: Mapping[str, EqualPlace]
    steps: np.ndarray
    chosen: bool

    @property
    def axis(self) -> str:
        """Return the axis of the place; `step` for the best and the final value."""
        return self.kind.removeprefix("at-") if self.kind.startswith("at-") else "step"

    @property
    def place(self) -> EqualPlace | None:
        """Return the last place that counts for all runs; None if there is none, or if each run has its own end."""
        if self.kind == "best":
            return EqualPlace("step", float(self.steps[-1]), True) if len(self.steps) else None
        return None if self.kind == "final" else self.places.get(self.axis)

    @property
    def is_timed(self) -> bool:
        """Return whether the value depends on the speed of the machine."""
        return self.kind == "at-seconds" or self.metric.rpartition("/")[2] in MEASURED

    def of(self, run: ComparedRun) -> float:
        """Return the value of a run; NaN if it has none.

        A diverged run has none, even if it diverged after the place at which the runs are compared. Any other run has
        one if it was evaluated there, whether or not it has finished: what happens to it later cannot change this
        value. The final value needs a completed run.
        """
        if run.status == DIVERGED.status:
            return math.nan
        if self.kind == "final":
            return final_value(run, self.metric) if run.status == COMPLETED.status else math.nan
        if self.kind == "best":
            return best_value(run, self.metric, self.better, self.steps)[0]
        return value_at(run, self.metric, self.place) if self.place else math.nan


def compared_value(
    runs: Sequence[ComparedRun], kind: str, metric: str, better: int, at_step: int | None = None
) -> ComparedValue:
    """Return the value of this kind for runs that are compared with each other.

    Args:
        runs: The runs.
        kind: One of `VALUE_KINDS`.
        metric: The metric.
        better: 1 if lower values are better, −1 if higher values are.
        at_step: The step at which the runs are compared; None means the last one that they share.
    """
    places = equal_places(runs, metric, at_step)
    return ComparedValue(kind, metric, better, places, shared_steps(runs, metric), at_step is not None)
