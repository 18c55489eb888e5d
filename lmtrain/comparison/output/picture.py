"""Draws a comparison as a picture for a paper: mean curves with 95% intervals over seeds, as PNG, PDF or SVG."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from scipy import stats

from lmtrain.comparison.labels import setting_text, short_names, shortened
from lmtrain.comparison.lineage.families import is_branch, joined_to_trunks
from lmtrain.comparison.output.family_names import family_names
from lmtrain.comparison.run_comparison import RunComparison
from lmtrain.comparison.runs import ComparedRun, distinct_keys
from lmtrain.comparison.statistics.importance import importance
from lmtrain.comparison.statistics.replicates import Member

COLUMN_INCHES, PAGE_INCHES = 3.3, 6.75  # widths in a two-column paper
COLUMN_CURVES = 5  # with more curves, the picture is as wide as both columns
NAMED_CURVES = 10  # with more curves, the legend shows only the most important setting
MAX_LEGEND_CHARS = 40
TICK_CHARS = 36  # of all labels below a picture of one evaluation; with more, they are turned
POINTS = 1000
TITLES = {
    "step": "optimizer steps",
    "tokens": "tokens",
    "flops": "training FLOPs",
    "seconds": "time (s)",
    "val/loss": "validation loss (nats/token)",
    "train/loss": "training loss (nats/token)",
}
# The palette of Okabe and Ito, which colour-blind people can distinguish; it repeats with other dashes.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DASHES = ("-", "--", ":")
STYLE: Any = {
    "font.size": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "text.parse_math": False,  # labels contain a run's texts, which may have a $
    "pdf.fonttype": 42,  # TrueType, which publishers accept
}

MIN_BAND_SEEDS = 3  # the interval of two seeds is over three times as wide and would hide the other curves


@dataclass(frozen=True)
class MeanCurve:
    """The mean of a group of replicates, and half the width of its 95% interval.

    Attributes:
        label: The setting in words.
        settings: The effective setting, by key.
        x: The places where all units of the group have values.
        mean: The mean over the units.
        half: Half the width of the interval; NaN with fewer than three units.
        units: The values of each unit, such as a seed, (units, points).
        value: The value of the group in the statistics; NaN if it has none.
        missing: The number of units of the group that are not in the mean, because they diverged or have no value.
        family: The number and the name of the family that a trunk or a branch belongs to; None for other runs.
        branch: Whether it is a branch of the family.
    """

    label: str
    settings: Mapping[str, Any]
    x: np.ndarray
    mean: np.ndarray
    half: np.ndarray
    units: np.ndarray
    value: float
    missing: int
    family: tuple[int, str] | None = None
    branch: bool = False


def as_png(comparison: RunComparison) -> bytes:
    return _image_bytes(comparison, "png")


def as_pdf(comparison: RunComparison) -> bytes:
    return _image_bytes(comparison, "pdf")


def as_svg(comparison: RunComparison) -> bytes:
    return _image_bytes(comparison, "svg")


def _image_bytes(comparison: RunComparison, form: str) -> bytes:
    """Return the picture as a file of the given format.

    Raises:
        ValueError: no run has the metric.
    """
    curves = mean_curves(comparison)
    if not curves:
        raise ValueError(f"--{form}: there is nothing to draw, because no run has {comparison.metric} yet")
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = draw_figure(curves, comparison.metric, comparison.axis)
        FigureCanvasAgg(figure)
        figure.savefig(file, format=form, dpi=300)
    return file.getvalue()


def mean_curves(comparison: RunComparison) -> list[MeanCurve]:
    """Return a curve for each group of replicates with the metric, over the range where all its units have values.

    It is the mean of the runs that count in the statistics; if no run counts yet, of all.
    """
    metric, x = comparison.metric, comparison.axis
    all_count = not any(member.counts for member in comparison.members)
    groups: dict[int, dict[int, list[ComparedRun]]] = {}
    parts: dict[int, list[Member]] = {}
    families = family_names(comparison)
    of_group = {
        member.group: (families.number[place], is_branch(comparison.runs[place]))
        for place, member in enumerate(comparison.members)
    }
    for member, run in zip(comparison.members, joined_to_trunks(comparison.runs), strict=True):
        if len(run.series(metric, x)[0]) and (member.counts or all_count):
            groups.setdefault(member.group, {}).setdefault(member.unit, []).append(run)
            parts.setdefault(member.group, []).append(member)
    found = []
    for number, units in groups.items():
        first = next(iter(units.values()))[0]
        own = [_mean([run.series(metric, x) for run in runs]) for runs in units.values()]
        over_units = _mean([(xs, values.mean(0)) for xs, values in own])
        if len(over_units[0]):
            value = float(np.mean([member.value for member in parts[number]]))
            missing = len({member.unit for member in comparison.members if member.group == number}) - len(units)
            curve = _mean_curve(parts[number][0].label, first.setting, *over_units, value, missing)
            family, branch = of_group[number]
            named = None if family is None else (family, families.names[family])
            found.append(replace(curve, family=named, branch=branch))
    return found


def draw_figure(curves: Sequence[MeanCurve], metric: str, x: str = "step") -> Figure:
    width = COLUMN_INCHES if len(curves) <= COLUMN_CURVES else PAGE_INCHES
    figure = Figure(figsize=(width, 0.72 * COLUMN_INCHES if width == COLUMN_INCHES else 0.45 * PAGE_INCHES))
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    title, labels = _legend(curves)
    axes.set_ylabel(TITLES.get(metric, metric))
    axes.set_ylim(*typical_range(curves))
    if len({float(place) for curve in curves for place in curve.x}) == 1:
        _draw_place(axes, curves, labels)
        at = f"{TITLES.get(x, x)}: {curves[0].x[0]:,.6g}"
        axes.set_xlabel(f"{title} ({at})" if title else at)
        return figure
    looks = {label: number for number, label in enumerate(sorted(set(labels), key=labels.index))}
    if any(curve.family for curve in curves):
        title, labels, looks = _family_legend(curves, labels)
    for curve, label in zip(curves, labels, strict=True):
        _draw_curve(axes, curve, looks[label], label, thin=len(curves) > NAMED_CURVES)
    axes.set_xlabel(TITLES.get(x, x))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if len(curves) > 1:
        handles, names = axes.get_legend_handles_labels()
        once = dict(zip(names, handles, strict=True))
        beside: Any = {"loc": "outside right upper"} if width == PAGE_INCHES else {"loc": "best"}
        (figure if width == PAGE_INCHES else axes).legend(
            list(once.values()), list(once), title=title or None, **beside
        )
    return figure


def typical_range(curves: Sequence[MeanCurve]) -> tuple[float, float]:
    """Return a range for the y axis that leaves out outlying runs and the steep first tenth of the curves."""
    lows, highs = zip(*map(_edges, curves), strict=True)
    low = min(float(edge.min()) for edge in lows)
    tops = [float(np.quantile(edge[len(edge) // 10 :], 0.97)) for edge in highs]
    quarter, most = np.quantile(tops, [0.25, 0.75])
    top = min(max(float(edge.max()) for edge in highs), most + 1.5 * (most - quarter) + 0.15 * (most - low))
    margin = 0.04 * (top - low) or 0.5
    return low - margin, top + margin


def _edges(curve: MeanCurve) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and the upper edge of what is drawn of a curve: its interval or, without one, its units."""
    if len(curve.units) >= MIN_BAND_SEEDS:
        return curve.mean - curve.half, curve.mean + curve.half
    return curve.units.min(0), curve.units.max(0)


def _mean(series: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the points x where all series have values, and the values of each there, (series, points)."""
    series = [(xs, ys) for xs, ys in series if len(xs)]
    if not series:
        return np.empty(0), np.empty((0, 0))
    start, end = max(xs[0] for xs, _ in series), min(xs[-1] for xs, _ in series)
    longest = max((xs for xs, _ in series), key=len)
    grid = longest[(longest >= start) & (longest <= end)]
    if len(grid):
        grid = grid[np.unique(np.linspace(0, len(grid) - 1, min(len(grid), POINTS)).astype(int))]
    return grid, np.stack([np.interp(grid, xs, ys) for xs, ys in series])


def _mean_curve(
    label: str, settings: Mapping[str, Any], x: np.ndarray, units: np.ndarray, value: float, missing: int
) -> MeanCurve:
    n = len(units)
    half = np.full(len(x), np.nan)
    if n >= MIN_BAND_SEEDS:
        half = stats.t.ppf(0.975, n - 1) * units.std(0, ddof=1) / np.sqrt(n)
    return MeanCurve(label, settings, x, units.mean(0), half, units, value, missing)


def _draw_curve(axes: Axes, curve: MeanCurve, look: int, label: str, thin: bool) -> None:
    """Draw the mean, with its interval over three units or more; with two, also draw each unit."""
    color, dash = COLORS[look % len(COLORS)], DASHES[look // len(COLORS) % len(DASHES)]
    axes.plot(curve.x, curve.mean, dash, color=color, linewidth=0.7 if thin else None, label=label)
    if len(curve.units) >= MIN_BAND_SEEDS:
        low, high = _edges(curve)
        axes.fill_between(curve.x, low, high, color=color, alpha=0.08 if thin else 0.2, linewidth=0)
    elif len(curve.units) > 1 and not thin:
        for unit in curve.units:
            axes.plot(curve.x, unit, dash, color=color, linewidth=0.5, alpha=0.6)


def _draw_place(axes: Axes, curves: Sequence[MeanCurve], labels: Sequence[str]) -> None:
    """Draw settings that have only one evaluation side by side: the mean with its interval, and each unit."""
    for place, curve in enumerate(curves):
        color = COLORS[place % len(COLORS)]
        half = None if np.isnan(curve.half).all() else curve.half
        axes.errorbar([place], curve.mean, half, None, "o", color=color, markersize=4, capsize=3)
        if len(curve.units) > 1:
            beside = place + 0.12 + np.zeros(len(curve.units))
            axes.plot(beside, curve.units[:, 0], ".", color=color, markersize=3, alpha=0.6)
    axes.set_xlim(-0.6, len(curves) - 0.4)
    crowded = sum(map(len, labels)) > TICK_CHARS
    axes.set_xticks(range(len(curves)), labels, rotation=90 if crowded else 0)
    axes.grid(visible=False, axis="x")


def _legend(curves: Sequence[MeanCurve]) -> tuple[str, list[str]]:
    """Return the legend's title and a label for each curve: the settings that differ, and how many seeds are drawn.

    With more than `NAMED_CURVES` curves, the labels show only the setting that explains most.
    """
    settings = [curve.settings for curve in curves]
    keys = [key for key in distinct_keys(settings) if key != "seed"]
    names = short_names(keys)

    def values_of(key: str) -> list[str]:
        return [setting_text(setting.get(key), key)[:MAX_LEGEND_CHARS] for setting in settings]

    if len(curves) > NAMED_CURVES and keys:
        values = [curve.value for curve in curves]
        found = [importance(key, [setting.get(key) for setting in settings], values) for key in keys]
        key = max((one for one in found if one), key=lambda one: one.share).key if any(found) else keys[0]
        return names[key], values_of(key)
    if len(keys) == 1 and len(set(values_of(keys[0]))) == len(curves):
        title, labels = names[keys[0]], values_of(keys[0])
    else:
        title, labels = "", shortened([curve.label for curve in curves], MAX_LEGEND_CHARS)
    return title, [label + _seeds_drawn(curve) for label, curve in zip(labels, curves, strict=True)]


def _family_legend(curves: Sequence[MeanCurve], labels: Sequence[str]) -> tuple[str, list[str], dict[str, int]]:
    """Return no title, a label for each curve, and the look of each label: a family has one colour, dashed branches."""
    count = max(curve.family[0] for curve in curves if curve.family) + 1
    found: list[str] = []
    looks: dict[str, int] = {}
    for curve, label in zip(curves, labels, strict=True):
        look = count
        if curve.family:
            number, name = curve.family
            label = name[:MAX_LEGEND_CHARS] + ", decayed" * curve.branch
            look = number % len(COLORS) + len(COLORS) * curve.branch
        elif label not in looks:
            count += 1
        looks.setdefault(label, look)
        found.append(label)
    return "", found, looks


def _seeds_drawn(curve: MeanCurve) -> str:
    """Return ` (2 of 5 seeds)` if the mean is not over all seeds, so that the setting may only look better."""
    drawn = len(curve.units)
    return f" ({drawn} of {drawn + curve.missing} seeds)" if curve.missing else ""
