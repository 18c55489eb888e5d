"""Draws folders of token files: the frequencies of tokens, the lengths of documents, and how val differs from train."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, PercentFormatter

from lmtrain.data.inspection.folder import InspectedFolder
from lmtrain.data.inspection.statistics import Lengths
from lmtrain.terminal.as_text import visible
from lmtrain.terminal.units import si

ROW_INCHES = 4.6
COLORS = ("#2f6db3", "#dd6b20", "#3a8f3a", "#7b5aa6")
BLOCK_SIZES = (512, 1024, 2048, 4096, 8192)
FEW_DOCUMENTS = 30  # up to this number, each document is drawn, because shares would say little
BINS_A_DECADE = (4, 16)  # for few and for many documents
CURVE_POINTS = 2000
CLOUD_POINTS = 100_000
NAMED = 12  # tokens with a label
TITLE_PATH = 60  # the most characters of a path in a title
STYLE: Any = {
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "text.parse_math": False,
}


def draw_folders(folders: Sequence[InspectedFolder], path: Path) -> None:
    """Write a PNG with a row for each folder that could be read."""
    with matplotlib.rc_context(STYLE):
        figure_of_folders(folders).savefig(path, format="png")


def figure_of_folders(folders: Sequence[InspectedFolder]) -> Figure:
    """Return the picture, a subfigure of three plots for each folder that could be read."""
    shown = [folder for folder in folders if folder.splits]
    figure = Figure(figsize=(14, ROW_INCHES * max(1, len(shown))), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for row, folder in enumerate(shown):
        _draw_row(figure.add_subfigure(figure.add_gridspec(len(shown), 1)[row]), folder)
    return figure


def _draw_row(figure: SubFigure, folder: InspectedFolder) -> None:
    total = sum(split.statistics.tokens for split in folder.splits.values())
    of = f"vocabulary of {folder.vocab_size:,}" if folder.vocab_size else "vocabulary unknown"
    parts = [f"{name} {si(split.statistics.tokens)}" for name, split in folder.splits.items()]
    name = visible(str(folder.folder))
    name = name if len(name) <= TITLE_PATH else f"…{name[-TITLE_PATH:]}"
    figure.suptitle(f"{name}: {si(total)} tokens ({', '.join(parts)}), {of}", fontsize=13, fontweight="bold")
    left, middle, right = axes = figure.subplots(1, 3)
    _draw_frequencies(left, folder)
    documents = max((lengths.total for lengths in _lengths(folder).values() if lengths), default=0)
    if documents > FEW_DOCUMENTS:
        _draw_lengths(middle, folder)
    elif documents:
        _draw_each_length(middle, folder)
    else:
        _draw_coverage(middle, folder)
    if {"train", "val"} <= folder.splits.keys():
        _draw_comparison(right, folder)
    else:
        _draw_most_frequent(right, folder)
    for each in axes:
        each.minorticks_off()  # on logarithmic axes they need most of the drawing time


def _draw_frequencies(axes: Axes, folder: InspectedFolder) -> None:
    """Draw the shares of tokens by rank (Zipf's curve)."""
    for (name, split), color in zip(folder.splits.items(), _colors(folder), strict=True):
        shares = _sorted_shares(folder, name)
        ranks = _curve_ranks(len(shares))
        label = f"{name}: {split.statistics.ids_in_use:,} ids in use"
        axes.loglog(ranks, shares[ranks - 1], color=color, linewidth=2, label=label)
    guide = np.array([1, len(shares)])
    axes.loglog(
        guide, shares[min(9, len(shares) - 1)] * 10 / guide, "--", color="#999999", linewidth=1, label="1 / rank"
    )
    axes.set(title="How frequent tokens are", xlabel="rank of the id", ylabel="share of tokens")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_formatter(_percent())
    axes.legend(loc="lower left")


def _draw_coverage(axes: Axes, folder: InspectedFolder) -> None:
    for name, color in zip(folder.splits, _colors(folder), strict=True):
        shares = np.cumsum(_sorted_shares(folder, name))
        ranks = _curve_ranks(len(shares))
        axes.semilogx(ranks, shares[ranks - 1], color=color, linewidth=2, label=name)
    axes.set(title="Share of the most frequent ids", xlabel="most frequent ids", ylabel="share of tokens", ylim=(0, 1))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(loc="upper left")


def _draw_lengths(axes: Axes, folder: InspectedFolder) -> None:
    lengths = _lengths(folder)
    counts = [counted for counted in lengths.values() if counted and counted.total]
    shortest, longest = min(c.lengths[0] for c in counts), max(c.lengths[-1] for c in counts)
    low, high = np.log10(shortest), np.log10(longest + 1)
    a_decade = np.clip(1.3 * min(c.total for c in counts) ** (1 / 3), *BINS_A_DECADE)
    edges = np.logspace(low, high, int(a_decade * (high - low)) + 2)
    edges[[0, -1]] = shortest, longest + 1  # exact, so that the shortest document is inside a bin
    for (name, counted), color in zip(lengths.items(), _colors(folder), strict=True):
        if counted and counted.total:
            shares, _ = np.histogram(counted.lengths, edges, weights=counted.documents / counted.total)
            label = f"{name}: {counted.total:,}, median {counted.quantile(0.5):,}"
            axes.stairs(shares, edges, color=color, fill=True, alpha=0.18)
            axes.stairs(shares, edges, color=color, linewidth=1.8, label=label)
    for size in BLOCK_SIZES:
        if shortest < size < longest:
            axes.axvline(size, color="#999999", linewidth=0.8, linestyle=":")
    axes.set(title="How long documents are", ylabel="share of documents", xscale="log")
    axes.set_xlabel(f"tokens in the document (dotted: {BLOCK_SIZES[0]}, {BLOCK_SIZES[1]}, …)")
    axes.set_xlim(*_a_decade_at_least(shortest, longest + 1))
    _mark_lengths(axes)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    top = axes.get_ylim()[1]
    axes.set_ylim(0, 1.2 * top)  # room for the legend
    axes.set_yticks([tick for tick in axes.get_yticks() if tick <= min(top, 1)])
    axes.legend(loc="upper left")


def _draw_each_length(axes: Axes, folder: InspectedFolder) -> None:
    """Draw one row of dots per split, with one dot per document."""
    lengths = {name: counted for name, counted in _lengths(folder).items() if counted and counted.total}
    for row, (name, color) in enumerate(zip(_lengths(folder), _colors(folder), strict=True)):
        if name in lengths:
            each = np.repeat(lengths[name].lengths, lengths[name].documents)
            axes.plot(each, np.full(len(each), row), "o", color=color, markersize=9, alpha=0.6, markeredgewidth=0)
    names = list(folder.splits)
    labels = [f"{name}: {lengths[name].total if name in lengths else 0:,}" for name in names]
    axes.set_yticks(range(len(names)), labels)
    axes.set_ylim(len(names) - 0.5, -0.5)
    ends = [length for counted in lengths.values() for length in (counted.lengths[0], counted.lengths[-1])]
    axes.set(title="How long documents are", xscale="log", xlim=_a_decade_at_least(min(ends), max(ends)))
    axes.set_xlabel("tokens in the document (one dot per document)")
    _mark_lengths(axes)


def _mark_lengths(axes: Axes) -> None:
    axes.xaxis.set_major_locator(_log_ticks(*axes.get_xlim()))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _log_ticks(low: float, high: float) -> LogLocator:
    """Return ticks for a logarithmic axis, with several ticks even for less than two decades."""
    return LogLocator(subs=(1, 2, 5)) if high < 100 * low else LogLocator(numticks=6)


def _a_decade_at_least(low: float, high: float) -> tuple[float, float]:
    """Return the ends of a logarithmic axis that shows a range with a margin and covers at least a decade."""
    margin = max(1.1, np.sqrt(10 * low / high))
    return low / margin, high * margin


def _draw_comparison(axes: Axes, folder: InspectedFolder) -> None:
    """Draw each id's share in train and val; label the ids that add most to the divergence between the two."""
    counts = [folder.splits[name].statistics.token_counts for name in ("train", "val")]
    both = np.zeros((2, max(map(len, counts))))
    for row, count in zip(both, counts, strict=True):
        row[: len(count)] = count
    seen = np.flatnonzero(both.any(axis=0))
    seen = seen[np.argsort(-both[:, seen].sum(axis=0), kind="stable")[:CLOUD_POINTS]]
    # An id that occurs in only one of them is drawn as half a token in the other.
    train, val = np.maximum(both[:, seen], 0.5) / both.sum(axis=1, keepdims=True)
    axes.loglog(train, val, "o", color=COLORS[0], markersize=3, alpha=0.3, markeredgewidth=0)
    ends = [min(train.min(), val.min()), max(train.max(), val.max())]
    axes.loglog(ends, ends, "--", color="#999999", linewidth=1)
    divergence = (val - train) * np.log(val / train)
    places = np.log([train, val]).T / np.log(max(2, ends[1] / ends[0]))  # (ids, 2), in widths of the axes
    named: list[int] = []
    for point in np.argsort(-divergence, kind="stable")[: 3 * NAMED].tolist():
        above = bool(val[point] > train[point])
        too_near = (np.abs(places[named] - places[point]) < (0.2, 0.045)).all(axis=1).any()
        if too_near or len(named) == NAMED or not divergence[point]:
            continue
        named.append(point)
        axes.plot(train[point], val[point], "o", color=COLORS[1], markersize=4)
        axes.annotate(
            _name(folder, int(seen[point])),
            (float(train[point]), float(val[point])),
            (-4, 3) if above else (4, -3),
            textcoords="offset points",
            ha="right" if above else "left",
            va="bottom" if above else "top",
            fontsize=8.5,
        )
    axes.margins(0.12)
    axes.set(
        title="Where train and val differ most",
        xlabel="share of train's tokens (leftmost: none)",
        ylabel="share of val's tokens (lowest: none)",
    )
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        axis.set_major_formatter(_percent())
        axis.set_major_locator(_log_ticks(low, high))


def _draw_most_frequent(axes: Axes, folder: InspectedFolder) -> None:
    name, split = next(iter(folder.splits.items()))
    ids = split.statistics.most_frequent(20)
    shares = split.statistics.token_counts[ids] / split.statistics.tokens
    axes.barh(np.arange(len(ids)), shares, color=COLORS[0])
    axes.set_yticks(np.arange(len(ids)), [_name(folder, i) for i in ids])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(title=f"The most frequent tokens of {name}", xlabel="share of tokens")
    axes.xaxis.set_major_formatter(PercentFormatter(1))


def _lengths(folder: InspectedFolder) -> dict[str, Lengths | None]:
    return {name: split.statistics.lengths for name, split in folder.splits.items()}


def _colors(folder: InspectedFolder) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(len(folder.splits))]


def _sorted_shares(folder: InspectedFolder, name: str) -> npt.NDArray[np.float64]:
    """Return the shares of the ids that occur, in descending order."""
    counts = folder.splits[name].statistics.token_counts
    shares: npt.NDArray[np.float64] = -np.sort(-counts[counts > 0]) / max(1, counts.sum())
    return shares


def _curve_ranks(ids: int) -> npt.NDArray[np.int64]:
    """Return the ranks at which a curve is drawn, evenly spaced on a logarithmic axis."""
    return np.unique(np.geomspace(1, ids, CURVE_POINTS).astype(np.int64))


def _name(folder: InspectedFolder, token: int) -> str:
    text = folder.text_of(token)
    if text is None:
        return str(token)
    return repr(text) if all(ord(character) < 0x500 for character in text) else ascii(text)  # the font lacks others


def _percent() -> FuncFormatter:
    return FuncFormatter(lambda share, _: np.format_float_positional(100 * share, precision=9, trim="-") + "%")
