"""A comparison as a whole: what the tables, the files and the page show."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lmtrain.compare.columns import Column, available_columns, find_column, place_text
from lmtrain.compare.run_values import EqualPlace, deciding_runs, default_goal, equal_places, sign, when_reached
from lmtrain.compare.runs import AXES, Run, differing_keys
from lmtrain.compare.statistics.conclusions import Conclusions, conclude
from lmtrain.compare.statistics.replicates import repeated_runs, replicate_groups
from lmtrain.errors import COMPLETED


@dataclass(frozen=True)
class RunComparison:
    """The result of comparing runs.

    `keys` are the config keys that differ; `places` where runs are equal, by axis; `value` names what the statistics
    are of, and `axis` what that is equal in (step, if in nothing). `reached` has, for each run in order, step,
    tokens, FLOPs and seconds at which it first was at `goal`, which was given or (`goal_chosen`) is what three runs
    in four reach. `asked` are the columns to show (None: those that tell the runs apart).
    """

    runs: Sequence[Run]
    metric: str
    keys: Sequence[str]
    places: Mapping[str, EqualPlace]
    columns: Mapping[str, Column]
    value: str
    axis: str
    conclusions: Conclusions
    notes: Sequence[str]
    goal: float
    goal_chosen: bool
    reached: Sequence[Mapping[str, float] | None]
    asked: Sequence[Column] | None = None


def compare(
    runs: Sequence[Run],
    *,
    metric: str = "val/loss",
    at_step: int | None = None,
    value: str = "at-step",
    difference: float | None = None,
    goal: float | None = None,
    asked: Sequence[str] | None = None,
) -> RunComparison:
    """Compare runs by a metric.

    `value` is what stands for a run in the statistics, one of `VALUE_KINDS`; `difference` the one that more seeds
    should decide (None: the observed one); `goal` what runs are to reach (None: what three in four do); `asked` are
    keys of columns to show.

    Raises:
        ValueError: a metric or a column that no run has.
    """
    if not any(len(run.series(metric)[0]) for run in runs) and any(len(run.metrics["step"]) for run in runs):
        raise ValueError(_unknown_metric(metric, runs))
    wanted = default_goal(runs, metric) if goal is None else goal
    places = equal_places(runs, metric, at_step)
    columns = available_columns(runs, metric, places)
    asked_columns = None
    if asked is not None:
        asked_columns = [find_column(key, columns, runs, f"--columns {','.join(asked)}") for key in asked]
    found, notes = replicate_groups(runs, _value_function(value, metric, columns))
    if at_step is None and value == "at-step" and "step" in places:
        notes = [*_missing_at_equal_step(runs, metric, places["step"]), *notes]
    return RunComparison(
        runs=runs,
        metric=metric,
        keys=differing_keys(runs),
        places=places,
        columns=columns,
        value=_value_name(value, metric, places),
        axis=value.removeprefix("at-") if value.startswith("at-") else "step",
        conclusions=conclude(found, sign=sign(metric), difference=difference),
        notes=[*repeated_runs(runs), *notes],
        goal=wanted,
        goal_chosen=goal is None,
        reached=[when_reached(run, metric, wanted) for run in runs],
        asked=asked_columns,
    )


def _value_function(value: str, metric: str, columns: Mapping[str, Column]) -> Callable[[Run], float]:
    key = value.replace("-", "_")
    if key in columns:
        return columns[key].value
    return lambda run: float("nan")  # an axis that these runs have not


def _missing_at_equal_step(runs: Sequence[Run], metric: str, equal: EqualPlace) -> list[str]:
    """Return a note if completed runs lack a value at the equal step: which run decides it, and what to do."""
    steps = {run.label: run.series(metric)[0] for run in runs if run.status == COMPLETED.status}
    ends = {label: xs[-1] for label, xs in steps.items() if len(xs)}
    found = []
    late = [ends[label] for label in ends if steps[label][0] > equal.place]
    if late:
        deciding = min(deciding_runs(runs, metric), key=lambda run: run.series(metric)[0][-1])
        found.append(
            f"{deciding.label} decides that runs are compared at {place_text(equal)}, before {len(late)} of "
            f"{len(ends)} completed ones were evaluated; --at-step {min(late):.0f}, or --filter "
            f"'steps>={min(late):.0f}', compares these"
        )
    early = sum(end < equal.place for end in ends.values())
    if early:
        found.append(
            f"{early} of {len(ends)} completed runs end before {place_text(equal)}, the last that the others share; "
            f"--filter 'steps<{equal.place:.0f}' compares them, --at-step N takes another step"
        )
    return found


def _value_name(value: str, metric: str, places: Mapping[str, EqualPlace]) -> str:
    """Return `val/loss at step 200`, `best val/loss`."""
    if not value.startswith("at-"):
        return f"{value} {metric}"
    axis = value.removeprefix("at-")
    if axis not in places:
        return f"{metric} at equal {axis}"
    return f"{metric} at {place_text(places[axis])}" + ("" if places[axis].exact else " (interpolated)")


def _unknown_metric(metric: str, runs: Sequence[Run]) -> str:
    known = [name for name in dict.fromkeys(name for run in runs for name in run.metrics) if name not in AXES]
    near = difflib.get_close_matches(metric, known, n=1)
    return f"--metric {metric}: no run has it" + (f"; did you mean {near[0]}?" if near else f"; {', '.join(known)}")
