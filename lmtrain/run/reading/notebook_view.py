"""Shows a run in a notebook: its facts, and its losses as a picture if matplotlib is installed."""

import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from lmtrain.files.numbers import finite_or_none
from lmtrain.machine import is_installed
from lmtrain.terminal.as_html import as_html
from lmtrain.terminal.paths import short_path
from lmtrain.terminal.units import counted, duration, loss_text, si

LOSSES = ("train/loss", "val/loss")
FACTS = {  # of result.json
    "steps": lambda value: f"{value:,.0f}",
    "tokens": si,
    "best_val_loss": loss_text,
    "final_val_loss": loss_text,
    "tokens_per_second": si,
    "seconds": duration,
}
INCHES = (5.0, 2.6)


def run_as_html(directory: Path, status: str, result: Mapping[str, Any], metrics: Sequence[Mapping[str, float]]) -> str:
    """Return a run's facts and curves as HTML without scripts."""
    table = Table("", "", show_header=False)
    table.add_row("status", status)
    for key, show in FACTS.items():
        if (value := finite_or_none(result.get(key))) is not None:
            table.add_row(key.replace("_", " "), show(value))
    if error := result.get("error"):
        table.add_row("error", str(error))
    if not result:
        table.add_row("logged", counted(len(metrics), "step"))
    title = f"<p><b>run</b> <code>{html.escape(short_path(directory))}</code></p>"
    return f"{title}\n{as_html([table])}\n{losses_as_svg(metrics)}"


def losses_as_svg(metrics: Sequence[Mapping[str, float]]) -> str:
    """Return the losses by step as an SVG picture for a web page; empty without matplotlib or without losses."""
    picture = losses_as_picture(metrics, "svg").decode()
    return picture[picture.index("<svg") :] if picture else ""


def losses_as_picture(metrics: Sequence[Mapping[str, float]], form: Literal["svg", "png"]) -> bytes:
    """Return the losses by step as a picture; empty without matplotlib or without losses."""
    curves = {name: [(line["step"], line[name]) for line in metrics if name in line] for name in LOSSES}
    if not any(curves.values()) or not is_installed("matplotlib"):
        return b""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, points in curves.items():
        if points:
            steps, losses = zip(*points, strict=True)
            axes.plot(steps, losses, label=name, marker="." if len(points) < 20 else "", linewidth=1.2)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format=form, dpi=150)
    return file.getvalue()
