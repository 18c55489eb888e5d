"""Compares runs and collects everything that the tables, the files and the page show."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from lmtrain.compare.columns import Column, available_columns, find_column, place_text
from lmtrain.compare.looking.judge import judge
from lmtrain.compare.looking.looks import Looks, Mode
from lmtrain.compare.measurement import Measured, measured_alike
from lmtrain.compare.run_values import EqualPlace, deciding_runs, default_goal, equal_places, sign, when_reached
from lmtrain.compare.runs import AXES, ComparedRun, differing_keys
from lmtrain.compare.statistics.conclusions import Conclusions, conclude
from lmtrain.compare.statistics.replicates import repeated_runs, replicate_groups
from lmtrain.errors import COMPLETED


@dataclass(frozen=True)
class RunComparison:
    """The result of comparing runs.

    Attributes:
        runs: The runs, in the order to show them.
        metric: The metric that is compared.
        keys: The config keys in which the runs differ.
        places: For each axis, the place at which the runs are compared.
        columns: All columns of the runs, by key.
        value: The name of the value that the statistics are about, such as `val/loss at step 200`.
        axis: The axis of that value; `step` for the best and the final value.
        conclusions: The results of the statistics.
        looks: Whether the number of seeds was fixed before the first look at results.
        notes: Remarks about runs that are left out, repeated or not comparable.
        goal: The value of the metric for which the table of first evaluations is made.
        goal_chosen: True if the goal was not given, but chosen so that at least three in four runs reach it.
        reached: For each run, the step, tokens, FLOPs and seconds of its first evaluation at the goal or better.
        asked: The requested columns; None means those in which the runs differ.
    """

    runs: Sequence[ComparedRun]
    metric: str
    keys: Sequence[str]
    places: Mapping[str, EqualPlace]
    columns: Mapping[str, Column]
    value: str
    axis: str
    conclusions: Conclusions
    looks: Looks
    notes: Sequence[str]
    goal: float
    goal_chosen: bool
    reached: Sequence[Mapping[str, float] | None]
    asked: Sequence[Column] | None = None


def compare(
    runs: Sequence[ComparedRun],
    *,
    metric: str = "val/loss",
    at_step: int | None = None,
    value: str = "at-step",
    difference: float | None = None,
    goal: float | None = None,
    asked: Sequence[str] | None = None,
    mode: Mode | None = None,
) -> RunComparison:
    """Compare runs by a metric.

    Args:
        runs: The runs, in the order to show them.
        metric: A metric that the runs logged.
        at_step: The step at which runs are compared; None means the last step that they share.
        value: One of `VALUE_KINDS`: the value that represents a run in the statistics.
        difference: The difference for which to say how many seeds would detect it, in a comparison that is planned.
        goal: The value of the metric whose first evaluation is reported; None means one that most runs reach.
        asked: The keys of the columns to show; None means those in which the runs differ.
        mode: `planned` if the number of seeds was fixed before the first look, `again` if seeds were added after one;
            None means what the files of the runs' sweep say.

    Raises:
        ValueError: no run has the metric or a requested column.
    """
    if not any(len(run.series(metric)[0]) for run in runs) and any(len(run.metrics["step"]) for run in runs):
        raise ValueError(_unknown_metric(metric, runs))
    places = equal_places(runs, metric, at_step)
    measured = measured_alike(runs, metric, compared_steps(runs, value, metric, places))
    if measured.metric != metric:
        metric, places = measured.metric, equal_places(runs, measured.metric, at_step)
    wanted = default_goal(runs, metric) if goal is None else goal
    columns = available_columns(runs, metric, places)
    asked_columns = None
    if asked is not None:
        asked_columns = [find_column(key, columns, runs, f"--columns {','.join(asked)}") for key in asked]
    value_of = _value_function(value, metric, columns)
    # Runs that measure different things get no verdict against each other.
    by_class = [replicate_groups(alike.runs, value_of) for alike in measured.alike]
    judged = [
        judge(conclude(groups, sign=sign(metric)), alike.runs, sign(metric), mode, difference)
        for (groups, _), alike in zip(by_class, measured.alike, strict=True)
    ]
    notes = [*measured.notes, *(note for _, of_class in by_class for note in of_class)]
    if at_step is None and value == "at-step" and "step" in places:
        notes = [*_missing_at_equal_step(runs, metric, places["step"]), *notes]
    about_looks = dict.fromkeys(note for _, _, of_class in judged for note in of_class)
    return RunComparison(
        runs=runs,
        metric=metric,
        keys=differing_keys(runs),
        places=places,
        columns=columns,
        value=_value_name(value, metric, places),
        axis=value.removeprefix("at-") if value.startswith("at-") else "step",
        conclusions=with_other_classes([conclusions for conclusions, _, _ in judged], measured),
        looks=judged[0][1],
        notes=[*repeated_runs(runs), *notes, *about_looks],
        goal=wanted,
        goal_chosen=goal is None,
        reached=[when_reached(run, metric, wanted) for run in runs],
        asked=asked_columns,
    )


def _value_function(value: str, metric: str, columns: Mapping[str, Column]) -> Callable[[ComparedRun], float]:
    key = value.replace("-", "_")
    if key in columns:
        return columns[key].value
    return lambda run: float("nan")  # these runs do not have the axis


def compared_steps(
    runs: Sequence[ComparedRun], value: str, metric: str, places: Mapping[str, EqualPlace]
) -> list[float] | None:
    """Return the steps of the values that are compared; None if they can be any."""
    if value == "at-step" and "step" in places:
        return [places["step"].place]
    ends = [float(xs[-1]) for run in runs if len(xs := run.series(metric)[0])]
    return [max(ends)] if value == "final" and ends else None


def with_other_classes(conclusions: Sequence[Conclusions], measured: Measured) -> Conclusions:
    """Return the conclusions about the first class of runs, with the sentences about the other classes."""
    if len(conclusions) == 1:
        return conclusions[0]
    sentences = [
        f"{alike.title(measured.alike)}: {sentence}"
        for alike, own in zip(measured.alike, conclusions, strict=True)
        for sentence in own.sentences
    ]
    return replace(conclusions[0], sentences=sentences)


def _missing_at_equal_step(runs: Sequence[ComparedRun], metric: str, equal: EqualPlace) -> list[str]:
    """Return notes if completed runs have no value at the equal step; they name the reason and the way out."""
    steps = {run.label: run.series(metric)[0] for run in runs if run.status == COMPLETED.status}
    ends = {label: xs[-1] for label, xs in steps.items() if len(xs)}
    found = []
    late = [ends[label] for label in ends if steps[label][0] > equal.place]
    if late:
        deciding = min(deciding_runs(runs, metric), key=lambda run: run.series(metric)[0][-1])
        found.append(
            f"runs are compared at {place_text(equal)} because of {deciding.label}, but {len(late)} of {len(ends)} "
            f"completed runs were first evaluated later; --at-step {min(late):.0f} or --filter "
            f"'steps>={min(late):.0f}' compares those"
        )
    early = sum(end < equal.place for end in ends.values())
    if early:
        found.append(
            f"{early} of {len(ends)} completed runs end before {place_text(equal)}, the last step that the others "
            f"share; --filter 'steps<{equal.place:.0f}' compares them, and --at-step N compares all at another step"
        )
    return found


def _value_name(value: str, metric: str, places: Mapping[str, EqualPlace]) -> str:
    """Return the name of the compared value, such as `val/loss at step 200` or `best val/loss`."""
    if not value.startswith("at-"):
        return f"{value} {metric}"
    axis = value.removeprefix("at-")
    if axis not in places:
        return f"{metric} at equal {axis}"
    return f"{metric} at {place_text(places[axis])}" + ("" if places[axis].exact else " (interpolated)")


def _unknown_metric(metric: str, runs: Sequence[ComparedRun]) -> str:
    known = [name for name in dict.fromkeys(name for run in runs for name in run.metrics) if name not in AXES]
    near = difflib.get_close_matches(metric, known, n=1)
    way_out = f"did you mean {near[0]}?" if near else f"the runs have {', '.join(known)}"
    return f"--metric {metric}: no run has this metric; {way_out}"
