"""Finds out whether runs are compared under equal conditions: the same point of a schedule, budget and machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmtrain.comparison.columns import place_text
from lmtrain.comparison.compared_run import ComparedRun
from lmtrain.comparison.lineage.families import families, goes_on
from lmtrain.comparison.notes import Note, names, without_seed
from lmtrain.comparison.run_values import ComparedValue, EqualPlace
from lmtrain.comparison.statistics.replicates import group_numbers
from lmtrain.errors import COMPLETED
from lmtrain.files.numbers import as_float
from lmtrain.terminal.as_text import first_few

SAME_PROGRESS = 0.01  # of a schedule's length
SAME_LR = 0.01  # of the peak: less than a logged line of a long schedule is away from its end
OTHER_SHAPE = 0.1  # of the peak: schedules of other shapes, not only of another min_lr
CONDITIONS, NAMED = 4, 2  # conditions in a note, and settings named for each


@dataclass(frozen=True)
class SchedulePoint:
    """Where a run is in its schedule.

    Attributes:
        lr: The learning rate.
        of_peak: The learning rate as a share of the peak.
        step: The optimizer step.
        length: The number of steps of the schedule.
        decays: Whether the learning rate becomes smaller after this point.
    """

    lr: float
    of_peak: float
    step: float
    length: float
    decays: bool

    @property
    def progress(self) -> float:
        return min(1.0, self.step / self.length)

    def __str__(self) -> str:
        return f"{self.lr:.3g} after {self.step:,.0f} of {self.length:,.0f} steps"


def schedule_point(run: ComparedRun, equal: EqualPlace) -> SchedulePoint | None:
    """Return where a run is in its schedule at a place; None if its files do not say it."""
    length = as_float(run.config.get(length_key(run)))
    xs, rates = run.series("lr", equal.axis)
    if not (len(xs) and rates.max() > 0 and length > 0):
        return None
    peak = float(np.fmax(as_float(run.config.get("optimizer.lr")), rates.max()))
    rate = float(np.interp(equal.place, xs, rates))
    step = float(np.interp(equal.place, *run.series("step", equal.axis)))
    later = rates[xs > equal.place]
    decays = bool(len(later)) and later.min() < rate - SAME_LR * peak
    if run.status != COMPLETED.status and not goes_on(run.config):
        decays = decays or step < length  # it has not logged its end
    return SchedulePoint(rate, rate / peak, step, length, decays)


def length_key(run: ComparedRun) -> str:
    """Return the config key for the length of the run's schedule."""
    return next((key for key in ("scheduler.max_steps", "trainer.max_steps") if key in run.config), "trainer.max_steps")


def condition_notes(runs: Sequence[ComparedRun], value: ComparedValue) -> list[Note]:
    """Return notes about runs that are compared under unequal conditions.

    Args:
        runs: The runs that have a value.
        value: The value that represents a run.
    """
    notes = []
    if value.place is not None:
        notes = schedule_notes(runs, value.place, intended=value.chosen)
        notes = notes or family_notes(runs, value.place, intended=value.chosen)
    if value.kind == "final":
        notes += budget_notes(runs, value.metric)
    if value.is_timed:
        notes += machine_notes(runs, timed_metric=value.kind != "at-seconds")
    return notes


def schedule_notes(runs: Sequence[ComparedRun], equal: EqualPlace, *, intended: bool) -> list[Note]:
    """Return a note if the runs are at different points of their schedules, because a decay lowers the loss.

    A schedule that does not decay has no such points: at an equal step, its length makes no difference.

    Args:
        runs: The runs that have a value.
        equal: The place at which they are compared.
        intended: Whether the user has asked for this place; then the verdict is marked instead of refused.
    """
    points = {run.label: point for run in runs if (point := schedule_point(run, equal))}
    if not points:
        return []
    seen = {(round(point.progress, 4), round(point.of_peak, 4), point.decays) for point in points.values()}
    progress, of_peak, decays = (np.array(column) for column in zip(*seen, strict=True))
    apart = np.abs(of_peak[:, None] - of_peak) * (decays[:, None] | decays)
    rates = in_words({run: str(point) for run, point in points.items()})
    if ((apart > SAME_LR) & (np.abs(progress[:, None] - progress) > SAME_PROGRESS)).any():
        common = most_common([run.config.get(length_key(run)) for run in runs])
        lengths = {str(run.config.get(length_key(run))) for run in runs}
        same = f", --filter {length_key(runs[0])}={common} only schedules of this length" if len(lengths) > 1 else ""
        here = "" if intended or equal.axis != "step" else f", and --at-step {equal.place:.0f} here all the same"
        text = (
            f"at {place_text(equal)}, the runs are at different points of their schedules: lr {rates}; --value final "
            f"compares each at its end{same}{here}"
        )
        return [Note("schedules", text, list(points), refuses=not intended, mark="at different learning rates")]
    if (apart > OTHER_SHAPE).any():
        text = (
            f"at {place_text(equal)}, the schedules are not at their ends, and their shapes differ: lr {rates}; "
            "--value final compares them at their ends"
        )
        return [Note("schedules", text, list(points))]
    return []


def family_notes(runs: Sequence[ComparedRun], equal: EqualPlace, *, intended: bool) -> list[Note]:
    """Return a note if trunks, which never decay, are compared with their branches, which do; see `schedule_notes`."""
    trunks = [run for family in families(runs) if family.branches for run in family.trunks]
    if not trunks:
        return []
    text = (
        f"at {place_text(equal)}, branches that decay are compared with their trunks, which do not ({names(trunks)}), "
        "and a decay lowers the loss; --value final compares branches that end after as many tokens"
    )
    labels = [run.label for run in trunks]
    return [Note("schedules", text, labels, refuses=not intended, mark="with a trunk that has not decayed")]


def budget_notes(runs: Sequence[ComparedRun], metric: str) -> list[Note]:
    """Return a note if final values are compared although the runs have different steps, tokens and FLOPs."""
    ends = {axis: {run.label: run.series(metric, axis)[0][-1:].tolist() for run in runs} for axis in
            ("step", "tokens", "flops")}  # fmt: skip
    if any(len({str(end) for end in of_axis.values()}) < 2 and all(of_axis.values()) for of_axis in ends.values()):
        return []
    last = {label: f"{end[0]:,.0f}" for label, end in ends["step"].items()}
    text = f"the runs have different budgets, and each is compared at its own end: step {in_words(last)}"
    return [
        Note("budgets", f"{text}; --value at-step compares at an equal step", list(last), mark="each at its own end")
    ]


def machine_notes(runs: Sequence[ComparedRun], *, timed_metric: bool) -> list[Note]:
    """Return a note if times are compared that the machines may explain.

    The settings must have run on the same machines, equally often; or each run on a machine of its own, all of the same
    hardware.

    Args:
        runs: The runs that have a value.
        timed_metric: Whether the metric itself is a speed or a time.
    """
    machines = {run.label: tuple(str(run.environment.get(key)) for key in ("host", "cpu", "device")) for run in runs}
    if len(set(machines.values())) < 2:
        return []
    used: dict[int, list[tuple[str, ...]]] = {}
    for run, setting in zip(runs, group_numbers(runs, timed=True), strict=True):
        used.setdefault(setting, []).append(machines[run.label])
    balanced = len({tuple(sorted(own)) for own in used.values()}) == 1
    alike = len({machine[1:] for machine in machines.values()}) == 1 and len(set(machines.values())) == len(runs)
    different = [number for number in range(3) if len({machine[number] for machine in machines.values()}) > 1]
    shown = {label: " ".join(machine[number] for number in different) for label, machine in machines.items()}
    text = f"the runs used different machines: {in_words(shown)}"
    if balanced or alike or len(used) < 2:
        return [Note("machines", f"{text}; part of the noise comes from them", list(machines))]
    host = most_common([machine[0] for machine in machines.values()])
    other = "" if timed_metric else "--value at-flops does not depend on the machine, and "
    text += f", and these change the times; {other}--filter 'host={host}' compares runs of one machine"
    return [Note("machines", text, list(machines), refuses=True)]


def in_words(conditions: Mapping[str, str]) -> str:
    """Return each condition with the first settings that have it: `600 (lr=0.001; lr=0.002 and 3 more)`."""
    settings: dict[str, dict[str, None]] = {}
    for label, condition in conditions.items():
        settings.setdefault(condition, {})[without_seed(label)] = None
    parts = (f"{condition} ({first_few(labels, NAMED, separator='; ')})" for condition, labels in settings.items())
    return first_few(parts, CONDITIONS)


def most_common(values: Sequence[Any]) -> Any:
    return max(values, key=values.count)
