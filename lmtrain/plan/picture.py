"""The learning rate over the run, as a picture that a terminal and a log file show alike."""

from collections.abc import Callable

import plotext

WIDTH, HEIGHT = 72, 12  # columns and lines


def sampled(schedule: Callable[[int], float], max_steps: int) -> tuple[list[int], list[float]]:
    """Steps, the first and the last among them, and their rates; step s is the one that makes s steps done."""
    count = min(4 * WIDTH, max_steps)
    steps = sorted({1 + round(i * (max_steps - 1) / max(count - 1, 1)) for i in range(count)})
    return steps, [float(schedule(step - 1)) for step in steps]


def curve(steps: list[int], rates: list[float]) -> str:
    """A picture without colours; axes are in steps and in the rate itself."""
    figure = plotext.figure
    figure.clear()
    figure.plot_size(WIDTH, HEIGHT)
    figure.theme("colorless")
    figure.draw(figure.signal(steps, rates, marker="braille").lines())
    first, last, top = steps[0], steps[-1], max(rates) or 1.0
    heights = [0.0, top / 2, top]
    figure.ruler("y").lim(0.0, top)
    figure.ruler("y").ticks(heights, [f"{height:.1e}" if height else "0" for height in heights])
    places = sorted({first, *(round(last * share) for share in (0.25, 0.5, 0.75)), last} - {0})
    figure.ruler("x").ticks(places, [f"{place:,}" for place in places])
    lines = plotext.uncolorize(figure.build().string()).splitlines()
    return "\n".join(line.rstrip() for line in lines)
