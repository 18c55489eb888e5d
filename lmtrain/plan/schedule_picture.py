"""Draws the learning rate over the run as plain text, for terminals and log files."""

from collections.abc import Callable

import plotext

WIDTH, HEIGHT = 72, 12  # columns and lines


def sample_rates(
    schedule: Callable[[int], float], max_steps: int, first_step: int = 0
) -> tuple[list[int], list[float]]:
    """Return a sample of the steps after `first_step`, including the first and the last, and their learning rates.

    Steps count from 1: after step s, s steps are done.
    """
    span = max_steps - first_step
    count = min(4 * WIDTH, span)
    steps = sorted({first_step + 1 + round(i * (span - 1) / max(count - 1, 1)) for i in range(count)})
    return steps, [float(schedule(step - 1)) for step in steps]


def draw_rates(steps: list[int], rates: list[float]) -> str:
    """Return a picture of learning rates over steps, without colours."""
    figure = plotext.figure
    figure.clear()
    figure.plot_size(WIDTH, HEIGHT)
    figure.theme("colorless")
    figure.draw(figure.signal(steps, rates, marker="braille").lines())
    first, last, top = steps[0], steps[-1], max(rates) or 1.0
    heights = [0.0, top / 2, top]
    figure.ruler("y").lim(0.0, top)
    figure.ruler("y").ticks(heights, [f"{height:.1e}" if height else "0" for height in heights])
    before = first - 1
    quarters = {before + round((last - before) * share) for share in (0.25, 0.5, 0.75)}
    places = sorted({first, *quarters, last} - {before})
    figure.ruler("x").ticks(places, [f"{place:,}" for place in places])
    lines = plotext.uncolorize(figure.build().string()).splitlines()
    return "\n".join(line.rstrip() for line in lines)
