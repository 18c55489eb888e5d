"""Moves Python's garbage collection to the end of a step, where it is short and comes at the same place every time."""

import contextlib
import gc
from collections.abc import Iterator
from typing import Self

FULL_EVERY = 100  # steps


class GarbageCollection:
    """Collects garbage after each step instead of whenever Python has made many objects.

    Python looks at all objects in a full collection: 200,000 once torch is imported, which takes 0.1 s or more, in the
    middle of any step. After the first step of a `with` block these are frozen, that is, left out. What is then left
    to look at are the objects of a few steps, which takes less than 0.1 ms. So garbage in reference cycles, which may
    hold large tensors, lives no longer than its step. The end of the block restores Python's setting.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.was_enabled = True

    def __enter__(self) -> Self:
        self.steps, self.was_enabled = 0, gc.isenabled()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.steps:
            gc.unfreeze()
        if self.was_enabled:
            gc.enable()

    def after_step(self) -> None:
        """Collect the garbage of a step. The first step also leaves garbage from compiling."""
        if not self.steps:
            gc.disable()
            gc.collect()
            gc.freeze()
        else:
            gc.collect(2 if self.steps % FULL_EVERY == 0 else 1)
        self.steps += 1

    @contextlib.contextmanager
    def as_usual(self) -> Iterator[None]:
        """Let Python collect as it does by default in the `with` block, which is longer than a step."""
        if self.was_enabled:
            gc.enable()
        try:
            yield
        finally:
            if self.steps:
                gc.disable()
