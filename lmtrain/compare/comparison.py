"""Compares runs and collects everything that the tables, the files and the page show."""

import difflib
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lmtrain.compare.columns import Column, available_columns, find_column, place_text
from lmtrain.compare.equal_looks import budget_notes, machine_notes, schedule_notes
from lmtrain.compare.looking.judge import judge
from lmtrain.compare.looking.looks import Looks, Mode
from lmtrain.compare.looking.picked import notes_on_picking
from lmtrain.compare.looking.plan_sentences import plan_sentences
from lmtrain.compare.measurement import Measured, measured_alike
from lmtrain.compare.notes import Note
from lmtrain.compare.run_values import (
    EqualPlace,
    default_goal,
    direction_is_known,
    equal_places,
    shared_steps,
    sign,
    value_function,
    when_reached,
)
from lmtrain.compare.runs import AXES, ComparedRun, differing_keys
from lmtrain.compare.statistics.conclusions import Conclusions, conclude
from lmtrain.compare.statistics.replicates import group_numbers, repeated_runs, replicate_groups
from lmtrain.compare.unfinished import completion_notes
from lmtrain.errors import COMPLETED
from lmtrain.files.metrics import MEASURED

EXPLANATION = "±"  # how a sentence begins that explains the verdicts


@dataclass(frozen=True)
class RunComparison:
    """The result of comparing runs.

    Attributes:
        runs: The runs, in the order to show them.
        metric: The metric that is compared.
        better: 1 if lower values of the metric are better, −1 if higher values are.
        keys: The config keys in which the runs differ.
        places: For each axis, the place at which the runs are compared.
        columns: All columns of the runs, by key.
        value_kind: One of `VALUE_KINDS`.
        value: The name of the value that the statistics are about, such as `val/loss at step 200`.
        axis: The axis of that value; `step` for the best and the final value.
        conclusions: The results of the statistics.
        looks: Whether the number of seeds was fixed before the first look at results.
        notes: Remarks about runs that are left out, repeated or not comparable, and about unequal looks.
        goal: The value of the metric for which the table of first evaluations is made.
        goal_chosen: True if the goal was not given, but chosen so that at least three in four runs reach it.
        reached: For each run, the step, tokens, FLOPs and seconds of its first evaluation at the goal or better.
        asked: The requested columns; None means those in which the runs differ.
    """

    runs: Sequence[ComparedRun]
    metric: str
    better: int
    keys: Sequence[str]
    places: Mapping[str, EqualPlace]
    columns: Mapping[str, Column]
    value_kind: str
    value: str
    axis: str
    conclusions: Conclusions
    looks: Looks
    notes: Sequence[Note]
    goal: float
    goal_chosen: bool
    reached: Sequence[Mapping[str, float] | None]
    asked: Sequence[Column] | None = None

    @property
    def further_notes(self) -> list[Note]:
        """Return the notes that no sentence contains."""
        return [note for note in self.notes if not any(note.text in text for text in self.conclusions.sentences)]


def compare(
    runs: Sequence[ComparedRun],
    *,
    metric: str = "val/loss",
    higher: bool | None = None,
    at_step: int | None = None,
    value: str = "at-step",
    difference: float | None = None,
    goal: float | None = None,
    asked: Sequence[str] | None = None,
    mode: Mode | None = None,
    about_choice: Sequence[Note] = (),
) -> RunComparison:
    """Compare runs by a metric.

    Args:
        runs: The runs, in the order to show them.
        metric: A metric that the runs logged.
        higher: Whether higher values of the metric are better; None means that its name decides.
        at_step: The step at which runs are compared; None means the last step that they share.
        value: One of `VALUE_KINDS`: the value that represents a run in the statistics.
        difference: The difference for which to say how many seeds would detect it, in a comparison that is planned.
        goal: The value of the metric whose first evaluation is reported; None means one that most runs reach.
        asked: The keys of the columns to show; None means those in which the runs differ.
        mode: `planned` if the number of seeds was fixed before the first look, `again` if seeds were added after one;
            None means what the files of the runs' sweep say.
        about_choice: Notes about how these runs were chosen.

    Raises:
        ValueError: no run has the metric, the requested value or a requested column.
    """
    if (logged := logged_metrics(runs)) and metric not in logged:
        raise ValueError(_unknown_metric(metric, logged))
    asked_metric, places = metric, equal_places(runs, metric, at_step)
    measured = measured_alike(runs, metric, compared_steps(runs, value, metric, places))
    metric = measured.metric
    better = sign(metric, higher if metric == asked_metric else None)
    wanted = default_goal(runs, metric, better) if goal is None else goal
    places, steps = equal_places(runs, metric, at_step), shared_steps(runs, metric)
    columns = available_columns(runs, metric, places, better)
    asked_columns = None
    if asked is not None:
        asked_columns = [find_column(key, columns, runs, f"--columns {','.join(asked)}") for key in asked]
    value_of = value_function(value, metric, places, steps, better)
    with_value = [run for run in runs if math.isfinite(value_of(run))]
    if not with_value and (value != "at-step" or at_step is not None):
        _refuse_missing_value(runs, metric, value, at_step)
    place = _place(value, places, steps)
    notes = [*about_choice, *notes_on_picking(runs), *(Note("measurement", text) for text in measured.notes)]
    if higher is None and not direction_is_known(metric):
        notes.append(Note("direction", f"lower {metric} is taken as better; --higher compares the other way"))
    if place:
        notes += schedule_notes(with_value, place, intended=at_step is not None and value == "at-step")
    if value == "final":
        notes += budget_notes(with_value, metric)
    timed = value == "at-seconds" or metric.rpartition("/")[2] in MEASURED
    if timed:
        notes += machine_notes(with_value, _setting_function(runs), timed_metric=value != "at-seconds")
    at_places = place if value == "at-step" else None
    notes += completion_notes(runs, metric, value_of, at_places, chosen=at_step is not None)
    # Runs that measure different things get no verdict against each other.
    by_class = [replicate_groups(alike.runs, value_of, timed=timed) for alike in measured.alike]
    notes = [*repeated_runs(runs), *notes, *(note for _, of_class in by_class for note in of_class)]
    refused = [note.text for note in notes if note.refuses]
    judged = [
        judge(conclude(groups, sign=better, refused=refused), alike.runs, better, mode)
        for (groups, _), alike in zip(by_class, measured.alike, strict=True)
    ]
    notes += [Note("looks", text) for text in dict.fromkeys(text for _, _, of_class in judged for text in of_class)]
    conclusions = with_other_classes([own for own, _, _ in judged], measured)
    if difference is not None:
        plan = plan_sentences(conclusions.groups, runs, difference, judged[0][1])
        conclusions = replace(conclusions, sentences=[*conclusions.sentences, *plan])
    return RunComparison(
        runs=runs,
        metric=metric,
        better=better,
        keys=differing_keys(runs),
        places=places,
        columns=columns,
        value_kind=value,
        value=_value_name(value, metric, places, steps, with_value),
        axis=value.removeprefix("at-") if value.startswith("at-") else "step",
        conclusions=_marked(conclusions, notes),
        looks=judged[0][1],
        notes=notes,
        goal=wanted,
        goal_chosen=goal is None,
        reached=[when_reached(run, metric, wanted, better) for run in runs],
        asked=asked_columns,
    )


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
        if not sentence.startswith(EXPLANATION)
    ]
    sentences += [sentence for sentence in conclusions[0].sentences if sentence.startswith(EXPLANATION)]
    return replace(conclusions[0], sentences=sentences)


def _place(value: str, places: Mapping[str, EqualPlace], steps: np.ndarray) -> EqualPlace | None:
    """Return the place at which the runs are compared; None if each is compared at its own end."""
    if value == "best":
        return EqualPlace("step", float(steps[-1]), True) if len(steps) else None
    return places.get(value.removeprefix("at-"))


def _setting_function(runs: Sequence[ComparedRun]) -> Callable[[ComparedRun], Hashable]:
    """Return a function that gives two of these runs the same value if they differ only in the seed."""
    numbers = dict(zip(map(id, runs), group_numbers(runs, timed=True), strict=True))
    return lambda run: numbers[id(run)]


def _marked(conclusions: Conclusions, notes: Sequence[Note]) -> Conclusions:
    """Return the conclusions with the marks of the notes in front of each verdict."""
    marks = dict.fromkeys(note.mark for note in notes if note.mark and not note.refuses)
    if not (marks and conclusions.comparisons):
        return conclusions
    mark = f"{', '.join(marks)}: "
    return replace(
        conclusions,
        comparisons=[replace(one, sentence=mark + one.sentence) for one in conclusions.comparisons],
        sentences=[text if text.startswith(EXPLANATION) else mark + text for text in conclusions.sentences],
    )


def _value_name(
    value: str, metric: str, places: Mapping[str, EqualPlace], steps: np.ndarray, runs: Sequence[ComparedRun]
) -> str:
    """Return the name of the compared value, such as `val/loss at step 200` or `best val/loss`."""
    if value == "best" and any(len(run.series(metric)[0]) > len(steps) for run in runs):
        return f"best {metric} of the {len(steps)} evaluations that all runs share"
    if not value.startswith("at-"):
        return f"{value} {metric}"
    axis = value.removeprefix("at-")
    if axis not in places:
        return f"{metric} at equal {axis}"
    return f"{metric} at {place_text(places[axis])}" + ("" if places[axis].exact else " (interpolated)")


def _refuse_missing_value(runs: Sequence[ComparedRun], metric: str, value: str, at_step: int | None) -> None:
    """Raise ValueError, with a way out, if no run has the requested value."""
    steps = shared_steps(runs, metric)
    way_out = f"; --at-step {steps[-1]:.0f} compares at the last step that they share" if len(steps) else ""
    if value == "final" and not any(run.status == COMPLETED.status for run in runs):
        raise ValueError(f"--value final: no run has completed{way_out}")
    if value == "best" and not len(steps):
        raise ValueError("--value best: no step was evaluated in all runs; --value at-step interpolates")
    option = f"--at-step {at_step}" if value == "at-step" else f"--value {value}"
    raise ValueError(f"{option}: no run has this value{way_out}")


def logged_metrics(runs: Sequence[ComparedRun]) -> list[str]:
    """Return the metrics of which some run has a value."""
    found = dict.fromkeys(name for run in runs for name in run.metrics if name not in AXES)
    return [name for name in found if any(len(run.series(name)[0]) for run in runs)]


def _unknown_metric(metric: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(metric, known, n=1)
    way_out = f"did you mean {near[0]}?" if near else f"the runs have {', '.join(known)}"
    return f"--metric {metric}: no run has this metric; {way_out}"
