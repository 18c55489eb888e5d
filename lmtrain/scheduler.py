"""Learning-rate schedules: pure functions of the step, so that nothing needs to be saved or restored."""

import math
from typing import Protocol

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


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
        return lr * (step + 1) / (warmup_steps + 1)
    if step >= max_steps:
        return min_lr
    progress = (step - warmup_steps) / (max_steps - warmup_steps)
    return min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (lr - min_lr)


def constant(step: int, *, lr: PositiveFloat, warmup_steps: NonNegativeInt) -> float:
    """Return the learning rate after `step` finished steps: linear warmup, then always `lr`.

    Args:
        step: Optimizer steps done so far; given by the trainer.
        lr: Learning rate after the warmup.
        warmup_steps: Steps of linear warmup; 0 means none.
    """
    return lr * min(1.0, (step + 1) / (warmup_steps + 1))
