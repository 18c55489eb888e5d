"""Compares runs and collects everything that the tables, the files and the page show."""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lmtrain.comparison.class_verdict import Wishes, class_verdict
from lmtrain.comparison.columns import Column, available_columns, find_column, place_text
from lmtrain.comparison.comparable.measured_alike import measured_alike
from lmtrain.comparison.lineage.families import Family, by_ending, families
from lmtrain.comparison.looking.looks import Looks, Mode
from lmtrain.comparison.looking.picked import notes_on_picking
from lmtrain.comparison.notes import Note
from lmtrain.comparison.reach.run_times import ReachResult, when_settings_reach
from lmtrain.comparison.run_values import (
    ComparedValue,
    EqualPlace,
    compared_value,
    default_goal,
    direction_is_known,
    sign,
    when_reached,
)
from lmtrain.comparison.runs import AXES, ComparedRun, differing_keys
from lmtrain.comparison.statistics.conclusions import Conclusions
from lmtrain.comparison.statistics.noise.baseline import find_baseline
from lmtrain.comparison.statistics.replicates import Member, group_numbers, members, repeated_runs, replicate_groups
from lmtrain.errors import COMPLETED
from lmtrain.terminal.units import counted

NO_VERDICT_ACROSS_ENDS = (
    "no verdict between runs that decayed at different places or not at all: a decay lowers the loss, and so do more "
    "tokens; branches are compared with those that end after as many tokens"
)


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
        members: The part of each run in the statistics: its group of replicates, and the value that represents it.
        conclusions: The results of the statistics; of several classes of runs, those about the first one, with all
            sentences.
        classes: The classes of runs whose values measure the same, each with a title, which is empty if there is only
            one, and its conclusions.
        refusals: Why there is no verdict between runs of two classes.
        looks: Whether the number of seeds was fixed before the first look at results.
        notes: Remarks about runs that are left out, repeated or not comparable, and about unequal looks.
        goal: The value of the metric for which the table of first evaluations is made.
        goal_chosen: True if the goal was not given, but chosen so that at least three in four runs reach it.
        reached: For each run, the step, tokens, FLOPs and seconds of its first evaluation at the goal or better.
        reach: When each setting reaches the goal; None if there is nothing to say of settings.
        asked: The requested columns; None means those in which the runs differ.
        families: The trunks with their branches.
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
    members: Sequence[Member]
    conclusions: Conclusions
    classes: Sequence[tuple[str, Conclusions]]
    refusals: Sequence[str]
    looks: Looks
    notes: Sequence[Note]
    goal: float
    goal_chosen: bool
    reached: Sequence[Mapping[str, float] | None]
    reach: ReachResult | None = None
    asked: Sequence[Column] | None = None
    families: Sequence[Family] = ()

    @property
    def parts(self) -> list[tuple[str, "RunComparison"]]:
        """Return, for each class of runs, its title and this comparison with only its conclusions."""
        return [(title, replace(self, conclusions=conclusions)) for title, conclusions in self.classes]

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
    value: str | None = None,
    difference: float | None = None,
    goal: float | None = None,
    asked: Sequence[str] | None = None,
    mode: Mode | None = None,
    about_choice: Sequence[Note] = (),
    baseline: str | None = None,
    margin: float | None = None,
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
        baseline: The setting to compare all others with, as `find_baseline` reads it; None means the best one.
        margin: A difference that is too small to matter; with it, settings may also be found to be the same.

    Raises:
        ValueError: no run has the metric, the requested value or a requested column.
    """
    if (logged := logged_metrics(runs)) and metric not in logged:
        raise ValueError(_unknown_metric(metric, logged))
    found_families = families(runs)
    value = value or default_kind(runs, at_step)
    about_direction = _direction_notes(metric, higher)
    chosen = compared_value(runs, value, metric, sign(metric, higher), at_step)
    measured = measured_alike(runs, metric, _compared_steps(runs, chosen))
    if measured.metric != metric:
        metric = measured.metric
        chosen = compared_value(runs, value, metric, sign(metric), at_step)
    if (value != "at-step" or at_step is not None) and not any(math.isfinite(chosen.of(run)) for run in runs):
        raise ValueError(_no_run_has(chosen, runs, at_step))
    by_end = bool(found_families) and len(runs) > 1 and value == "final"
    # At an equal place, a trunk and its branches are at different points of their schedules.
    places = {} if by_end else chosen.places
    # A loss that most runs reach says little about a family: its branches reach it by their decay.
    default = math.nan if by_end else default_goal(runs, metric, chosen.better)
    wanted = default if goal is None else goal
    columns = available_columns(runs, metric, places, chosen.better)
    asked_columns = None
    if asked is not None:
        asked_columns = [find_column(key, columns, runs, f"--columns {','.join(asked)}") for key in asked]
    # Runs that measure different things get no verdict against each other, and neither do unfair competitors.
    classed = [(alike.title(measured.alike), alike.runs) for alike in measured.alike]
    refusals = list(measured.refusals)
    if by_end:
        classed = [each for title, own in classed for each in _by_ending(title, own, metric)]
        refusals += [NO_VERDICT_ACROSS_ENDS] if len(classed) > len(measured.alike) else []
    grouped = [replicate_groups(own, chosen.of, timed=chosen.is_timed) for _, own in classed]
    named = None
    if baseline is not None:
        named = find_baseline(baseline, [group for groups, _ in grouped for group in groups], runs)
    wishes = Wishes(mode, [note.mark for note in about_choice if note.mark], difference, named, margin)
    verdicts = [
        class_verdict(own, chosen, groups, about_groups, wishes)
        for (_, own), (groups, about_groups) in zip(classed, grouped, strict=True)
    ]
    classes = [
        # Of a run that ends alone, the table has said everything.
        (title, replace(verdict.conclusions, sentences=[]) if by_end and len(own) == 1 else verdict.conclusions)
        for (title, own), verdict in zip(classed, verdicts, strict=True)
    ]
    about_measurement = [Note("measurement", text) for text in [*refusals, *measured.notes]]
    of_classes = {note.text: note for verdict in verdicts for note in verdict.notes}
    return RunComparison(
        runs=runs,
        metric=metric,
        better=chosen.better,
        keys=differing_keys(runs),
        places=places,
        columns=columns,
        value_kind=value,
        value=_value_name(chosen, runs),
        axis=chosen.axis,
        members=members(runs, chosen.of, timed=chosen.is_timed),
        conclusions=_of_all(classes, refusals),
        classes=classes,
        refusals=refusals,
        looks=verdicts[0].looks,
        notes=[
            *repeated_runs(runs),
            *about_choice,
            *notes_on_picking(runs),
            *about_direction,
            *about_measurement,
            *of_classes.values(),
        ],
        goal=wanted,
        goal_chosen=goal is None,
        reached=[when_reached(run, metric, wanted, chosen.better) for run in runs],
        reach=when_settings_reach(classed, metric, wanted, chosen.better, chosen.axis),
        asked=asked_columns,
        families=found_families,
    )


def default_kind(runs: Sequence[ComparedRun], at_step: int | None = None) -> str:
    """Return the kind of value to compare if none is asked for.

    A branch is compared where its decay ends, because the runs of a family share no other place that is fair.
    """
    return "final" if at_step is None and families(runs) else "at-step"


def _by_ending(title: str, runs: Sequence[ComparedRun], metric: str) -> list[tuple[str, list[ComparedRun]]]:
    """Return the classes of fair competitors among runs that measure the same."""
    return [(", ".join(filter(None, (title, end))), own) for end, own in by_ending(runs, group_numbers(runs), metric)]


def logged_metrics(runs: Sequence[ComparedRun]) -> list[str]:
    """Return the metrics of which some run has a value."""
    found = dict.fromkeys(name for run in runs for name in run.metrics if name not in AXES)
    return [name for name in found if any(len(run.series(name)[0]) for run in runs)]


def _direction_notes(metric: str, higher: bool | None) -> list[Note]:
    if higher is not None or direction_is_known(metric):
        return []
    return [Note("direction", f"lower {metric} is taken as better; --higher compares the other way")]


def _compared_steps(runs: Sequence[ComparedRun], value: ComparedValue) -> list[float] | None:
    """Return the steps of the values that are compared; None if they can be any."""
    if value.kind == "at-step" and value.place:
        return [value.place.place]
    ends = [float(xs[-1]) for run in runs if len(xs := run.series(value.metric)[0])]
    return [max(ends)] if value.kind == "final" and ends else None


def _of_all(classes: Sequence[tuple[str, Conclusions]], refusals: Sequence[str]) -> Conclusions:
    """Return the conclusions about the first class of runs, with the sentences about all classes."""
    first = classes[0][1]
    if len(classes) == 1:
        return first
    titled = [f"{title}: {sentence}" for title, own in classes for sentence in own.sentences]
    return replace(first, sentences=[*refusals, *titled])


def _value_name(value: ComparedValue, runs: Sequence[ComparedRun]) -> str:
    """Return the name of the compared value, such as `val/loss at step 200` or `best val/loss`."""
    if value.kind == "best":
        ends = value.steps[-1:]
        more = any(len(run.series(value.metric)[0]) > len(value.steps) for run in runs if math.isfinite(value.of(run)))
        shared = f" of the {counted(len(value.steps), 'evaluation')} that all runs share, up to step {ends[0]:.0f}"
        return f"best {value.metric}{shared if more else ''}"
    if value.kind == "final":
        return f"final {value.metric}"
    if value.place is None:
        return f"{value.metric} at equal {value.axis}"
    return f"{value.metric} at {place_text(value.place)}" + ("" if value.place.exact else " (interpolated)")


def _no_run_has(value: ComparedValue, runs: Sequence[ComparedRun], at_step: int | None) -> str:
    """Return the message that no run has the requested value, with a way out."""
    steps = value.steps
    way_out = f"; --at-step {steps[-1]:.0f} compares at the last step that they share" if len(steps) else ""
    if value.kind == "final" and not any(run.status == COMPLETED.status for run in runs):
        return f"--value final: no run has completed{way_out}"
    if value.kind == "best" and not len(steps):
        return "--value best: no step was evaluated in all runs; --value at-step interpolates"
    option = f"--at-step {at_step}" if value.kind == "at-step" else f"--value {value.kind}"
    return f"{option}: no run has this value{way_out}"


def _unknown_metric(metric: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(metric, known, n=1)
    way_out = f"did you mean {near[0]}?" if near else f"the runs have {', '.join(known)}"
    return f"--metric {metric}: no run has this metric; {way_out}"
