"""The time of a training step, and nothing else."""

import time
from types import TracebackType


class StepClock:
    """Seconds a step, without the time that evaluating, logging and saving took."""

    def __init__(self, step: int) -> None:
        self._step, self._started = step, time.perf_counter()

    def lap(self, step: int) -> float:
        """Mean seconds of the steps since the last lap."""
        now = time.perf_counter()
        seconds = (now - self._started) / (step - self._step)
        self._step, self._started = step, now
        return seconds

    def paused(self) -> "StepClock":
        return self

    def __enter__(self) -> None:
        self._paused = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._started += time.perf_counter() - self._paused
