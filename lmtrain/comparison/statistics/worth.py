"""Calculates what a difference is worth: the share of steps, tokens, FLOPs or time that the better setting saves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

AXIS_WORDS = {"step": "steps", "tokens": "tokens", "flops": "FLOPs", "seconds": "time"}
LEAST_SHARE = 0.001  # a smaller saving is shown as 0%
READ_FROM_CURVES = (
    "savings are read from the curve of the better setting; a shorter run, whose schedule ends earlier, may save more "
    "or less"
)


@dataclass(frozen=True)
class SettingCurve:
    """The mean curve of a setting up to the place at which it is compared.

    Attributes:
        axes: For each axis, such as `step` and `tokens`, the places of the evaluations, in rising order.
        values: The mean of the seeds at each evaluation; lower is better.
    """

    axes: Mapping[str, np.ndarray]
    values: np.ndarray


@dataclass(frozen=True)
class Saving:
    """The share that the better setting saves on one axis, with the interval of the difference carried over to it.

    `value` is only a lower bound if `at_least`: the better setting was ahead from its first evaluation on.
    """

    value: float
    low: float
    high: float
    at_least: bool = False


def mean_curve(
    runs: Sequence[Mapping[str, np.ndarray]], metric: str, axis: str, place: float | None, sign: int
) -> SettingCurve | None:
    """Return the mean curve of the runs over the steps that all of them share; None without runs or such steps.

    Args:
        runs: For each run, an array per axis and the metric, with equal lengths.
        metric: The name of the metric.
        axis: The axis of the place.
        place: Where the settings are compared. The last point of the curve is there, interpolated where needed. None
            means the end.
        sign: 1 if lower values of the metric are better, −1 if higher are.
    """
    evaluated = []
    for run in runs:
        rows = np.isfinite(run[metric]) & np.isfinite(run["step"])
        evaluated.append({name: run[name][rows] for name in (*AXIS_WORDS, metric)})
    if not evaluated:
        return None
    steps = evaluated[0]["step"]
    for run in evaluated[1:]:
        steps = np.intersect1d(steps, run["step"])
    columns = {
        name: np.mean([run[name][np.isin(run["step"], steps)] for run in evaluated], axis=0)
        for name in (*AXIS_WORDS, metric)
    }
    xs = columns[axis]
    if not len(xs) or not np.isfinite(xs).all() or (place is not None and not xs[0] <= place <= xs[-1]):
        return None
    cut = columns
    if place is not None:
        before = xs < place
        cut = {name: np.append(column[before], np.interp(place, xs, column)) for name, column in columns.items()}
    return SettingCurve({name: cut[name] for name in AXIS_WORDS}, cut[metric] * sign)


def savings(better: SettingCurve, worse: SettingCurve, low: float, difference: float, high: float) -> dict[str, Saving]:
    """Return, for each axis on which both curves are known, what the better setting saves.

    The better setting reaches the worse one's last value somewhere on its own curve. The share saved is 1 − that place
    divided by the worse one's last place: 20% if it reaches at step 800 what the worse one has at step 1000. No curve
    is continued beyond its end. The limits `low` and `high` of the difference become those of the saving in the same
    way, so that a saving is above zero exactly if the difference is. Below zero, the settings change roles.
    """
    found = {}
    for axis in better.axes:
        ends = float(better.axes[axis][-1]), float(worse.axes[axis][-1])
        if not all(math.isfinite(end) and end > 0 for end in ends):
            continue
        shares = [_saved(better, worse, axis, by) for by in (low, difference, high)]
        if math.isnan(shares[1]):
            continue
        at_least = difference >= 0 and math.isinf(shares[1])
        first = 1 - float(better.axes[axis][0]) / ends[1]
        value = first if at_least else shares[1]
        found[axis] = Saving(value, shares[0] if shares[0] != math.inf else first, min(shares[2], 1.0), at_least)
    return found


def _saved(better: SettingCurve, worse: SettingCurve, axis: str, difference: float) -> float:
    """Return the share saved by a difference; ±infinity if it is not between the first and last value of the curve."""
    ends = float(better.axes[axis][-1]), float(worse.axes[axis][-1])
    if difference >= 0:
        place = _place_before_end(better, axis, difference)
        return 1 - place / ends[1] if place else math.inf
    place = _place_before_end(worse, axis, -difference)
    return 1 - ends[0] / place if place else -math.inf


def _place_before_end(curve: SettingCurve, axis: str, above: float) -> float:
    """Return the last place at which the curve is `above` its end; 0 if it never was.

    After that place, the curve stays below, so that noise on the way is not taken for an early success.
    """
    xs, ys = curve.axes[axis], curve.values
    target = ys[-1] + above
    higher = np.flatnonzero(ys >= target)
    if not len(higher) or not math.isfinite(target):
        return math.nan if not math.isfinite(target) else 0.0
    last = int(higher[-1])
    if last == len(ys) - 1:
        return float(xs[-1])
    part = (ys[last] - target) / (ys[last] - ys[last + 1])
    return float(xs[last] + part * (xs[last + 1] - xs[last]))


def in_words(better: str, worse: str, found: Mapping[str, Saving]) -> str:
    """Return a sentence such as `lion saves 18% (12% to 24%) of the steps, tokens and FLOPs of adamw`.

    An axis on which nothing is saved for sure is left out, such as the steps of a smaller batch. Empty if none is left.
    """
    by_text: dict[str, list[str]] = {}
    for axis, saving in found.items():
        if saving.low >= LEAST_SHARE:
            by_text.setdefault(_share(saving), []).append(AXIS_WORDS[axis])
    if not by_text:
        return ""
    parts = [f"{text} of the {_joined(names)}" for text, names in by_text.items()]
    return f"{better} saves {_joined(parts)} of {worse}"


def _share(saving: Saving) -> str:
    if saving.at_least:
        return f"at least {_percent(saving.low, 0)}"
    limits = saving.low, saving.high
    digits = 0 if max(map(abs, limits)) >= 0.1 else 1
    value, low, high = (_percent(share, digits) for share in (saving.value, *limits))
    return f"{value} ({low} to {high})"


def _percent(share: float, digits: int) -> str:
    return f"{100 * share:.{digits}f}%".replace("-0%", "0%")


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
