"""Learning-rate schedules: pure functions of the step, so that nothing needs to be saved or restored."""

import math
from typing import Protocol

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


class Schedule(Protocol):
    """A schedule whose settings are bound: what the trainer calls."""

    def __call__(self, step: int, /) -> float:
        """Return the learning rate of the step that follows `step` finished ones."""


def cosine(
    step: int, *, lr: PositiveFloat, min_lr: NonNegativeFloat, warmup_steps: NonNegativeInt, max_steps: PositiveInt
) -> float:
    """Return the learning rate after `step` finished steps: linear warmup, half a cosine, then `min_lr`.

    Source: Loshchilov and Hutter, "SGDR" (2017), eq. 5, without restarts; warmup as in nanoGPT, never 0.
    """
    if step < warmup_steps:
        return lr * (step + 1) / (warmup_steps + 1)
    if step >= max_steps:
        return min_lr
    progress = (step - warmup_steps) / (max_steps - warmup_steps)
    return min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (lr - min_lr)


def constant(step: int, *, lr: PositiveFloat, warmup_steps: NonNegativeInt) -> float:
    """Return the learning rate after `step` finished steps: linear warmup, then `lr` for good."""
    return lr * min(1.0, (step + 1) / (warmup_steps + 1))
