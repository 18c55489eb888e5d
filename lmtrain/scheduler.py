"""Learning-rate schedules: pure functions of the step, so that nothing needs to be saved or restored."""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Literal, Protocol

from annotated_types import Interval, MinLen
from pydantic import AfterValidator, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic_core import PydanticCustomError

DecayShape = Literal["sqrt", "linear", "cosine"]
# The share of the way from the last learning rate to the peak that is left at a progress from 0 to 1.
DECAYS: Mapping[str, Callable[[float], float]] = {
    "sqrt": lambda progress: 1 - math.sqrt(progress),
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
}


def _increasing(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Check that the steps of the points of a table increase."""
    for (before, _), (step, _) in pairwise(points):
        if step <= before:
            raise PydanticCustomError("order", f"has step {step} after step {before}; the steps must increase")
    return points


Shares = Annotated[list[tuple[NonNegativeInt, NonNegativeFloat]], MinLen(1)]
Points = Annotated[Shares, AfterValidator(_increasing)]


class Schedule(Protocol):
    """A schedule with its settings bound, as the trainer calls it."""

    def __call__(self, step: int, /) -> float:
        """Return the learning rate of the next step after `step` finished steps."""


def cosine(
    step: int, *, lr: PositiveFloat, min_lr: NonNegativeFloat, warmup_steps: NonNegativeInt, max_steps: PositiveInt
) -> float:
    """Return the learning rate after `step` finished steps: linear warmup, half a cosine, then `min_lr`.

    The warmup is nanoGPT's and never returns 0.

    Source: Loshchilov and Hutter, "SGDR" (2017), eq. 5, without restarts.

    Args:
        step: Optimizer steps done so far; given by the trainer.
        lr: Peak learning rate, reached at the end of the warmup.
        min_lr: Learning rate at `max_steps` and after it.
        warmup_steps: Steps of linear warmup; 0 means none.
        max_steps: Step at which the cosine ends.
    """
    if step < warmup_steps:
        return _warmup(step, lr, warmup_steps)
    return _decay(step, lr, min_lr, warmup_steps, max_steps, "cosine")


def linear(
    step: int, *, lr: PositiveFloat, min_lr: NonNegativeFloat, warmup_steps: NonNegativeInt, max_steps: PositiveInt
) -> float:
    """Return the learning rate after `step` finished steps: linear warmup, a straight line down, then `min_lr`.

    Args:
        step: Optimizer steps done so far; given by the trainer.
        lr: Peak learning rate, reached at the end of the warmup.
        min_lr: Learning rate at `max_steps` and after it.
        warmup_steps: Steps of linear warmup; 0 means none.
        max_steps: Step at which the line ends.
    """
    if step < warmup_steps:
        return _warmup(step, lr, warmup_steps)
    return _decay(step, lr, min_lr, warmup_steps, max_steps, "linear")


def wsd(
    step: int,
    *,
    lr: PositiveFloat,
    min_lr: NonNegativeFloat,
    warmup_steps: NonNegativeInt,
    decay_steps: NonNegativeInt,
    decay: DecayShape,
    max_steps: PositiveInt,
) -> float:
    """Return the learning rate after `step` finished steps: warmup, stable, decay.

    The middle does not depend on the length of the run. So a run without decay is a trunk, of which forks with a decay
    are runs of several lengths.

    Source: Hu et al., "MiniCPM" (2024), section 4.2. The shape `sqrt` is from Hägele et al., "Scaling Laws and
    Compute-Optimal Training Beyond Fixed Training Durations" (2024), section 3.

    Args:
        step: Optimizer steps done so far; given by the trainer.
        lr: Peak learning rate, reached at the end of the warmup and kept until the decay.
        min_lr: Learning rate at `max_steps` and after it, if there is a decay.
        warmup_steps: Steps of linear warmup; 0 means none.
        decay_steps: The decay takes the last so many steps before `max_steps`; 0 means no decay.
        decay: Shape of the decay: `sqrt` falls by the square root of the progress, so fastest at first.
        max_steps: Step at which the decay ends.
    """
    begin = max_steps - decay_steps
    rate = _decay(step, lr, min_lr, begin, max_steps, decay) if decay_steps and step >= begin else lr
    return min(rate, _warmup(step, lr, warmup_steps)) if step < warmup_steps else rate


def power(step: int, *, lr: PositiveFloat, exponent: NonNegativeFloat, warmup_steps: NonNegativeInt) -> float:
    """Return the learning rate after `step` finished steps: linear warmup, then it falls as a power of the step.

    An exponent of 0.5 is the inverse square root. Like `constant`, it does not depend on the length of the run.

    Source: Vaswani et al., "Attention Is All You Need" (2017), eq. 3, for 0.5; Shen et al., "Power Scheduler" (2024),
    section 3, for other exponents.

    Args:
        step: Optimizer steps done so far; given by the trainer.
        lr: Peak learning rate, reached at the end of the warmup.
        exponent: After so many times the steps of the warmup, the peak is divided by that number to this power.
        warmup_steps: Steps of linear warmup; with 0, the rate begins to fall at the first step.
    """
    if step < warmup_steps:
        return _warmup(step, lr, warmup_steps)
    return float(lr * ((warmup_steps + 1) / (step + 1)) ** exponent)


def cyclic(
    step: int,
    *,
    lr: PositiveFloat,
    min_lr: NonNegativeFloat,
    warmup_steps: NonNegativeInt,
    cycle_steps: PositiveInt,
    growth: Annotated[float, Interval(ge=1)],
) -> float:
    """Return the learning rate after `step` finished steps: linear warmup, then half cosines that begin again.

    Source: Loshchilov and Hutter, "SGDR" (2017), eq. 5, with restarts.

    Args:
        step: Optimizer steps done so far; given by the trainer.
        lr: Learning rate at the beginning of each cycle.
        min_lr: Learning rate to which each cycle falls.
        warmup_steps: Steps of linear warmup before the first cycle; 0 means none.
        cycle_steps: Steps of the first cycle.
        growth: Each cycle is so many times as long as the one before, rounded up.
    """
    if step < warmup_steps:
        return _warmup(step, lr, warmup_steps)
    step, length = step - warmup_steps, cycle_steps
    if growth == 1:
        step %= length
    while step >= length:
        step -= length
        length = math.ceil(length * growth)
    return _decay(step, lr, min_lr, 0, length, "cosine")


def table(step: int, *, lr: PositiveFloat, points: Points) -> float:
    """Return the learning rate after `step` finished steps: straight lines between the points of a table.

    Before its first point, the rate is that of the first; after its last, that of the last.

    Args:
        step: Optimizer steps done so far; given by the trainer.
        lr: Learning rate that the numbers of the table multiply.
        points: Pairs of finished steps and the share of `lr` after them, with increasing steps.
    """
    return lr * share_at(points, step)


def constant(step: int, *, lr: PositiveFloat, warmup_steps: NonNegativeInt) -> float:
    """Return the learning rate after `step` finished steps: linear warmup, then always `lr`.

    Args:
        step: Optimizer steps done so far; given by the trainer.
        lr: Learning rate after the warmup.
        warmup_steps: Steps of linear warmup; 0 means none.
    """
    return lr * min(1.0, (step + 1) / (warmup_steps + 1))


def share_at(points: Sequence[tuple[int, float]], step: int) -> float:
    """Return the share of a table after `step` finished steps, on straight lines between its points."""
    at = bisect_right(points, step, key=lambda point: point[0])
    if at == 0:
        return points[0][1]
    begin, share = points[at - 1]
    if at < len(points):
        end, later = points[at]
        share += (later - share) * (step - begin) / (end - begin)
    return share


def _warmup(step: int, lr: float, warmup_steps: int) -> float:
    """Return the rate at a step of a linear warmup; it is never 0."""
    return lr * (step + 1) / (warmup_steps + 1)


def _decay(step: int, lr: float, min_lr: float, begin: int, end: int, shape: DecayShape) -> float:
    """Return the rate at a step of a decay from `lr` at `begin` to `min_lr` at `end`."""
    if step >= end:
        return min_lr
    return min_lr + (lr - min_lr) * DECAYS[shape]((step - begin) / (end - begin))
