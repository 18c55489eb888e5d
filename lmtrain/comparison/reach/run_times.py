"""Finds between which evaluations each run reaches a value, and puts the runs of a setting together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lmtrain.comparison.lineage.forks import unit_of
from lmtrain.comparison.reach.rank_test import MIN_PAIRS, Interval, ReachTimes, SettingReach, reach_by_setting
from lmtrain.comparison.runs import AXES, ComparedRun
from lmtrain.comparison.statistics.replicates import group_numbers, replicate_groups
from lmtrain.comparison.statistics.significance import ALPHA
from lmtrain.comparison.statistics.wording.numbers import p_in_words
from lmtrain.errors import COMPLETED, UNSUCCESSFUL
from lmtrain.terminal.units import counted

SENTENCES = 3


@dataclass(frozen=True)
class ReachResult:
    """When settings reach a value: the settings from the soonest to the latest, and the verdicts in words."""

    axis: str
    settings: Sequence[SettingReach]
    sentences: Sequence[str]


def reach_intervals(run: ComparedRun, metric: str, goal: float, sign: int) -> dict[str, Interval] | None:
    """Return, for each axis, the places between which a run reaches the goal; None for a run without evaluations.

    A run that ends before has no upper place. A run that diverged before never reaches it, however long it would train.

    Args:
        run: The run.
        metric: The metric.
        goal: The value to reach.
        sign: 1 if lower values are better, −1 if higher are.
    """
    rows = np.flatnonzero(np.isfinite(run.metrics["step"]) & np.isfinite(run.metrics.get(metric, np.nan)))
    if not len(rows):
        return None
    good = np.flatnonzero(run.metrics[metric][rows] * sign <= goal * sign)
    first = int(good[0]) if len(good) else len(rows)
    found = {}
    for axis in AXES:
        places = np.concatenate([[0.0], run.metrics[axis][rows], [math.inf]])
        if not np.isfinite(places[:-1]).all():  # this run does not have the axis
            continue
        low, high = places[first : first + 2].tolist()
        found[axis] = (math.inf if not len(good) and run.status in UNSUCCESSFUL else low, high)
    return found


def when_settings_reach(
    classes: Sequence[tuple[str, Sequence[ComparedRun]]], metric: str, goal: float, sign: int, axis: str = "step"
) -> ReachResult | None:
    """Return when each setting reaches the goal; None if no setting has several seeds, so that runs say it all.

    Only settings in one class of runs, which measure the same, are compared with each other. Each class has a title,
    which is empty if there is only one.
    """
    if not math.isfinite(goal):
        return None
    found: list[SettingReach] = []
    sentences: list[str] = []
    for title, runs in classes:
        times = _times_by_setting(runs, metric, goal, sign)
        if title:
            times = [replace(each, label=title if len(times) == 1 else f"{title}: {each.label}") for each in times]
        axes = [name for name in AXES if all(name in own for each in times for own in each.times.values())]
        if axis not in axes:
            continue
        settings = reach_by_setting(times, axis, axes)
        found += settings
        sentences += _sentences(settings)
    if not any(setting.seeds > 1 for setting in found):
        return None
    return ReachResult(axis, found, sentences)


def _times_by_setting(runs: Sequence[ComparedRun], metric: str, goal: float, sign: int) -> list[ReachTimes]:
    evaluated = [run for run in runs if reach_intervals(run, metric, goal, sign)]
    # Every run counts, also one that is unfinished or has diverged, so all are grouped as if they were completed.
    as_completed = [replace(run, status=COMPLETED.status) for run in evaluated]
    groups, _ = replicate_groups(as_completed, lambda run: 0.0)
    members: dict[int, dict[object, list[Mapping[str, Interval]]]] = {}
    for run, number in zip(evaluated, group_numbers(evaluated), strict=True):
        own = reach_intervals(run, metric, goal, sign)
        assert own is not None
        members.setdefault(number, {}).setdefault(unit_of(run), []).append(own)
    latest = [high for units in members.values() for own in units.values() for each in own for high in _ends(each)]
    beyond = max(latest, default=0.0)
    return [
        ReachTimes(group.label, {unit: _together(own, beyond) for unit, own in units.items()}, group.start)
        for group, units in zip(groups, members.values(), strict=True)
    ]


def _ends(times: Mapping[str, Interval]) -> list[float]:
    return [place for interval in times.values() for place in interval if math.isfinite(place)]


def _together(runs: Sequence[Mapping[str, Interval]], beyond: float) -> dict[str, Interval]:
    """Return the times of one unit, whose runs are not independent: the mean of their places."""
    axes = [axis for axis in AXES if all(axis in own for own in runs)]
    # A run that diverged reaches the goal later than everything that was observed.
    return {
        axis: (
            float(np.mean([min(own[axis][0], beyond) for own in runs])),
            float(np.mean([own[axis][1] for own in runs])),
        )
        for axis in axes
    }


def _sentences(settings: Sequence[SettingReach]) -> list[str]:
    if len(settings) < 2:
        return []
    first, *others = settings
    fewest = min(setting.seeds for setting in settings)
    pairs = len(settings) * (len(settings) - 1) // 2
    smallest = pairs * 2 / math.comb(2 * fewest, fewest)
    if smallest >= ALPHA and fewest < MIN_PAIRS:
        return [
            f"{counted(fewest, 'seed')} each cannot show which setting is sooner: the smallest possible p of "
            f"{counted(pairs, 'comparison')} is {min(1.0, smallest):.2g}"
        ]
    sooner = [other for other in others if other.p is not None and other.p < ALPHA]
    said = [
        f"{first.label} is sooner than {other.label} ({p_in_words(other.p or 0.0)}, {_seeds(first, other)})"
        for other in sooner[:SENTENCES]
    ]
    unclear = len(others) - len(sooner)
    if unclear:
        words = others[0].label if unclear == len(others) == 1 else counted(unclear, "other setting")
        said.append(f"cannot tell whether {first.label} is sooner than {words}")
    return said


def _seeds(a: SettingReach, b: SettingReach) -> str:
    return f"{a.seeds} seeds each" if a.seeds == b.seeds else f"{a.seeds} and {b.seeds} seeds"
