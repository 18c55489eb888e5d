"""Draws a comparison as a picture for a paper: mean curves with 95% intervals over seeds, as PNG, PDF or SVG."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from scipy import stats

from lmtrain.compare.comparison import RunComparison
from lmtrain.compare.labels import setting_text, short_names
from lmtrain.compare.output.page_data import outcome
from lmtrain.compare.runs import ComparedRun, differing_keys
from lmtrain.compare.statistics.importance import importance
from lmtrain.compare.statistics.replicates import group_numbers

COLUMN_INCHES, PAGE_INCHES = 3.3, 6.75  # widths in a two-column paper
COLUMN_CURVES = 5  # with more curves, the picture is as wide as both columns
NAMED_CURVES = 10  # with more curves, the legend shows only the most important setting
MAX_LEGEND_CHARS = 40
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
    """The mean of runs that differ only in the seed, and half the width of its 95% interval.

    `half` is zero with fewer than three runs.
    """

    x: np.ndarray
    mean: np.ndarray
    half: np.ndarray
    runs: Sequence[ComparedRun]


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
    curves = mean_curves(comparison.runs, comparison.metric, comparison.axis)
    if not curves:
        raise ValueError(f"--{form}: there is nothing to draw, because no run has {comparison.metric} yet")
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = draw_figure(curves, comparison.metric, comparison.axis)
        FigureCanvasAgg(figure)
        figure.savefig(file, format=form, dpi=300)
    return file.getvalue()


def mean_curves(runs: Sequence[ComparedRun], metric: str, x: str = "step") -> list[MeanCurve]:
    """Return a curve for each group of replicates with the metric, over the range where all of them have values."""
    members: dict[int, list[ComparedRun]] = {}
    for number, run in zip(group_numbers(runs), runs, strict=True):
        if len(run.series(metric, x)[0]):
            members.setdefault(number, []).append(run)
    return [curve for own in members.values() if (curve := _mean_curve(own, metric, x))]


def draw_figure(curves: Sequence[MeanCurve], metric: str, x: str = "step") -> Figure:
    width = COLUMN_INCHES if len(curves) <= COLUMN_CURVES else PAGE_INCHES
    figure = Figure(figsize=(width, 0.72 * COLUMN_INCHES if width == COLUMN_INCHES else 0.45 * PAGE_INCHES))
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    title, labels = _legend(curves, metric)
    looks = {label: number for number, label in enumerate(sorted(set(labels), key=labels.index))}
    for curve, label in zip(curves, labels, strict=True):
        _draw_curve(axes, curve, looks[label], label, thin=len(curves) > NAMED_CURVES)
    axes.set_xlabel(TITLES.get(x, x))
    axes.set_ylabel(TITLES.get(metric, metric))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_ylim(*typical_range(curves))
    if len(curves) > 1:
        handles, names = axes.get_legend_handles_labels()
        once = dict(zip(names, handles, strict=True))
        beside: Any = {"loc": "outside right upper"} if width == PAGE_INCHES else {"loc": "upper right"}
        (figure if width == PAGE_INCHES else axes).legend(
            list(once.values()), list(once), title=title or None, **beside
        )
    return figure


def typical_range(curves: Sequence[MeanCurve]) -> tuple[float, float]:
    """Return a range for the y axis that leaves out outlying runs and the steep first tenth of the curves."""
    low = min(float((curve.mean - curve.half).min()) for curve in curves)
    tops = [float(np.quantile((curve.mean + curve.half)[len(curve.mean) // 10 :], 0.97)) for curve in curves]
    quarter, most = np.quantile(tops, [0.25, 0.75])
    top = min(max(float((c.mean + c.half).max()) for c in curves), most + 1.5 * (most - quarter) + 0.15 * (most - low))
    margin = 0.04 * (top - low) or 0.5
    return low - margin, top + margin


def _mean_curve(runs: Sequence[ComparedRun], metric: str, x: str) -> MeanCurve | None:
    series = [run.series(metric, x) for run in runs]
    start, end = max(xs[0] for xs, _ in series), min(xs[-1] for xs, _ in series)
    longest = max((xs for xs, _ in series), key=len)
    grid = longest[(longest >= start) & (longest <= end)]
    if not len(grid):
        return None
    grid = grid[np.unique(np.linspace(0, len(grid) - 1, min(len(grid), POINTS)).astype(int))]
    values = np.stack([np.interp(grid, xs, ys) for xs, ys in series])  # (runs, points)
    half = np.zeros(len(grid))
    if len(runs) >= MIN_BAND_SEEDS:
        half = stats.t.ppf(0.975, len(runs) - 1) * values.std(0, ddof=1) / np.sqrt(len(runs))
    return MeanCurve(grid, values.mean(0), half, runs)


def _draw_curve(axes: Axes, curve: MeanCurve, look: int, label: str, thin: bool) -> None:
    color, dash = COLORS[look % len(COLORS)], DASHES[look // len(COLORS) % len(DASHES)]
    marker = "o" if len(curve.x) == 1 else ""
    axes.plot(
        curve.x,
        curve.mean,
        dash,
        color=color,
        linewidth=0.7 if thin else None,
        marker=marker,
        markersize=3,
        label=label,
    )
    if len(curve.runs) > 1:
        low, high = curve.mean - curve.half, curve.mean + curve.half
        axes.fill_between(curve.x, low, high, color=color, alpha=0.08 if thin else 0.2, linewidth=0)


def _legend(curves: Sequence[MeanCurve], metric: str) -> tuple[str, list[str]]:
    """Return the legend's title and a label for each curve: the settings that differ.

    With more than `NAMED_CURVES` curves, the labels show only the setting that explains most.
    """
    firsts = [curve.runs[0] for curve in curves]
    keys = [key for key in differing_keys(firsts) if key != "seed"]
    names = short_names(keys)
    if len(curves) > NAMED_CURVES and keys:
        outcomes = [outcome(run, metric) for run in firsts]
        found = [importance(key, [run.value_of(key) for run in firsts], outcomes) for key in keys]
        key = max((one for one in found if one), key=lambda one: one.share).key if any(found) else keys[0]
        return names[key], [setting_text(run.value_of(key), key)[:MAX_LEGEND_CHARS] for run in firsts]
    if len(keys) == 1:
        return names[keys[0]], [setting_text(run.value_of(keys[0]), keys[0])[:MAX_LEGEND_CHARS] for run in firsts]
    labels = [" ".join(f"{names[key]}={setting_text(run.value_of(key), key)}" for key in keys) for run in firsts]
    return "", [(label or run.label)[:MAX_LEGEND_CHARS] for label, run in zip(labels, firsts, strict=True)]
